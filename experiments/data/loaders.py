"""Loaders of common data sets, which reject data that would fail later."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from stablejax import units
from stablejax.space import OPEN, Pairs, Space, periodic

if TYPE_CHECKING:
    from ase import Atoms

ENERGY_UNITS = {"eV": 1.0, "kcal/mol": units.KCAL_PER_MOL, "hartree": units.HARTREE}
LENGTH_UNITS = {"angstrom": 1.0, "bohr": units.BOHR}
FORCE_RMS_RANGE = (0.1, 10.0)
"""Root mean square force component of thermal molecules, eV/Å: 1.2 for organic molecules at 500 K."""
_NPZ_NAMES = {
    "species": ("z", "nuclear_charges", "atomic_numbers"),
    "position": ("R", "coords", "positions"),
    "energy": ("E", "energies", "energy"),
    "force": ("F", "forces"),
}


class Dataset(NamedTuple):
    """Labeled frames of one system, in eV, Å and amu."""

    species: np.ndarray  # [atom] atomic numbers
    position: np.ndarray  # [frame, atom, 3] float32, Å
    energy: np.ndarray  # [frame] float64, eV
    force: np.ndarray  # [frame, atom, 3] float32, eV/Å
    velocity: np.ndarray | None  # [frame, atom, 3] float32, internal units; None: not in the file
    trajectory: np.ndarray | None  # [frame] number of the trajectory; frames of one are consecutive
    frame_spacing_fs: float | None
    cell: np.ndarray | None = None  # [3, 3] lattice vectors in rows, Å; None: open boundaries
    is_wrapped: bool = False  # positions are moved into the cell, atom by atom
    motion: dict[str, np.ndarray] | None = None  # [window, lag] curves of the reference's dynamics; see `evaluation`
    motion_spacing_fs: float | None = None

    @property
    def space(self) -> Space:
        """Boundaries of the system."""
        return OPEN if self.cell is None else periodic(self.cell)


class Split(NamedTuple):
    """Indices of disjoint frames."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def load(path: str | Path, *, energy_unit: str, length_unit: str) -> Dataset:
    """Read an MD17, rMD17 or MD22 style `.npz`, or an extended XYZ file.

    An `.npz` holds atomic numbers, positions, energies and forces under the names of those data sets, and may hold
    velocities `V` (Å/fs), the number of the `trajectory` of each frame and `frame_spacing_fs`. Forces are in the energy
    unit per length unit. A periodic system has `cell`, lattice vectors in rows in the length unit, and states in
    `wrapped` (true or false) whether its positions were moved into it; an extended XYZ file does so with `Lattice=`,
    `pbc=` and `wrapped=` in its comment lines. Curves of the reference's dynamics may be added as `motion_NAME`
    [window, lag] with `motion_spacing_fs`.

    Raises:
      ValueError: the content of the file cannot be used as declared; the message says why and what to do.
    """
    path = Path(path)
    for name, value, known in (
        ("energy_unit", energy_unit, ENERGY_UNITS),
        ("length_unit", length_unit, LENGTH_UNITS),
    ):
        if value not in known:
            raise ValueError(
                f"{path}: `{name}` has to be one of {', '.join(known)}, got {value!r}: "
                f"units are declared, never guessed; set config.data.{name}."
            )
    if not path.exists():
        raise ValueError(f"{path}: no such file: set config.data.path to an .npz or .xyz file.")
    read = {".npz": _read_npz, ".xyz": _read_extxyz, ".extxyz": _read_extxyz}.get(path.suffix)
    if read is None:
        raise ValueError(f"{path}: expected a file named .npz, .xyz or .extxyz, got {path.suffix!r}.")
    raw = read(path)
    _check_shapes(path, raw)
    energy_factor, length_factor = ENERGY_UNITS[energy_unit], LENGTH_UNITS[length_unit]
    dataset = raw._replace(
        position=(raw.position * length_factor).astype(np.float32),
        energy=raw.energy.astype(np.float64) * energy_factor,
        force=(raw.force * (energy_factor / length_factor)).astype(np.float32),
        velocity=None if raw.velocity is None else (raw.velocity / units.FEMTOSECOND).astype(np.float32),
        cell=None if raw.cell is None else np.asarray(raw.cell, float) * length_factor,
    )
    _check_force_size(path, dataset, energy_unit, length_unit)
    return dataset


def split(dataset: Dataset, *, num_train: int, num_validation: int, num_test: int, seed: int) -> Split:
    """Disjoint random frames for training, validation and test.

    Where the data set states the trajectory of each frame, a quarter of the trajectories (at least one) is held out and
    test frames come from there only, so that they are not close in time to training frames.

    Raises:
      ValueError: too few frames, or the same frame in training and test.
    """
    rng = np.random.default_rng(seed)
    frames = np.arange(len(dataset.position))
    if dataset.trajectory is not None and len(runs := np.unique(dataset.trajectory)) > 1:
        held_out = runs[-max(1, len(runs) // 4) :]
        is_held_out = np.isin(dataset.trajectory, held_out)
        learnable, testable = rng.permutation(frames[~is_held_out]), rng.permutation(frames[is_held_out])
    else:
        permuted = rng.permutation(frames)
        learnable, testable = permuted[: len(frames) - num_test], permuted[len(frames) - num_test :]
    wanted = num_train + num_validation
    if min(num_train, num_validation, num_test) < 1 or wanted > len(learnable) or num_test > len(testable):
        raise ValueError(
            f"asked for {num_train} training, {num_validation} validation and {num_test} test frames, but there are "
            f"{len(learnable)} to learn from and {len(testable)} to test on: change config.data.num_train, "
            "num_validation or num_test."
        )
    chosen = Split(learnable[:num_train], learnable[num_train:wanted], testable[:num_test])
    learned = {_digest(dataset.position[index]): index for index in np.concatenate([chosen.train, chosen.validation])}
    for index in chosen.test:
        if (twin := learned.get(_digest(dataset.position[index]))) is not None:
            raise ValueError(
                f"frame {twin} of the training set is the same as frame {index} of the test set: "
                "errors on it would mean nothing; remove duplicate frames from the data set."
            )
    return chosen


def reference_frames(dataset: Dataset, split: Split, *, num: int, seed: int) -> np.ndarray:
    """Indices of the frames that references of observables are means over: no test frames, nor their trajectories.

    Where the data set states the trajectory of each frame, all frames of trajectories with test frames are left out.
    Labels of these frames are not used: a simulation without energies and forces serves as well.

    Args:
      dataset: all frames.
      split: its test frames are left out.
      num: frames to draw; 0: all that remain.
      seed: of the run.

    Raises:
      ValueError: fewer frames remain.
    """
    is_held_out = np.zeros(len(dataset.position), bool)
    is_held_out[split.test] = True
    if dataset.trajectory is not None and len(np.unique(dataset.trajectory)) > 1:
        is_held_out = np.isin(dataset.trajectory, dataset.trajectory[split.test])
    left = np.flatnonzero(~is_held_out)
    if num > len(left):
        raise ValueError(
            f"config.data.num_reference asks for {num} frames, but only {len(left)} are not held out for the test: "
            "ask for fewer, or for 0, which takes all of them."
        )
    return np.sort(np.random.default_rng([seed, 2]).permutation(left)[:num]) if num else left


def check_bonds_kept(dataset: Dataset, bonds: Pairs, *, threshold: float) -> None:
    """Raise if a bond of the reference itself deviates by more than the threshold.

    Args:
      dataset: the reference.
      bonds: as found in it.
      threshold: largest allowed deviation of a bond from its median length, Å.
    """
    length = np.linalg.norm(dataset.position[:, bonds.first] - dataset.position[:, bonds.second], axis=-1)
    deviation = np.abs(length - np.median(length, axis=0))
    frame, bond = np.unravel_index(np.argmax(deviation), deviation.shape)
    if deviation[frame, bond] > threshold:
        raise ValueError(
            f"frame {frame}: the bond {bonds.first[bond]}-{bonds.second[bond]} is {length[frame, bond]:.2f} Å long, "
            f"its median is {np.median(length[:, bond]):.2f} Å: the atoms change their order between "
            "frames or the bond breaks in the reference; give every frame the same order of atoms, or remove the frame."
        )


def _read_npz(path: Path) -> Dataset:
    arrays = _arrays(path)
    found = {field: arrays[_name_of(path, field, arrays)] for field in _NPZ_NAMES}
    if ("cell" in arrays) != ("wrapped" in arrays):
        missing = "wrapped" if "cell" in arrays else "cell"
        raise ValueError(
            f"{path}: expected `cell` and `wrapped` together, got no `{missing}`: a periodic data set has to say "
            "whether its positions were moved into the cell."
        )
    spacing, motion_spacing = arrays.get("frame_spacing_fs"), arrays.get("motion_spacing_fs")
    motion = {name.removeprefix("motion_"): arrays[name] for name in arrays if name.startswith("motion_")}
    motion.pop("spacing_fs", None)
    return Dataset(
        species=_one_order(path, found["species"]).astype(np.int32),
        position=found["position"],
        energy=found["energy"].reshape(-1),
        force=found["force"],
        velocity=arrays.get("V"),
        trajectory=arrays.get("trajectory"),
        frame_spacing_fs=None if spacing is None else float(spacing),
        cell=arrays.get("cell"),
        is_wrapped=bool(arrays.get("wrapped", False)),
        motion=motion or None,
        motion_spacing_fs=None if motion_spacing is None else float(motion_spacing),
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        try:
            return {name: file[name] for name in file.files}
        except ValueError as error:
            raise ValueError(
                f"{path}: holds pickled Python objects, which are not read because they can run code: "
                "save it again with plain numeric arrays."
            ) from error


def _name_of(path: Path, field: str, arrays: dict[str, np.ndarray]) -> str:
    """Name of the array that holds a field."""
    present = [name for name in _NPZ_NAMES[field] if name in arrays]
    if not present:
        raise ValueError(
            f"{path}: expected {field} under one of the names {', '.join(_NPZ_NAMES[field])}, got arrays "
            f"{', '.join(sorted(arrays))}: rename the array."
        )
    return present[0]


def _one_order(path: Path, species: np.ndarray) -> np.ndarray:
    """Atomic numbers, the same for all frames; the file may repeat them for each."""
    if species.ndim < 2:
        return species
    changed = np.flatnonzero((species != species[0]).any(axis=1))
    if len(changed):
        raise ValueError(
            f"{path}: frame {changed[0]} has its atoms in a different order than frame 0: "
            "give every frame the same order of atoms."
        )
    return species[0]


def _read_extxyz(path: Path) -> Dataset:
    from ase.io import read

    frames = cast("list[Atoms]", read(path, index=":", format="extxyz"))
    species = frames[0].numbers
    for index, atoms in enumerate(frames):
        if not np.array_equal(atoms.numbers, species):
            raise ValueError(
                f"{path}: frame {index} has its atoms in a different order than frame 0: "
                "give every frame the same order of atoms."
            )
        if _energy(atoms) is None or _force(atoms) is None:
            raise ValueError(
                f"{path}: frame {index} has no energy or no forces: expected `energy=` in the comment line and a "
                "column `forces:R:3`."
            )
        if not np.array_equal(atoms.cell, frames[0].cell) or not np.array_equal(atoms.pbc, frames[0].pbc):
            raise ValueError(f"{path}: frame {index} has a different cell than frame 0: only one cell is supported.")
    is_periodic = bool(frames[0].pbc.any())
    if is_periodic and not frames[0].pbc.all():
        raise ValueError(f"{path}: expected a cell that is periodic in all directions or in none, got {frames[0].pbc}.")
    if is_periodic and "wrapped" not in frames[0].info:
        raise ValueError(
            f"{path}: a periodic data set has to say whether its positions were moved into the cell: "
            "write `wrapped=T` or `wrapped=F` into the comment line."
        )
    return Dataset(
        species=species.astype(np.int32),
        position=np.array([atoms.positions for atoms in frames]),
        energy=np.array([_energy(atoms) for atoms in frames], np.float64),
        force=np.array([_force(atoms) for atoms in frames]),
        velocity=None,
        trajectory=None,
        frame_spacing_fs=None,
        cell=frames[0].cell.array if is_periodic else None,
        is_wrapped=bool(frames[0].info.get("wrapped", False)),
    )


def _energy(atoms) -> float | None:
    """ASE recognizes `energy`; MD22 writes `Energy`, which it keeps with the other entries of the comment line."""
    if atoms.calc is not None and "energy" in atoms.calc.results:
        return atoms.calc.results["energy"]
    return atoms.info.get("Energy")


def _force(atoms) -> np.ndarray | None:
    return atoms.arrays.get("forces") if atoms.calc is None else atoms.calc.results.get("forces")


def _check_shapes(path: Path, raw: Dataset) -> None:
    num_frames, num_atoms = len(raw.energy), len(raw.species)
    expected = {
        "position": (num_frames, num_atoms, 3),
        "force": (num_frames, num_atoms, 3),
        "velocity": (num_frames, num_atoms, 3),
        "trajectory": (num_frames,),
    }
    for field, shape in expected.items():
        array = getattr(raw, field)
        if array is not None and array.shape != shape:
            raise ValueError(
                f"{path}: {field} has shape {array.shape}, expected {shape} for {num_frames} energies and {num_atoms} "
                "atoms: check that the arrays are of the same frames, [frame, atom, 3]."
            )
    for field in ("position", "energy", "force", "velocity"):
        array = getattr(raw, field)
        if array is None:
            continue
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{path}: {field} holds {array.dtype}, expected floating-point numbers.")
        is_bad = ~np.isfinite(array.reshape(num_frames, -1)).all(axis=1)
        if is_bad.any():
            raise ValueError(
                f"{path}: {field} of frame {np.flatnonzero(is_bad)[0]} is not finite ({is_bad.sum()} such frames): "
                "remove them."
            )


def _check_force_size(path: Path, dataset: Dataset, energy_unit: str, length_unit: str) -> None:
    rms = float(np.sqrt(np.mean(dataset.force.astype(np.float64) ** 2)))
    low, high = FORCE_RMS_RANGE
    if low <= rms <= high:
        return
    declared = ENERGY_UNITS[energy_unit] / LENGTH_UNITS[length_unit]
    fitting = [
        f"{energy} and {length}"
        for energy, energy_factor in ENERGY_UNITS.items()
        for length, length_factor in LENGTH_UNITS.items()
        if low <= rms / declared * energy_factor / length_factor <= high
    ]
    advice = f"they would fit {' or '.join(fitting)}" if fitting else "no known unit fits"
    raise ValueError(
        f"{path}: in {energy_unit} and {length_unit} the root mean square force is {rms:.3g} eV/Å, expected {low:g} to "
        f"{high:g} for thermal molecules; {advice}: check config.data.energy_unit and length_unit."
    )


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
