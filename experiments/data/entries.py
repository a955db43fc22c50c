"""Entries of files: the names that data sets of the field give them, and what their values may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import atomic_masses, atomic_numbers

NAMES: dict[str, tuple[str, ...]] = {
    "species": ("z", "nuclear_charges", "atomic_numbers", "numbers", "species", "symbols"),
    "position": ("R", "coords", "positions", "coordinates", "conformations"),
    "energy": (
        *("E", "energies", "energy", "REF_energy", "ref_energy", "dft_energy", "energy_dft", "dft_total_energy"),
        *("total_energy", "potential_energy", "reference_energy", "REF_energies", "dft_energies", "free_energy"),
    ),
    "force": (
        *("F", "forces", "force", "REF_forces", "ref_forces", "REF_force", "dft_forces", "forces_dft", "dft_force"),
        "reference_forces",
    ),
    "gradient": (
        *("dft_total_gradient", "gradient", "gradients", "dft_gradient", "energy_gradient", "REF_gradient"),
        "total_gradient",
    ),
    "mass": ("masses", "mass", "atomic_masses"),
}
"""Known names of entries, found in any case."""
STATES = {
    "total charge": (
        *("charge", "total_charge", "tot_charge", "net_charge", "system_charge", "molecular_charge", "REF_charge"),
        *("REF_total_charge", "dft_total_charge", "mol_charge", "Q"),
    ),
    "spin multiplicity": ("multiplicity", "spin_multiplicity", "mult", "spin", "total_spin"),
}
"""What has to be the same in all frames, for one potential is one energy surface. It is not used otherwise."""
_KIND_OF = {name.lower(): kind for kind, names in STATES.items() for name in names}
ISOTOPES = {"D": (1, 2.01410178), "T": (1, 3.01604928)}
"""Symbols of isotopes: atomic number and mass, amu."""
MASS_RANGE = (0.3, 5.0)
"""Masses relative to the element's: isotopes, and masses moved between bonded atoms to make hydrogen slow."""
_TRUE, _FALSE = {"t", "true", ".true.", "yes", "y", "on", "1"}, {"f", "false", ".false.", "no", "n", "off", "0"}


def find(where: str, field: str, entries: Mapping[str, Any], key: str = "") -> str | None:
    """The name under which a field stands; None where there is none.

    Args:
      where: file and frame, for messages.
      field: of `NAMES`.
      entries: of the file or frame.
      key: name that the config gives; empty: the known names.

    Raises:
      ValueError: there is no entry of the given name; two known ones disagree.
    """
    if key:
        if key not in entries:
            raise ValueError(f"{where}: config.data.{field}_key is {key!r}, but there are only {_listed(entries)}.")
        return key
    lower = [name.lower() for name in NAMES[field]]
    found = sorted((name for name in entries if name.lower() in lower), key=lambda name: lower.index(name.lower()))
    for other in found[1:]:
        if not agree(entries[found[0]], entries[other]):
            has_key = field in ("energy", "force", "mass")
            advice = f"set config.data.{field}_key to one" if has_key else "leave one of them"
            raise ValueError(f"{where}: `{found[0]}` and `{other}` are both there and disagree: {advice}.")
    return found[0] if found else None


def has(names: Iterable[str], field: str) -> bool:
    """Whether one of the names is a known one of a field."""
    return bool({name.lower() for name in names} & {name.lower() for name in NAMES[field]})


def is_gradient(name: str) -> bool:
    """Whether an entry of this name holds minus the forces."""
    return has([name], "gradient")


def find_force(where: str, entries: Mapping[str, Any], key: str = "") -> str | None:
    """The name under which forces stand, or the gradient where there are none; see `is_gradient`.

    Args:
      where: file and frame, for messages.
      entries: of the file or frame.
      key: name that the config gives.

    Raises:
      ValueError: as `find`; forces and gradient disagree.
    """
    force, gradient = find(where, "force", entries, key), find(where, "gradient", entries)
    if key or force is None or gradient is None:
        return force or gradient
    values = np.asarray(entries[gradient])
    if values.dtype.kind not in "iuf" or not agree(entries[force], -values.astype(float)):
        raise ValueError(
            f"{where}: `{force}` is not minus `{gradient}`, expected the same labels: set config.data.force_key to one."
        )
    return force


def is_of_state(name: str) -> bool:
    """Whether an entry of this name is a total charge or a multiplicity."""
    return name.lower() in _KIND_OF


def state(where: str, stated: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Total charge and multiplicity, where they are stated; those that change are refused.

    Args:
      where: the file, for messages.
      stated: numbers of the frames that have it, and its values there, by name; see `is_of_state`.

    Raises:
      ValueError: one changes, or two names disagree.
    """
    found: dict[str, Any] = {}
    for name, (frames, values) in stated.items():
        if not len(values):
            continue
        kind, one = _KIND_OF[name.lower()], values[0].item()
        is_other = values != one
        if values.dtype.kind == "f":
            is_other = ~np.isclose(values, one, equal_nan=True)
        if is_other.any():
            other = int(np.argmax(is_other))
            raise ValueError(
                f"{where}: frame {frames[other]} has another {kind} than frame {frames[0]}, `{name}` is "
                f"{values[other]} and {one}: one potential is one energy surface; keep the frames of one state."
            )
        if not agree(found.setdefault(kind, one), one):
            raise ValueError(f"{where}: `{name}` is {one}, another entry says {found[kind]}: leave one {kind}.")
    return found


def _listed(entries: Mapping[str, Any]) -> str:
    return ", ".join(sorted(entries)) or "no entries"


def agree(one: Any, other: Any) -> bool:
    """Whether two entries are the same up to rounding, whatever their dimensions of length 1.

    Args:
      one: number, array or text.
      other: the same.
    """
    one, other = np.squeeze(np.asarray(one)), np.squeeze(np.asarray(other))
    if one.shape != other.shape:
        return False
    if not (one.dtype.kind in "biufc" and other.dtype.kind in "biufc"):
        return one.dtype.kind == other.dtype.kind and one.dtype.kind in "SU" and bool(np.all(one == other))
    return bool(np.allclose(one, other, rtol=1e-7, atol=1e-5, equal_nan=True))


def shown(value: Any) -> str:
    """A value in a message: whole where it is small, else its type and shape."""
    array = np.asarray(value)
    return str(array.tolist())[:100] if array.size <= 9 else f"{array.dtype} of shape {array.shape}"


def flag(where: str, name: str, value: Any) -> bool:
    """True or false in one of its spellings.

    Args:
      where: file and frame, for messages.
      name: of the entry.
      value: as it was read.

    Raises:
      ValueError: it is neither.
    """
    item = np.asarray(value).item() if np.size(value) == 1 else value
    text = item.decode("ascii", "replace") if isinstance(item, bytes) else str(item)
    text = str(int(item)) if isinstance(item, float) and item in (0.0, 1.0) else text.strip().lower()
    if text not in _TRUE | _FALSE:
        raise ValueError(f"{where}: `{name}` has to be true or false, got {shown(value)}: write T or F.")
    return text in _TRUE


def number(where: str, name: str, value: Any) -> float | None:
    """A positive number, or None where there is none.

    Args:
      where: file, for messages.
      name: of the entry.
      value: as it was read.

    Raises:
      ValueError: it is of another kind.
    """
    if value is None:
        return None
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf" or not np.isfinite(array).all() or array.item() <= 0:
        raise ValueError(f"{where}: `{name}` has to be one positive number, got {shown(array)}.")
    return float(array.item())


def atomic_number(where: str, species: np.ndarray) -> np.ndarray:
    """Atomic numbers, int32, from numbers or symbols of elements.

    Args:
      where: file, for messages.
      species: of any shape; atoms along the last axis.

    Raises:
      ValueError: an atom is of no element.
    """
    species = np.asarray(species)
    if species.dtype.kind in "SU":
        known = atomic_numbers | {symbol: one for symbol, (one, _) in ISOTOPES.items()}
        text = species.astype(str)
        values = [known.get(symbol.strip().capitalize(), 0) for symbol in text.ravel().tolist()]
        number = np.array(values, float).reshape(species.shape)
    elif species.dtype.kind in "iuf":
        number = species.astype(float)
    else:
        raise ValueError(f"{where}: expected atomic numbers or symbols of elements, got {species.dtype}.")
    is_bad = ~((number >= 1) & (number <= 118) & (number == np.round(number)))
    if is_bad.any():
        first = np.argwhere(is_bad)[0]
        atoms = np.unique(np.argwhere(is_bad)[:, -1]).tolist() if species.ndim else []
        shown = ", ".join(map(str, atoms[:8])) + (", …" if len(atoms) > 8 else "")
        raise ValueError(
            f"{where}: atoms {shown} are of no element (got {species[tuple(first)]!s}), expected atomic numbers from 1 "
            "to 118: remove atoms that only pad the arrays."
        )
    return number.astype(np.int32)


def isotope_masses(where: str, symbols: Sequence[str]) -> np.ndarray | None:
    """Masses, amu, where there is a `D` or `T` among the symbols.

    Args:
      where: file and frame, for messages.
      symbols: of the atoms.

    Raises:
      ValueError: there is, and an atom is of no element.
    """
    symbols = [symbol.strip().capitalize() for symbol in symbols]
    if not set(symbols) & set(ISOTOPES):
        return None
    if unknown := sorted(set(symbols) - set(ISOTOPES) - set(atomic_numbers)):
        raise ValueError(f"{where}: {unknown[0]!r} is no symbol of an element: correct it.")
    return np.array([ISOTOPES[s][1] if s in ISOTOPES else atomic_masses[atomic_numbers[s]] for s in symbols])


def check_masses(where: str, mass: np.ndarray, species: np.ndarray) -> np.ndarray:
    """Masses of the atoms, [atom] float32 amu, the same for all frames.

    Args:
      where: file, for messages.
      mass: [atom] or [frame, atom] amu.
      species: [atom] atomic numbers.

    Raises:
      ValueError: of another shape, changing, or far from those of the elements.
    """
    if mass.shape[-1:] != species.shape or mass.ndim > 2 or mass.dtype.kind not in "iuf":
        raise ValueError(
            f"{where}: masses have shape {mass.shape}, expected a number for each of {len(species)} atoms."
        )
    rows = np.atleast_2d(mass).astype(float)
    if (changed := ~np.isclose(rows, rows[0], rtol=1e-6).all(axis=1)).any():
        raise ValueError(f"{where}: frame {np.argmax(changed)} has other masses than frame 0: give each atom one mass.")
    ratio = rows[0] / atomic_masses[species]
    if not (is_fine := (ratio > MASS_RANGE[0]) & (ratio < MASS_RANGE[1])).all():
        atom = int(np.argmin(is_fine))
        raise ValueError(
            f"{where}: atom {atom} has a mass of {rows[0][atom]:g}, its element {atomic_masses[species[atom]]:g} amu: "
            "give masses in amu."
        )
    return rows[0].astype(np.float32)
