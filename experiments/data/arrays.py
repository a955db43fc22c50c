"""A data set from named arrays, those of an `.npz` or of a group of HDF5."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from experiments.data import entries
from experiments.data.dataset import Dataset, Keys

_ABOUT_BOUNDARIES = re.compile("lattice|cell|pbc|box|periodic|boundar|hmat|dimensions", re.IGNORECASE)
_ABOUT_STRESS = re.compile("stress|virial|pressure", re.IGNORECASE)


def dataset_of(where: str, arrays: Mapping[str, np.ndarray], keys: Keys) -> Dataset:
    """The data set as it is in the file, in its units.

    Args:
      where: the file, for messages.
      arrays: by name.
      keys: names of entries.

    Raises:
      ValueError: the content cannot be used.
    """
    found = {field: arrays[_name_of(where, field, arrays, keys)] for field in ("species", "position", "energy")}
    force = _forces(where, arrays, keys)
    cell = _cell(where, arrays)
    if (cell is None) == ("wrapped" in arrays):
        missing = "cell" if cell is None else "wrapped"
        raise ValueError(
            f"{where}: expected `cell` and `wrapped` together, got no `{missing}`: a periodic data set has to say "
            "whether its positions were moved into the cell."
        )
    motion = {name.removeprefix("motion_"): arrays[name] for name in arrays if name.startswith("motion_")}
    motion.pop("spacing_fs", None)
    species = _one_order(where, entries.atomic_number(where, found["species"]))
    energy = found["energy"].reshape(-1)
    return Dataset(
        species=species,
        position=found["position"],
        energy=energy,
        force=force,
        velocity=arrays.get("V"),
        trajectory=arrays.get("trajectory"),
        frame_spacing_fs=entries.number(where, "frame_spacing_fs", arrays.get("frame_spacing_fs")),
        cell=cell,
        is_wrapped=cell is not None and entries.flag(where, "wrapped", arrays["wrapped"]),
        motion=motion or None,
        motion_spacing_fs=entries.number(where, "motion_spacing_fs", arrays.get("motion_spacing_fs")),
        mass=_masses(where, arrays, keys, found["species"], species),
        temperature_K=entries.number(where, "temperature_K", arrays.get("temperature_K")),
        state=_state(where, arrays, len(energy)),
    )


def _forces(where: str, arrays: Mapping[str, np.ndarray], keys: Keys) -> np.ndarray:
    """As they are, or minus the gradient."""
    name = entries.find_force(where, arrays, keys.force) or _name_of(where, "force", arrays, keys)
    return -arrays[name] if entries.is_gradient(name) and arrays[name].dtype.kind == "f" else arrays[name]


def _state(where: str, arrays: Mapping[str, np.ndarray], num_frames: int) -> dict[str, Any]:
    """Total charge and multiplicity; arrays of other sizes are of atoms, and not used."""
    stated = {}
    for name in filter(entries.is_of_state, arrays):
        array = arrays[name]
        if array.dtype.kind in "iufSU" and array.shape in ((), (1,), (num_frames,), (num_frames, 1)):
            stated[name] = np.arange(array.size), array.reshape(-1)
    return entries.state(where, stated)


def _name_of(where: str, field: str, arrays: Mapping[str, np.ndarray], keys: Keys) -> str:
    """Name of the array that holds a field."""
    name = entries.find(where, field, arrays, getattr(keys, field, ""))
    if name is None:
        setting = f", or set config.data.{field}_key" if field in ("energy", "force") else ""
        raise ValueError(
            f"{where}: expected {field} under one of the names {', '.join(entries.NAMES[field])}, got arrays "
            f"{', '.join(sorted(arrays))}: rename the array{setting}."
        )
    return name


def _cell(where: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Lattice vectors, where there are any; boundaries under other names must not be passed over."""
    names = [name for name in arrays if _ABOUT_BOUNDARIES.search(name) and not _ABOUT_STRESS.search(name)]
    about = {name: arrays[name] for name in names}
    cell = about.pop("cell", None)
    if cell is None:
        said = [name for name, array in about.items() if np.any(array) or array.dtype.kind in "SU"]
        if said:
            raise ValueError(
                f"{where}: `{said[0]}` says something about boundaries, which are read only from `cell` [3, 3], "
                "lattice vectors in rows, with `wrapped`: rename it, or remove it if boundaries are open."
            )
        return None
    for name, array in about.items():
        if "pbc" in name.lower() or "periodic" in name.lower():
            if array.dtype.kind not in "biuf" or not np.all(array):
                raise ValueError(
                    f"{where}: `{name}` is {entries.shown(array)}: expected a cell that is periodic in all directions "
                    "or none."
                )
        elif not entries.agree(array, cell):
            raise ValueError(f"{where}: `{name}` and `cell` are both there and disagree: leave one of them.")
    if cell.ndim == 3:
        if len(changed := np.flatnonzero((cell != cell[:1]).any(axis=(1, 2)))):
            raise ValueError(f"{where}: frame {changed[0]} has a different cell than frame 0: only one is supported.")
        cell = cell[0]
    return cell


def _masses(
    where: str, arrays: Mapping[str, np.ndarray], keys: Keys, raw: np.ndarray, species: np.ndarray
) -> np.ndarray | None:
    name = entries.find(where, "mass", arrays, keys.mass)
    if name is not None:
        return entries.check_masses(f"{where}: `{name}`", arrays[name], species)
    if raw.dtype.kind not in "SU":
        return None
    symbols = cast("list[str]", np.atleast_2d(raw.astype(str))[0].tolist())
    return entries.isotope_masses(where, symbols)


def _one_order(where: str, species: np.ndarray) -> np.ndarray:
    """Atomic numbers, the same for all frames; the file may repeat them for each."""
    if species.ndim < 2:
        return np.atleast_1d(species)
    changed = np.flatnonzero((species != species[0]).any(axis=1))
    if len(changed):
        raise ValueError(
            f"{where}: frame {changed[0]} has its atoms in a different order than frame 0: "
            "give every frame the same order of atoms."
        )
    return species[0]
