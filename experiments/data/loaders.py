"""Loaders of common data sets, which reject data that would fail later."""

from __future__ import annotations

import traceback
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from experiments.data import checks, extxyz, hdf5, motion, npz, sources
from experiments.data.checks import ENERGY_UNITS, FORCE_RMS_RANGE, LENGTH_UNITS
from experiments.data.dataset import Dataset, Keys
from experiments.data.join import frame_of, join
from experiments.data.sources import Budget, Source
from experiments.data.splits import Split, check_bonds_kept, reference_frames, split
from stablejax import units

__all__ = [
    "ENERGY_UNITS",
    "FORCE_RMS_RANGE",
    "LENGTH_UNITS",
    "MAX_BYTES",
    "Dataset",
    "Keys",
    "Split",
    "check_bonds_kept",
    "load",
    "peek",
    "reference_frames",
    "split",
]
MAX_BYTES = 1e9
"""Bound on what a file unpacks to: a few million frames of a small molecule."""
LONGEST_MESSAGE = 1000
"""Characters."""
READERS = {
    ".npz": npz.read,
    ".h5": hdf5.read,
    ".hdf5": hdf5.read,
    ".xyz": extxyz.read,
    ".extxyz": extxyz.read,
    ".xyz.gz": extxyz.read,
    ".extxyz.gz": extxyz.read,
    ".traj": extxyz.read_trajectory,
    ".db": extxyz.read_database,
}
_ABOUT_THE_FILE = (OSError, EOFError, MemoryError, UnicodeError, zipfile.BadZipFile, zlib.error)
_LIBRARIES = ("ase", "numpy", "h5py", "zipfile", "gzip", "json", "sqlite3", "ast", "tokenize", "re", "encodings")


def load(
    path: str | Path, *, energy_unit: str, length_unit: str, keys: Keys | None = None, max_bytes: float = MAX_BYTES
) -> Dataset:
    """Read an MD17, rMD17 or MD22 style `.npz`, the same or SPICE's form of HDF5, extended XYZ, or a file of ASE.

    An `.npz` holds atomic numbers, positions, energies and forces under the names of those data sets, and may hold
    `masses` (amu), velocities `V` (Å/fs), the number of the `trajectory` of each frame, `frame_spacing_fs` and
    `temperature_K`. Forces
    are in the energy unit per length unit. A periodic system has `cell`, lattice vectors in rows in the length unit,
    and states in `wrapped` (true or false) whether its positions were moved into it; an extended XYZ file does so with
    `Lattice=`, `pbc=` and `wrapped=` in its comment lines, and may have columns `masses`, `momenta` (in ASE's unit) or
    `velocities` (Å/fs). Curves of the reference's dynamics may be added as `motion_NAME` [window, lag] with
    `motion_spacing_fs`. Gradients are read as minus the forces. Stress, virial and charges of atoms are not used.

    Args:
      path: of the file; several separated by commas or a pattern, of one system; `FILE.h5:GROUP` for a group.
      energy_unit: one of `ENERGY_UNITS`.
      length_unit: one of `LENGTH_UNITS`.
      keys: names of entries that are not the known ones.
      max_bytes: bound on what all files unpack to, checked before each is read.

    Raises:
      ValueError: the content of a file cannot be used as declared; the message says why and what to do.
    """
    _check_units(str(path), energy_unit, length_unit)
    factors = ENERGY_UNITS[energy_unit], LENGTH_UNITS[length_unit]
    with _one_sentence():
        parts = _parts(path, keys or Keys(), max_bytes, factors, is_unit_known=True)
        dataset, where = join(parts), str(path)
        checks.check_outliers(lambda frame: frame_of(parts, frame), dataset)
        checks.check_force_size(where, dataset, energy_unit, length_unit)
        checks.check_sign(where, dataset)
    return dataset


def peek(path: str | Path, *, length_unit: str, keys: Keys | None = None, max_bytes: float = MAX_BYTES) -> Dataset:
    """The data set with energies and forces in the unit of its files, which is not known yet.

    Args:
      path: see `load`.
      length_unit: one of `LENGTH_UNITS`.
      keys: see `load`.
      max_bytes: see `load`.

    Raises:
      ValueError: as `load`, but for what the unit is needed to check.
    """
    _check_units(str(path), "eV", length_unit)
    with _one_sentence():
        return join(_parts(path, keys or Keys(), max_bytes, (1.0, LENGTH_UNITS[length_unit]), is_unit_known=False))


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What is wrong is said in one line: names and values from a file may be of any length and hold line breaks."""
    try:
        yield
    except ValueError as error:
        text = " ".join(str(error).split())
        if text == str(error) and len(text) <= LONGEST_MESSAGE:
            raise
        raise ValueError(text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} …") from error


def _parts(
    path: str | Path, keys: Keys, max_bytes: float, factors: tuple[float, float], *, is_unit_known: bool
) -> list[tuple[str, Dataset]]:
    """Name and frames of each file; energies and forces by the first factor, lengths by the second."""
    budget, parts = Budget(max_bytes), []
    for source in sources.find(path):
        raw = _read(source, keys, budget)
        if is_unit_known:
            checks.note_coarse_steps(str(source), raw, *factors)
        parts.append((str(source), _converted(str(source), raw, *factors)))
    return parts


def _read(source: Source, keys: Keys, budget: Budget) -> Dataset:
    """The frames of one file, in its units."""
    where, kind = str(source), _kind(source.path)
    try:
        source.check_regular()
        raw = READERS[kind](source, keys, budget)
    except Exception as error:
        if not isinstance(error, _ABOUT_THE_FILE) and not _is_of_a_library(error):
            raise
        raise ValueError(_sentence(where, error)) from error
    checks.check_shapes(where, raw)
    return raw


def _converted(where: str, raw: Dataset, energy_factor: float, length_factor: float) -> Dataset:
    """Frames in internal units and near the origin."""
    dataset = raw._replace(
        position=raw.position.astype(np.float64) * length_factor,
        energy=raw.energy.astype(np.float64) * energy_factor,
        force=(raw.force * (energy_factor / length_factor)).astype(np.float32),
        velocity=None if raw.velocity is None else (raw.velocity / units.FEMTOSECOND).astype(np.float32),
        cell=None if raw.cell is None else checks.reduced_cell(where, np.asarray(raw.cell), length_factor),
    )
    dataset = motion.centered(where, motion.unwrapped(where, dataset))
    return dataset._replace(position=dataset.position.astype(np.float32))


def _check_units(where: str, energy_unit: str, length_unit: str) -> None:
    for name, value, known in (
        ("energy_unit", energy_unit, ENERGY_UNITS),
        ("length_unit", length_unit, LENGTH_UNITS),
    ):
        if value not in known:
            raise ValueError(
                f"{where}: `{name}` has to be one of {', '.join(known)}, got {value!r}: "
                f"units are declared, never guessed; set config.data.{name}."
            )


def _kind(path: Path) -> str:
    kind = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if kind not in READERS:
        raise ValueError(
            f"{path}: expected a file named .npz, .xyz or .extxyz, got {kind!r} (also {_others()} are read)."
        )
    return kind


def _others() -> str:
    return ", ".join(kind for kind in READERS if kind not in (".npz", ".xyz", ".extxyz"))


def _is_of_a_library(error: Exception) -> bool:
    """Whether a library raised it while reading; what our own code raises is a message, or a bug to be seen as such."""
    frame, _ = list(traceback.walk_tb(error.__traceback__))[-1]
    return str(frame.f_globals.get("__name__")).split(".")[0] in _LIBRARIES


def _sentence(where: str, error: Exception) -> str:
    place = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    reason = " ".join(str(error).split()).rstrip(".") or "no further reason"
    return (
        f"{where}{place}: cannot be read ({type(error).__name__}: {reason}): the file is damaged, not permitted to "
        "be read or of another format; copy or save it again."
    )
