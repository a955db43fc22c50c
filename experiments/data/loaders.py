"""Loaders of common data sets, which reject data that would fail later."""

from __future__ import annotations

import stat
import traceback
import zipfile
import zlib
from pathlib import Path

import numpy as np

from experiments.data import checks, extxyz, motion, npz
from experiments.data.checks import ENERGY_UNITS, FORCE_RMS_RANGE, LENGTH_UNITS
from experiments.data.dataset import Dataset, Keys
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
    "reference_frames",
    "split",
]
MAX_BYTES = 1e9
"""Bound on what a file unpacks to: a few million frames of a small molecule."""
READERS = {
    ".npz": npz.read,
    ".xyz": extxyz.read,
    ".extxyz": extxyz.read,
    ".xyz.gz": extxyz.read,
    ".extxyz.gz": extxyz.read,
    ".traj": extxyz.read_by_ase,
    ".db": extxyz.read_by_ase,
}
_ABOUT_THE_FILE = (OSError, EOFError, MemoryError, UnicodeError, zipfile.BadZipFile, zlib.error)
_LIBRARIES = ("ase", "numpy", "zipfile", "gzip", "json", "sqlite3", "ast", "tokenize")


def load(
    path: str | Path, *, energy_unit: str, length_unit: str, keys: Keys | None = None, max_bytes: float = MAX_BYTES
) -> Dataset:
    """Read an MD17, rMD17 or MD22 style `.npz`, extended XYZ (also `.gz`), or a `.traj` or `.db` of ASE.

    An `.npz` holds atomic numbers, positions, energies and forces under the names of those data sets, and may hold
    `masses` (amu), velocities `V` (Å/fs), the number of the `trajectory` of each frame and `frame_spacing_fs`. Forces
    are in the energy unit per length unit. A periodic system has `cell`, lattice vectors in rows in the length unit,
    and states in `wrapped` (true or false) whether its positions were moved into it; an extended XYZ file does so with
    `Lattice=`, `pbc=` and `wrapped=` in its comment lines, and may have columns `masses`, `momenta` (in ASE's unit) or
    `velocities` (Å/fs). Curves of the reference's dynamics may be added as `motion_NAME` [window, lag] with
    `motion_spacing_fs`.

    Args:
      path: of the file.
      energy_unit: one of `ENERGY_UNITS`.
      length_unit: one of `LENGTH_UNITS`.
      keys: names of entries that are not the known ones.
      max_bytes: bound on what the file unpacks to, checked before it is read.

    Raises:
      ValueError: the content of the file cannot be used as declared; the message says why and what to do.
    """
    path, where = Path(path), str(path)
    _check_units(where, energy_unit, length_unit)
    kind = _kind(path)
    try:
        _check_regular(path)
        raw = READERS[kind](path, keys or Keys(), max_bytes)
    except (*_ABOUT_THE_FILE, ValueError, KeyError, IndexError, TypeError, AssertionError, AttributeError) as error:
        if not isinstance(error, _ABOUT_THE_FILE) and not _is_of_a_library(error):
            raise
        raise ValueError(_sentence(where, error)) from error
    checks.check_shapes(where, raw)
    energy_factor, length_factor = ENERGY_UNITS[energy_unit], LENGTH_UNITS[length_unit]
    checks.note_coarse_steps(where, raw, energy_factor, length_factor)
    dataset = raw._replace(
        position=raw.position.astype(np.float64) * length_factor,
        energy=raw.energy.astype(np.float64) * energy_factor,
        force=(raw.force * (energy_factor / length_factor)).astype(np.float32),
        velocity=None if raw.velocity is None else (raw.velocity / units.FEMTOSECOND).astype(np.float32),
        cell=None if raw.cell is None else checks.reduced_cell(where, np.asarray(raw.cell), length_factor),
    )
    checks.check_outliers(where, dataset)
    checks.check_force_size(where, dataset, energy_unit, length_unit)
    checks.check_sign(where, dataset)
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


def _check_regular(path: Path) -> None:
    """A pipe or a device would be read without end."""
    if not path.exists():
        raise ValueError(f"{path}: no such file: set config.data.path to an .npz or .xyz file.")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path}: is not a regular file: set config.data.path to an .npz or .xyz file.")


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
