"""One run at a time in a directory."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments import disk, processes


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Create the directory and keep other runs out of it; the system ends the lock when the process dies.

    Of several processes the first one takes it. All have to call this.

    Raises:
      ValueError: another run has the directory, or it cannot be written.
    """
    lock = FileLock(run_dir / ".lock")
    is_taken = False
    if processes.is_first():
        with disk.writing(run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:  # an OSError
                is_taken = True
            except NotImplementedError as error:
                raise OSError(errno.ENOTSUP, "the file system has no locks") from error
    if processes.agree(is_taken):
        raise _in_use(run_dir)
    try:
        yield
    finally:
        lock.release()


def check_free(run_dir: Path) -> None:
    """Refuse a directory that a run has, without keeping others out of it and without writing anything.

    Raises:
      ValueError: a run has the directory.
    """
    if processes.agree(processes.is_first() and _is_locked(run_dir / ".lock")):
        raise _in_use(run_dir)


def _is_locked(path: Path) -> bool:
    """False where the system does not tell."""
    if sys.platform == "win32" or not path.exists():
        return False
    import fcntl

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _in_use(run_dir: Path) -> ValueError:
    return ValueError(
        f"{run_dir} is in use by another run: wait until it ends, or choose another directory with --config.run_dir."
    )
