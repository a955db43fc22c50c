"""Arrays of an HDF5 file, or of one of its groups, as SPICE and ANI store them: each read when it is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import entries
from experiments.data.arrays import dataset_of
from experiments.data.dataset import Dataset, Keys, located
from experiments.data.sources import Budget, Source

SHOWN = 4
"""Groups that are named where one has to be chosen."""
LOOKED_AT = 1000
"""Groups that are looked at for molecules."""
_KINDS = "biufS"


class _Arrays(Mapping[str, np.ndarray]):
    """The arrays of a group; sizes are counted before they are read."""

    def __init__(self, where: str, group: Any, budget: Budget) -> None:
        self._where, self._group, self._budget = where, group, budget
        self._names, self._read = list(_datasets(group)), dict[str, np.ndarray]()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._read:
            with located(f"array `{name}`"):
                self._read[name] = self._array(name)
        return self._read[name]

    def _array(self, name: str) -> np.ndarray:
        data = self._group[name]
        if data.external or data.is_virtual:
            raise ValueError(
                f"{self._where}: `{name}` refers to another file, which is not read: copy it into this one."
            )
        promised = data.dtype.itemsize
        for length in data.shape or ():
            promised *= int(length)
        # A file compressed to little can promise any size; a chunk is unpacked whole.
        chunk = int(np.prod(data.chunks or (0,), dtype=object)) * data.dtype.itemsize
        self._budget.check(f"{self._where}: `{name}`", chunk)
        self._budget.take(f"{self._where}: `{name}`", promised)
        return np.asarray(data[()])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read(source: Source, keys: Keys, budget: Budget) -> Dataset:
    """The data set of the file or group, in its units.

    Args:
      source: the file, and the group in it.
      keys: names of entries.
      budget: bound on the arrays that are read.

    Raises:
      ValueError: the content cannot be used; there are several molecules and none was chosen.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"{source}: HDF5 needs h5py: pip install h5py.") from error
    with h5py.File(source.path, "r") as file:
        group = _chosen(source, file)
        return dataset_of(str(source), _Arrays(str(source), group, budget), keys)


def _chosen(source: Source, file: Any) -> Any:
    """The group that was named, or the only one with a molecule."""
    if source.group:
        group = _inside(file, source.group)
        if group is None:
            raise ValueError(f"{source}: has no such group, but {_some(source.path, file)}.")
        return group
    molecules = _molecules(file)
    if len(molecules) > 1:
        raise ValueError(
            f"{source}: holds several molecules, expected one: choose one with {source.path}:GROUP; there are "
            f"{_listed(molecules)}."
        )
    return file[molecules[0]] if molecules else file


def _some(path: Path, file: Any) -> str:
    molecules = _molecules(file)
    return f"{_listed(molecules)}: write {path}:{molecules[0]}" if molecules else "no group with positions at all"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _molecules(file: Any) -> list[str]:
    """Names of the first groups with positions; of the file itself, where they are at the top."""
    waiting, found, num = deque([("/", file)]), list[str](), 0
    while waiting and len(found) <= SHOWN and num < LOOKED_AT:
        name, group = waiting.popleft()
        num += 1
        if entries.has(_datasets(group), "position"):
            found.append(name)
            continue
        # Links to elsewhere could lead into other files, or in circles.
        for inner in _hard(group):
            if len(waiting) < LOOKED_AT and _is_group(group, inner):
                waiting.append((f"{name.rstrip('/')}/{inner}", group[inner]))
    return [name.lstrip("/") or "/" for name in found]


def _inside(file: Any, name: str) -> Any:
    group = file
    for part in filter(None, name.split("/")):
        if part not in _hard(group) or not _is_group(group, part):
            return None
        group = group[part]
    return group


def _hard(group: Any) -> Iterator[str]:
    import h5py

    return (name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink))


def _is_group(group: Any, name: str) -> bool:
    import h5py

    return group.get(name, getclass=True) is h5py.Group


def _datasets(group: Any) -> Iterator[str]:
    """Names of arrays of numbers and of text of fixed length."""
    import h5py

    for name in _hard(group):
        if group.get(name, getclass=True) is h5py.Dataset and group[name].dtype.kind in _KINDS:
            yield name
