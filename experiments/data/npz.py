"""Arrays of an `.npz`, read after its directory and headers are found to be sound."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as _format

from experiments.data.arrays import dataset_of
from experiments.data.dataset import Dataset, Keys, located
from experiments.data.sources import Budget, Source

KINDS = "biufcSU"
"""Numbers and text; others, such as records and dates, hold no entry that is known."""


def read(source: Source, keys: Keys, budget: Budget) -> Dataset:
    """The data set as it is in the file, in its units.

    Args:
      source: the file.
      keys: names of entries.
      budget: bound on all arrays together.

    Raises:
      ValueError: the content cannot be used.
    """
    return dataset_of(str(source), _arrays(source.path, budget), keys)


def _arrays(path: Path, budget: Budget) -> dict[str, np.ndarray]:
    _check_sizes(path, budget)
    arrays = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            with located(f"array `{name}`"):
                array = file[name]
            if isinstance(array, np.ndarray) and array.dtype.kind in KINDS:
                arrays[name] = array
    return arrays


def _check_sizes(path: Path, budget: Budget) -> None:
    """Refuse by the directory and the headers what does not fit: a header can promise anything."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        budget.take(str(path), sum(info.file_size for info in infos))
        for info in infos:
            if not info.filename.endswith(".npy"):
                continue
            with located(f"array `{info.filename.removesuffix('.npy')}`"), archive.open(info) as file:
                version = _format.read_magic(file)
                is_first = version == (1, 0)
                shape, _, dtype = (_format.read_array_header_1_0 if is_first else _format.read_array_header_2_0)(file)
                behind = info.file_size - file.tell()
            _check_header(path, info, shape, dtype, behind)


def _check_header(path: Path, info: zipfile.ZipInfo, shape: tuple[int, ...], dtype: np.dtype, behind: int) -> None:
    if dtype.hasobject:
        raise ValueError(
            f"{path}: holds pickled Python objects, which are not read because they can run code: "
            "save it again with plain numeric arrays."
        )
    promised = dtype.itemsize
    for length in shape:
        promised *= int(length)
    if promised != behind:
        name = info.filename.removesuffix(".npy")
        raise ValueError(
            f"{path}: the header of `{name}` promises {promised} bytes, {shape} of {dtype}, but"
            f" {behind} are there: the file is damaged; save it again."
        )
