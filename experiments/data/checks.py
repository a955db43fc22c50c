"""What data must satisfy to be used: shapes, finite numbers, units, and forces that are minus the gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from experiments.data.dataset import Dataset, log, nearest_images
from experiments.data.entries import shown
from stablejax import units
from stablejax.space import Space, periodic

ENERGY_UNITS = units.ENERGY_UNITS
LENGTH_UNITS = {"angstrom": 1.0, "bohr": units.BOHR, "nm": 10.0}
FORCE_RMS_RANGE = (0.1, 10.0)
"""Root mean square force component of thermal molecules, eV/Å: 1.2 for organic molecules at 500 K."""
OUTLIER_FORCE = 10.0
"""Largest force of a frame, relative to the median over frames, beyond which the frame is none of the simulation's."""
OUTLIER_ENERGY = 50.0
"""The same for the deviation of the energy from its median, relative to the median deviation."""
MOST_OUTLIERS = 0.05
"""Fraction of frames above which they are a part of the data."""
FRAMES_FOR_SIGN = 300
STIFF_PAIR = (2.0, 0.15)
"""Mean and standard deviation of a distance below which its force must bring it back, Å."""
COARSE_ENERGY = 1e-3
"""eV; the models reach errors of this size."""
COARSE_POSITION = 1e-5
"""Å"""
LARGEST = 1e15
"""In any unit: float32 holds their squares. No calculation has larger numbers."""
MOST_SKEWED = 1e3
"""Longest lattice vector over the shortest: more is no cell of a liquid, and takes long to reduce."""


def check_shapes(where: str, raw: Dataset) -> None:
    """Refuse arrays that do not belong together, or hold what is no number.

    Args:
      where: the file, for messages.
      raw: as it is in the file.
    """
    num_frames, num_atoms = len(raw.energy), len(raw.species)
    if not num_frames:
        raise ValueError(f"{where}: holds no frames.")
    expected: dict[str, tuple[int, ...]] = {
        "position": (num_frames, num_atoms, 3),
        "force": (num_frames, num_atoms, 3),
        "velocity": (num_frames, num_atoms, 3),
        "trajectory": (num_frames,),
    }
    for field, shape in expected.items():
        array = getattr(raw, field)
        if array is not None and array.shape != shape:
            raise ValueError(
                f"{where}: {field} has shape {array.shape}, expected {shape} for {num_frames} energies and {num_atoms} "
                "atoms: check that the arrays are of the same frames, [frame, atom, 3]."
            )
    for field in ("position", "energy", "force", "velocity"):
        array = getattr(raw, field)
        if array is not None:
            _check_numbers(where, field, array)
    for name, curves in (raw.motion or {}).items():
        if curves.ndim != 2 or curves.dtype.kind not in "iuf" or not np.isfinite(curves).all():
            raise ValueError(f"{where}: `motion_{name}` has to be finite numbers [window, lag], got {shown(curves)}.")
    if raw.trajectory is not None and raw.trajectory.dtype.kind not in "iu":
        raise ValueError(f"{where}: `trajectory` has to be integers, got {raw.trajectory.dtype}: number trajectories.")


def _check_numbers(where: str, field: str, array: np.ndarray) -> None:
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{where}: {field} holds {array.dtype}, expected floating-point numbers.")
    rows = array.reshape(len(array), -1)
    is_bad = ~np.isfinite(rows).all(axis=1)
    if is_bad.any():
        raise ValueError(
            f"{where}: {field} of frame {np.flatnonzero(is_bad)[0]} is not finite ({is_bad.sum()} such frames): "
            "remove them."
        )
    is_huge = (np.abs(rows) > LARGEST).any(axis=1)
    if is_huge.any():
        frame = int(np.argmax(is_huge))
        raise ValueError(
            f"{where}: {field} of frame {frame} is {np.abs(rows[frame]).max():.3g}, which is no result of a "
            "calculation: the file is damaged, or remove the frame."
        )


def reduced_cell(where: str, cell: np.ndarray, length_factor: float) -> np.ndarray:
    """The lattice by its shortest vectors, Å.

    Args:
      where: the file, for messages.
      cell: lattice vectors in rows, as they are in the file.
      length_factor: Å per length unit.
    """
    if cell.shape != (3, 3) or cell.dtype.kind not in "iuf" or not np.isfinite(cell).all():
        raise ValueError(f"{where}: `cell` has to be three finite lattice vectors in rows, [3, 3], got {shown(cell)}.")
    scaled = cell.astype(float) * length_factor
    length = np.linalg.norm(scaled, axis=1)
    if length.max() > MOST_SKEWED * max(length.min(), 1e-3):
        raise ValueError(
            f"{where}: the lattice vectors have lengths of {length.min():.3g} to {length.max():.3g} Å: check `cell` "
            "and config.data.length_unit."
        )
    if not abs(np.linalg.det(scaled)) > 1e-9:
        raise ValueError(f"{where}: the lattice vectors {scaled.tolist()} (Å) span no volume: check `cell`.")
    return np.asarray(periodic(scaled).reduced)


def note_coarse_steps(where: str, raw: Dataset, energy_factor: float, length_factor: float) -> None:
    """Say where numbers were rounded to float32 before they came here, and this is coarse.

    Args:
      where: the file, for messages.
      raw: as it is in the file.
      energy_factor: eV per energy unit.
      length_factor: Å per length unit.
    """
    for field, factor, unit, limit in (
        ("energy", energy_factor, "eV", COARSE_ENERGY),
        ("position", length_factor, "Å", COARSE_POSITION),
    ):
        array = getattr(raw, field)
        largest = np.float32(np.abs(array).max())
        step = float(np.spacing(largest)) * factor
        if (
            step > limit
            and np.array_equal(array.astype(np.float32), array)
            and not np.array_equal(array, array.round())
        ):
            log.warning(
                "note: %s: %s was rounded to float32 in steps of %.1g %s: errors below that mean nothing; save "
                "it in float64 from the source.",
                *(where, field, step, unit),
            )


def check_outliers(place: Callable[[int], str], dataset: Dataset) -> None:
    """Refuse single frames whose forces or energy are far beyond all others.

    Args:
      place: file and frame of an index, for messages.
      dataset: in internal units.
    """
    force = np.sqrt((dataset.force.astype(float) ** 2).sum(axis=-1)).max(axis=1)
    deviation = np.abs(dataset.energy - np.median(dataset.energy))
    for values, factor, text in (
        (force, OUTLIER_FORCE, "a force of {:.4g} eV/Å, the median of the largest forces of frames is {:.3g}"),
        (deviation, OUTLIER_ENERGY, "an energy {:.4g} eV from the median, the median deviation is {:.3g}"),
    ):
        usual = float(np.median(values))
        is_outlier = values > factor * usual
        if usual > 0 and 0 < is_outlier.sum() <= max(1, MOST_OUTLIERS * len(values)):
            frame = int(np.argmax(values))
            raise ValueError(
                f"{place(frame)} has {text.format(values[frame], usual)} ({is_outlier.sum()} such frames): the "
                "calculation of the frame failed, or its atoms are too close; remove it."
            )


def check_force_size(where: str, dataset: Dataset, energy_unit: str, length_unit: str) -> None:
    """Refuse forces whose size does not fit the declared units.

    Args:
      where: the file, for messages.
      dataset: in internal units.
      energy_unit: as declared.
      length_unit: as declared.
    """
    rms = float(np.sqrt(np.mean(dataset.force.astype(np.float64) ** 2)))
    low, high = FORCE_RMS_RANGE
    if low <= rms <= high:
        return
    declared = ENERGY_UNITS[energy_unit] / LENGTH_UNITS[length_unit]
    sizes = {
        f"{energy} and {length}": rms / declared * energy_factor / length_factor
        for energy, energy_factor in ENERGY_UNITS.items()
        for length, length_factor in LENGTH_UNITS.items()
    }
    fitting = [pair for pair, size in sizes.items() if low <= size <= high]
    fitting.sort(key=lambda pair: abs(np.log(sizes[pair] / np.sqrt(low * high))))
    advice = f"they would fit {' or '.join(fitting)}" if fitting else "no known unit fits"
    raise ValueError(
        f"{where}: in {energy_unit} and {length_unit} the root mean square force is {rms:.3g} eV/Å, expected {low:g} "
        f"to {high:g} for thermal molecules; {advice}: check config.data.energy_unit and length_unit."
    )


def check_sign(where: str, dataset: Dataset) -> None:
    """Refuse forces that have the sign of the gradient, and energies of the wrong sign.

    In thermal frames the force along a bond brings it back to its mean length: their correlation is negative, by
    ⟨Δr f⟩ = −k_B T. The energy difference of consecutive frames is minus the work of the mean force, where they are
    close.

    Args:
      where: the file, for messages.
      dataset: in internal units.
    """
    index = np.unique(np.linspace(0, len(dataset.energy) - 1, FRAMES_FOR_SIGN).astype(int))
    position, force = dataset.position[index].astype(float), dataset.force[index].astype(float)
    correlation = _restoring(position, force, dataset.space)
    if len(index) >= 5 and len(correlation) * len(index) >= 30 and np.median(correlation) > 0.5:
        raise ValueError(
            f"{where}: energies and forces disagree in sign, for the forces drive stretched bonds apart (correlation "
            f"{np.median(correlation):.2f} of length and force): these are gradients; multiply them by −1."
        )
    work, change = _work(dataset, index[:-1])
    if len(work) >= 10 and work.std() > 0 and change.std() > 0 and (r := np.corrcoef(work, change)[0, 1]) < -0.6:
        raise ValueError(
            f"{where}: energies and forces disagree in sign, for the energy rises where the forces do work "
            f"(correlation {r:.2f} over consecutive frames): multiply the energies by −1, or check "
            "that both are of the same frames."
        )


def stiff_pairs(position: np.ndarray, force: np.ndarray, space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Distances of pairs of atoms that hardly change them, and the force on the second less that on the first along it.

    Both are [frame, pair].

    Args:
      position: [frame, atom, 3] Å.
      force: of these frames, in any unit.
      space: of the data set.
    """
    first, second = np.triu_indices(position.shape[1], 1)
    mean, stiff = STIFF_PAIR
    near = nearest_images(position[0, second] - position[0, first], space)
    chosen = np.linalg.norm(near, axis=-1) < 1.5 * mean
    first, second = first[chosen], second[chosen]
    vector = nearest_images(position[:, second] - position[:, first], space)
    length = np.linalg.norm(vector, axis=-1)
    is_stiff = (length.mean(axis=0) < mean) & (length.std(axis=0) < stiff) & (length.min(axis=0) > 0)
    length, vector = length[:, is_stiff], vector[:, is_stiff]
    return length, ((force[:, second[is_stiff]] - force[:, first[is_stiff]]) * vector).sum(axis=-1) / length


def _restoring(position: np.ndarray, force: np.ndarray, space: Space) -> np.ndarray:
    """Correlation of distance and force along it for each stiff pair of atoms."""
    length, along = stiff_pairs(position, force, space)
    length, along = length - length.mean(axis=0), along - along.mean(axis=0)
    size = np.sqrt((length**2).sum(axis=0) * (along**2).sum(axis=0))
    return (length * along).sum(axis=0)[size > 0] / size[size > 0]


def _work(dataset: Dataset, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minus the work from each frame to the next of its trajectory, and the change of energy, eV."""
    if dataset.trajectory is not None:
        index = index[dataset.trajectory[index] == dataset.trajectory[index + 1]]
    step = nearest_images(dataset.position[index + 1].astype(float) - dataset.position[index], dataset.space)
    force = dataset.force[index].astype(float) + dataset.force[index + 1]
    return -0.5 * (force * step).sum(axis=(1, 2)), dataset.energy[index + 1] - dataset.energy[index]
