"""Arrays of an `.npz`, read after its directory and headers are found to be sound."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import cast

import numpy as np
from numpy.lib import format as _format

from experiments.data import entries
from experiments.data.dataset import Dataset, Keys, located

_ABOUT_BOUNDARIES = re.compile("lattice|cell|pbc|box|periodic|boundar|hmat|dimensions", re.IGNORECASE)


def read(path: Path, keys: Keys, max_bytes: float) -> Dataset:
    """The data set as it is in the file, in its units.

    Args:
      path: of the file.
      keys: names of entries.
      max_bytes: bound on all arrays together.

    Raises:
      ValueError: the content cannot be used.
    """
    arrays = _arrays(path, max_bytes)
    found = {field: arrays[_name_of(path, field, arrays, keys)] for field in ("species", "position", "energy", "force")}
    cell = _cell(path, arrays)
    if (cell is None) == ("wrapped" in arrays):
        missing = "cell" if cell is None else "wrapped"
        raise ValueError(
            f"{path}: expected `cell` and `wrapped` together, got no `{missing}`: a periodic data set has to say "
            "whether its positions were moved into the cell."
        )
    motion = {name.removeprefix("motion_"): arrays[name] for name in arrays if name.startswith("motion_")}
    motion.pop("spacing_fs", None)
    species = _one_order(path, entries.atomic_number(str(path), found["species"]))
    return Dataset(
        species=species,
        position=found["position"],
        energy=found["energy"].reshape(-1),
        force=found["force"],
        velocity=arrays.get("V"),
        trajectory=arrays.get("trajectory"),
        frame_spacing_fs=entries.number(str(path), "frame_spacing_fs", arrays.get("frame_spacing_fs")),
        cell=cell,
        is_wrapped=cell is not None and entries.flag(str(path), "wrapped", arrays["wrapped"]),
        motion=motion or None,
        motion_spacing_fs=entries.number(str(path), "motion_spacing_fs", arrays.get("motion_spacing_fs")),
        mass=_masses(path, arrays, keys, found["species"], species),
    )


def _arrays(path: Path, max_bytes: float) -> dict[str, np.ndarray]:
    _check_sizes(path, max_bytes)
    arrays = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            with located(f"array `{name}`"):
                array = file[name]
            if isinstance(array, np.ndarray):
                arrays[name] = array
    return arrays


def _check_sizes(path: Path, max_bytes: float) -> None:
    """Refuse by the directory and the headers what does not fit: a header can promise anything."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        total = sum(info.file_size for info in infos)
        if total > max_bytes:
            raise ValueError(
                f"{path}: its arrays take {total / 1e9:.3g} GB, more than the {max_bytes / 1e9:.3g} GB that are "
                "allowed: set config.data.max_gigabytes if this is meant."
            )
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


def _name_of(path: Path, field: str, arrays: dict[str, np.ndarray], keys: Keys) -> str:
    """Name of the array that holds a field."""
    name = entries.find(str(path), field, arrays, getattr(keys, field, ""))
    if name is None:
        setting = f", or set config.data.{field}_key" if field in ("energy", "force") else ""
        raise ValueError(
            f"{path}: expected {field} under one of the names {', '.join(entries.NAMES[field])}, got arrays "
            f"{', '.join(sorted(arrays))}: rename the array{setting}."
        )
    return name


def _cell(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    """Lattice vectors, where there are any; boundaries under other names must not be passed over."""
    about = {name: array for name, array in arrays.items() if _ABOUT_BOUNDARIES.search(name)}
    cell = about.pop("cell", None)
    if cell is None:
        said = [name for name, array in about.items() if np.any(array) or array.dtype.kind in "SU"]
        if said:
            raise ValueError(
                f"{path}: `{said[0]}` says something about boundaries, which are read only from `cell` [3, 3], lattice "
                "vectors in rows, with `wrapped`: rename it, or remove it if boundaries are open."
            )
        return None
    for name, array in about.items():
        if "pbc" in name.lower() or "periodic" in name.lower():
            if array.dtype.kind not in "biuf" or not np.all(array):
                raise ValueError(
                    f"{path}: `{name}` is {array.tolist()}: expected a cell that is periodic in all directions or none."
                )
        elif not entries.agree(array, cell):
            raise ValueError(f"{path}: `{name}` and `cell` are both there and disagree: leave one of them.")
    if cell.ndim == 3:
        if len(changed := np.flatnonzero((cell != cell[:1]).any(axis=(1, 2)))):
            raise ValueError(f"{path}: frame {changed[0]} has a different cell than frame 0: only one is supported.")
        cell = cell[0]
    return cell


def _masses(
    path: Path, arrays: dict[str, np.ndarray], keys: Keys, raw: np.ndarray, species: np.ndarray
) -> np.ndarray | None:
    name = entries.find(str(path), "mass", arrays, keys.mass)
    if name is not None:
        return entries.check_masses(f"{path}: `{name}`", arrays[name], species)
    if raw.dtype.kind not in "SU":
        return None
    symbols = cast("list[str]", np.atleast_2d(raw.astype(str))[0].tolist())
    return entries.isotope_masses(symbols)


def _one_order(path: Path, species: np.ndarray) -> np.ndarray:
    """Atomic numbers, the same for all frames; the file may repeat them for each."""
    if species.ndim < 2:
        return np.atleast_1d(species)
    changed = np.flatnonzero((species != species[0]).any(axis=1))
    if len(changed):
        raise ValueError(
            f"{path}: frame {changed[0]} has its atoms in a different order than frame 0: "
            "give every frame the same order of atoms."
        )
    return species[0]
