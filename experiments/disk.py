"""Files written whole or not at all, and what is wrong with the disk in one sentence."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_REASONS = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "there is no space left for it: make room",
    (errno.EROFS, errno.EACCES, errno.EPERM): "it may not be written there: change the permissions",
    (errno.ENOTDIR, errno.EEXIST, errno.EISDIR): "a file stands where a folder is expected, or the reverse: move it",
}
REASONS = {number: reason for numbers, reason in _REASONS.items() for number in numbers}


def sentence(path: str | Path, error: OSError) -> str:
    """Why a file or folder of a run cannot be written, and what to do.

    Args:
      path: that was to be written.
      error: of the operating system.
    """
    reason = REASONS.get(error.errno or 0, f"{error.strerror or error}: mend that")
    return (
        f"{path} cannot be written, {reason} and give the same command again, which goes on from what is saved, or "
        "choose another directory with --config.run_dir."
    )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the operating system raises inside is raised as one sentence about `path`.

    Raises:
      ValueError: the file or folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(sentence(path, error)) from error


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A new file, which takes the place of `path` once it is on the disk; nothing is left of it if that fails.

    Raises:
      ValueError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            # What an interrupted run left behind; a link, which would be followed elsewhere, goes too.
            partial.unlink(missing_ok=True)
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Args:
      path: of the file.
      text: its content.

    Raises:
      ValueError: it cannot be written.
    """
    with whole(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write a JSON file, whole or not at all.

    Args:
      path: of the file.
      value: see `to_json`.
      indent: of nested lines. None: all in one line.

    Raises:
      ValueError: it cannot be written.
    """
    write_text(path, to_json(value, indent=indent) + "\n")


def read_json(path: Path, *, use: str) -> Any:
    """What a JSON file of a run holds.

    Args:
      path: of the file.
      use: what the file is for, and how to go on without it.

    Raises:
      ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of the encoding
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged, expected JSON, got: {reason}; {use}.") from error


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Standard JSON: numbers that are not finite are null.

    Args:
      value: of types that JSON supports.
      indent: of nested lines. None: all in one line.
    """
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not support."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sync(folder: Path) -> None:
    """The name of a new file is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
