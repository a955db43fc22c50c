"""Signals to stop: a run ends at its next checkpoint, not in the middle of what would be lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from experiments import processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop, and what it had done is saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _Asked:
    """The signal that asked for an end, if any did: of this process, as signals are."""

    number = 0


@contextmanager
def deferred() -> Iterator[None]:
    """A first SIGINT or SIGTERM inside is noted for `check`; a second one raises `Interrupted` at once."""
    former = {number: signal.signal(number, _note) for number in SIGNALS}
    _Asked.number = 0
    try:
        yield
    finally:
        _Asked.number = 0
        for number, handler in former.items():
            signal.signal(number, handler)


def check() -> None:
    """End here if that was asked for. All processes have to call it, since one may be asked alone.

    Raises:
      Interrupted: it was.
    """
    if number := processes.largest(_Asked.number):
        raise Interrupted(number)


def _note(number: int, _: FrameType | None) -> None:
    if _Asked.number:
        raise Interrupted(number)
    _Asked.number = number
    os.write(2, b"stopping at the next checkpoint; once more: at once\n")
