"""Several files as one data set: what they have to agree in, and trajectories that stay apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import atomic_masses
from ase.symbols import Symbols

from experiments.data.dataset import Dataset
from experiments.data.entries import agree

OTHER_ZERO = 50.0
"""Distance of the median energies of two files, relative to the larger median deviation, beyond which their zero or
their method differs: 300 and 500 K are ten times apart for hundreds of atoms."""
FRAMES_FOR_ZERO = 5


def join(parts: Sequence[tuple[str, Dataset]]) -> Dataset:
    """The frames of all files in their order.

    Trajectories are numbered apart by file; a file that does not number its own is one.

    Args:
      parts: name and frames of each file, in internal units.

    Raises:
      ValueError: two are not of the same system, or one has what the other lacks.
    """
    (first, one), *others = parts
    for where, other in others:
        _check_system(where, other, first, one)
        _check_entries(where, other, first, one)
        _check_energies(where, other, first, one)
    if not others:
        return one
    every = [part for _, part in parts]
    return one._replace(
        position=np.concatenate([part.position for part in every]),
        energy=np.concatenate([part.energy for part in every]),
        force=np.concatenate([part.force for part in every]),
        velocity=None if one.velocity is None else np.concatenate([part.velocity for part in every]),  # type: ignore[misc]
        trajectory=_trajectories(every),
        motion=one.motion and {name: np.concatenate([part.motion[name] for part in every]) for name in one.motion},  # type: ignore[index]
        temperature_K=one.temperature_K if len({part.temperature_K for part in every}) == 1 else None,
        mass=next((part.mass for part in every if part.mass is not None), None),
    )


def frame_of(parts: Sequence[tuple[str, Dataset]], frame: int) -> str:
    """File and number there of a frame of the joined data set, for messages.

    Args:
      parts: as for `join`.
      frame: of the joined data set.
    """
    for where, part in parts:
        if frame < len(part.energy):
            return f"{where}: frame {frame}"
        frame -= len(part.energy)
    raise IndexError(frame)


def _trajectories(parts: Sequence[Dataset]) -> np.ndarray:
    numbers, start = [], 0
    for part in parts:
        own = np.zeros(len(part.energy), np.int64)
        if part.trajectory is not None:
            own = np.unique(part.trajectory, return_inverse=True)[1].reshape(-1)
        numbers.append(start + own)
        start += int(own.max()) + 1
    return np.concatenate(numbers)


def _check_system(where: str, other: Dataset, first: str, one: Dataset) -> None:
    if not np.array_equal(other.species, one.species):
        raise ValueError(
            f"{where}: has the atoms {Symbols(other.species)}, {first} has {Symbols(one.species)}, or in another "
            "order: one data set is of one system; give all files the same order of atoms."
        )
    cells = [None if part.cell is None else part.cell.tolist() for part in (other, one)]
    if (other.cell is None) != (one.cell is None) or (
        other.cell is not None and not np.allclose(other.cell, one.cell, rtol=1e-6, atol=1e-6)  # type: ignore[arg-type]
    ):
        raise ValueError(f"{where}: has the cell {cells[0]}, {first} {cells[1]} (Å): only one cell is supported.")
    for kind in (one.state or {}).keys() & (other.state or {}).keys():
        values = other.state[kind], one.state[kind]  # type: ignore[index]
        if not agree(*values):
            raise ValueError(
                f"{where}: has a {kind} of {values[0]}, {first} of {values[1]}: one potential is one energy surface; "
                "keep the files of one state."
            )
    masses = [atomic_masses[part.species] if part.mass is None else part.mass for part in (other, one)]
    if not (same := np.isclose(masses[0], masses[1], rtol=1e-4)).all():
        atom = int(np.argmin(same))
        raise ValueError(
            f"{where}: atom {atom} has a mass of {masses[0][atom]:g}, in {first} {masses[1][atom]:g} amu: give all "
            "files the same masses."
        )


def _check_entries(where: str, other: Dataset, first: str, one: Dataset) -> None:
    """What one file has and another lacks would be lost, or made up."""
    for name in ("velocity", "motion"):
        if (getattr(other, name) is None) != (getattr(one, name) is None):
            has = "no" if getattr(other, name) is None else "has"
            raise ValueError(f"{where}: {has} {name}, unlike {first}: give it to all files, or to none.")
    for name in ("frame_spacing_fs", "motion_spacing_fs", "is_wrapped"):
        values = getattr(other, name), getattr(one, name)
        if values[0] != values[1]:
            raise ValueError(f"{where}: `{name}` is {values[0]}, in {first} {values[1]}: it has to be the same in all.")
    shapes = [{name: curves.shape[1:] for name, curves in (part.motion or {}).items()} for part in (other, one)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{where}: has the curves of motion {shapes[0]}, {first} {shapes[1]}: they have to be alike.")


def _check_energies(where: str, other: Dataset, first: str, one: Dataset) -> None:
    """Energies of another method or with another zero are another surface."""
    if min(len(other.energy), len(one.energy)) < FRAMES_FOR_ZERO:
        return
    medians = [float(np.median(part.energy)) for part in (other, one)]
    spread = max(float(np.median(np.abs(part.energy - m))) for part, m in zip((other, one), medians, strict=True))
    if spread > 0 and (apart := abs(medians[0] - medians[1])) > OTHER_ZERO * spread:
        raise ValueError(
            f"{where}: its energies are {apart:.4g} eV from those of {first}, the median deviation in them is "
            f"{spread:.3g}: they are of another method, charge or zero of energy; give all files the same."
        )
