"""Files of a data set: which they are, and what they may unpack to."""

from __future__ import annotations

import glob
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

ADVICE = "set config.data.path to an .npz or .xyz file"
_WITH_GROUP = re.compile(r"(.+\.(?:h5|hdf5)):(.+)", re.IGNORECASE | re.DOTALL)


class Source(NamedTuple):
    """One file, or one group of an HDF5 file."""

    path: Path
    group: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.group}" if self.group else str(self.path)

    def check_regular(self) -> None:
        """Refuse what is missing, and a pipe or a device, which would be read without end.

        Raises:
          ValueError: it is not a regular file.
        """
        if not self.path.exists():
            raise ValueError(f"{self.path}: no such file: {ADVICE}.")
        if not stat.S_ISREG(self.path.stat().st_mode):
            raise ValueError(f"{self.path}: is not a regular file: {ADVICE}.")


class Budget:
    """Bound on what all files of a data set unpack to, counted as they are read."""

    def __init__(self, allowed: float) -> None:
        """`allowed`: bytes."""
        self.allowed, self.taken = allowed, 0

    @property
    def left(self) -> int:
        """Bytes that may still be read."""
        return max(0, int(self.allowed) - self.taken)

    def check(self, where: str, size: int) -> None:
        """Refuse what does not fit.

        Args:
          where: the file, for messages.
          size: bytes.

        Raises:
          ValueError: it is too large.
        """
        if size > self.left:
            before = f" beside {self.taken / 1e9:.3g} GB read before it" if size <= self.allowed else ""
            raise ValueError(
                f"{where}: takes {size / 1e9:.3g} GB{before}, more than the {self.allowed / 1e9:.3g} GB that are "
                "allowed: set config.data.max_gigabytes if this is meant."
            )

    def take(self, where: str, size: int) -> None:
        """The same, and count it.

        Args:
          where: the file, for messages.
          size: bytes.

        Raises:
          ValueError: it is too large.
        """
        self.check(where, size)
        self.taken += size


def find(text: str | Path) -> list[Source]:
    """The files that a path names: one, several separated by commas, or those that match a pattern such as `*.xyz`.

    Args:
      text: path or paths; `FILE.h5:GROUP` for a group of an HDF5 file.

    Raises:
      ValueError: a name is empty, a pattern matches nothing, or a file is named twice.
    """
    parts = [str(text)] if os.path.exists(text) else [part.strip() for part in str(text).split(",")]
    found = [source for part in parts for source in _matching(str(text), part)]
    seen: set[tuple[str, str]] = set()
    for source in found:
        name = (os.path.realpath(source.path), source.group)
        if name in seen:
            raise ValueError(f"{source}: is named twice in config.data.path: name each file once.")
        seen.add(name)
    return found


def without_folders(text: str) -> str:
    """The same path or paths without the folders of this machine.

    Args:
      text: as for `find`.
    """
    found = [(part, _WITH_GROUP.fullmatch(part)) for part in text.split(",")]
    return ",".join(f"{Path(m[1]).name}:{m[2]}" if m else Path(part).name for part, m in found)


def _matching(text: str, part: str) -> list[Source]:
    if not part or "\0" in part:
        raise ValueError(f"expected names of files, separated by commas, in config.data.path, got {text!r}: {ADVICE}.")
    if os.path.exists(part):
        return [Source(Path(part))]
    with_group = _WITH_GROUP.fullmatch(part)
    name, group = with_group.groups() if with_group else (part, "")
    if not glob.has_magic(name) or os.path.exists(name):
        return [Source(Path(name), group)]
    names = sorted(glob.glob(name))
    if not names:
        raise ValueError(f"{name}: no file has a name like this: {ADVICE}, or a pattern that some match.")
    return [Source(Path(one), group) for one in names]
