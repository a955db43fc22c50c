"""Standard error without one spurious message of XLA; all its other messages are shown."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys

# When XLA loads a compiled program from the cache it mistakes preferences of the compiler for missing instructions,
# and prints a page for each (openxla/xla#44565). Messages about features that are instructions are still shown.
FALSE_ALARM = "Loading XLA:CPU AOT result. Target machine feature +prefer-no-"

_FILTER = """
import sys
for line in sys.stdin.buffer:
    if sys.argv[1].encode() not in line:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""


def drop() -> None:
    """Drop the lines of this process's standard error that hold the false alarm, until the process ends.

    The lines come from compiled code, so a separate process filters them: messages before a crash are not lost.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    command = [sys.executable, "-I", "-S", "-c", _FILTER, FALSE_ALARM]
    # A session of its own: an interrupt from the keyboard ends the experiment first.
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=shown, start_new_session=True)
    assert child.stdin is not None
    os.dup2(child.stdin.fileno(), 2)
    child.stdin.close()

    def restore() -> None:
        sys.stderr.flush()
        os.dup2(shown, 2)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a child process may still hold the other end
            child.wait(timeout=5)

    atexit.register(restore)
