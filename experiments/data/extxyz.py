"""Frames of extended XYZ, and of other formats that ASE reads."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from experiments.data import entries
from experiments.data.dataset import Dataset, Keys, located, log
from experiments.data.sources import Budget, Source

if TYPE_CHECKING:
    from ase import Atoms

_VELOCITIES = ("velocities", "velocity", "vel", "velo")


class _Block(NamedTuple):
    """Lines of one frame."""

    line: int  # of the file, from 1
    comment: str
    rows: list[str]


def read(source: Source, keys: Keys, budget: Budget) -> Dataset:
    """Extended XYZ, as it is in the file, in its units; also compressed by gzip.

    Args:
      source: the file.
      keys: names of entries.
      budget: bound on the text.

    Raises:
      ValueError: the content cannot be used.
    """
    path = source.path
    return _dataset(path, [_atoms(path, *numbered) for numbered in enumerate(_blocks(path, budget))], keys)


def read_trajectory(source: Source, keys: Keys, budget: Budget) -> Dataset:
    """A trajectory of ASE.

    Args:
      source: the file.
      keys: names of entries.
      budget: bound on the file.

    Raises:
      ValueError: the content cannot be used.
    """
    from ase.io import read as read_frames

    path = source.path
    budget.take(str(path), path.stat().st_size)
    # As what its name says, not what it looks like: other formats can run code.
    frames = read_frames(path, index=":", format="traj", do_not_split_by_at_sign=True)
    return _dataset(path, cast("list[Atoms]", frames), keys)


def read_database(source: Source, keys: Keys, budget: Budget) -> Dataset:
    """A database of ASE, in the order of its rows.

    Args:
      source: the file.
      keys: names of entries, also of `key_value_pairs` and `data`.
      budget: bound on the file.

    Raises:
      ValueError: the content cannot be used.
    """
    from ase.db import connect

    path = source.path
    budget.take(str(path), path.stat().st_size)
    with connect(path, type="db", use_lock_file=False) as database:
        frames = [row.toatoms(add_additional_information=True) for row in database.select()]
    return _dataset(path, frames, keys)


def _text(path: Path, budget: Budget) -> str:
    where, size = str(path), path.stat().st_size
    if path.suffix != ".gz":
        budget.take(where, size)
        return path.read_bytes().decode("utf-8-sig")
    budget.check(where, size)
    with path.open("rb") as file:
        file.seek(-4, 2)
        budget.check(where, int.from_bytes(file.read(4), "little"))  # what gzip says of the size modulo 2³²
    with gzip.open(path) as unpacked:
        data = unpacked.read(budget.left + 1)
    budget.take(where, len(data))
    return data.decode("utf-8-sig")


def _blocks(path: Path, budget: Budget) -> Iterator[_Block]:
    """The frames, with any blank lines between them."""
    lines = _text(path, budget).splitlines()
    at = frame = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        count = lines[at].strip()
        if not count.isdecimal() or len(count) > 18 or int(count) < 1:
            raise ValueError(
                f"{path}: frame {frame}: expected the number of atoms in line {at + 1}, got {count[:40]!r}: the frame "
                "before it has another number of lines, or the file is not extended XYZ."
            )
        end = at + 2 + int(count)
        if end > len(lines):
            raise ValueError(
                f"{path}: frame {frame} is cut short: line {at + 1} promises {count} atoms, "
                f"{max(0, len(lines) - at - 2)} lines are there: remove the frame, or copy the file again."
            )
        while end < len(lines) and lines[end].lstrip().startswith("VEC"):
            end += 1
        yield _Block(at + 1, lines[at + 1], lines[at + 2 : end])
        at, frame = end, frame + 1


def _atoms(path: Path, frame: int, block: _Block) -> Atoms:
    from ase.io import read as read_frames

    where, rows = f"{path}: frame {frame}", block.rows
    # These two have to be 3 × 3 for the library, and are often not; they are not used.
    comment = re.sub(r"(?<!\S)(stress|virial)(?=\s*=)", r"unused_\1", block.comment)
    with located(f"frame {frame}"):
        columns = _columns(where, comment, block)
    masses = None
    if "species" in columns:
        column = sum(list(columns.values())[: list(columns).index("species")])
        symbols = [row.split()[column] for row in rows if not _is_vector(row) and row.split()]
        masses = entries.isotope_masses(where, symbols)
        if masses is not None:
            rows = [row if _is_vector(row) else _without_isotopes(row, column) for row in rows]
    text = "\n".join([str(sum(not _is_vector(row) for row in rows)), comment, *rows, ""])
    with located(f"frame {frame}"):
        atoms = cast("Atoms", read_frames(StringIO(text), format="extxyz", index=0))
    if masses is not None and not any(name.lower() in entries.NAMES["mass"] for name in atoms.arrays):
        atoms.arrays["masses"] = masses
    return atoms


def _is_vector(row: str) -> bool:
    """Whether a line below the atoms is of the cell."""
    return row.lstrip().startswith("VEC")


def _columns(where: str, comment: str, block: _Block) -> dict[str, int]:
    """Numbers of columns by name, as the library will understand them, found to be those of the lines."""
    from ase.io.extxyz import key_val_str_to_dict

    has_vectors = any(map(_is_vector, block.rows))  # The comment means nothing then.
    stated = {} if has_vectors or not comment.strip() else key_val_str_to_dict(comment.strip())
    if "Properties" not in stated:
        return {"species": 1, "pos": 3}
    fields = str(stated["Properties"]).split(":")
    widths = [int(width) if width.isdecimal() and len(width) < 9 else 0 for width in fields[2::3]]
    if len(fields) % 3 or len(set(fields[::3])) < len(widths) or not all(widths):
        raise ValueError(
            f"{where}: expected name:type:columns of each column in `Properties`, got "
            f"{entries.shown(stated['Properties'])}: the comment line is damaged."
        )
    for line, row in enumerate(block.rows, block.line + 2):
        if (num := len(row.split())) != sum(widths):
            raise ValueError(
                f"{where}: line {line} has {num} columns, `Properties` names {sum(widths)}: the frame is cut short or "
                "damaged; remove it."
            )
    return dict(zip(fields[::3], widths, strict=True))


def _without_isotopes(row: str, column: int) -> str:
    words = row.split()
    words[column] = "H" if words[column].capitalize() in entries.ISOTOPES else words[column]
    return " ".join(words)


def _dataset(path: Path, read_frames: Sequence[Atoms], keys: Keys) -> Dataset:
    numbers, frames = _of_the_system(path, read_frames)
    first = frames[0]
    species = entries.atomic_number(f"{path}: frame {numbers[0]}", first.numbers)
    is_wrapped = _wrapped(path, numbers[0], first)
    labels = [_labels(f"{path}: frame {number}", atoms, keys) for number, atoms in zip(numbers, frames, strict=True)]
    for number, atoms in zip(numbers, frames, strict=True):
        _check_like_first(path, number, atoms, first)
        if _wrapped(path, number, atoms) != is_wrapped:
            raise ValueError(f"{path}: frame {number} says something else about `wrapped` than frame {numbers[0]}.")
    mass = _masses(path, frames, keys, species)
    return Dataset(
        species=species,
        position=np.array([atoms.positions for atoms in frames]),
        energy=np.array([energy for energy, _ in labels], np.float64),
        force=np.array([force for _, force in labels]),
        velocity=_velocity(path, numbers, frames, first.get_masses() if mass is None else mass),
        trajectory=None,
        frame_spacing_fs=None,
        cell=first.cell.array if first.pbc.any() else None,
        is_wrapped=bool(is_wrapped),
        mass=mass,
        state=_state(path, numbers, frames),
    )


def _of_the_system(path: Path, frames: Sequence[Atoms]) -> tuple[list[int], list[Atoms]]:
    """Frames and their numbers in the file, without those of isolated atoms among molecules."""
    if not frames:
        raise ValueError(f"{path}: holds no frames.")
    is_alone = [len(a) == 1 or str(a.info.get("config_type", "")).lower().startswith("isolated") for a in frames]
    if any(is_alone) and not all(is_alone):
        log.warning("note: %s: %d frames of isolated atoms are skipped.", path, sum(is_alone))
        kept = [number for number, alone in enumerate(is_alone) if not alone]
        return kept, [frames[number] for number in kept]
    return list(range(len(frames))), list(frames)


def _check_like_first(path: Path, number: int, atoms: Atoms, first: Atoms) -> None:
    if len(atoms) != len(first):
        raise ValueError(f"{path}: frame {number} has {len(atoms)} atoms, the first {len(first)}: keep one system.")
    if not np.array_equal(atoms.numbers, first.numbers):
        raise ValueError(
            f"{path}: frame {number} has its atoms in a different order than frame 0: "
            "give every frame the same order of atoms."
        )
    if not np.array_equal(atoms.pbc, first.pbc) or (first.pbc.any() and not np.array_equal(atoms.cell, first.cell)):
        raise ValueError(f"{path}: frame {number} has a different cell than frame 0: only one cell is supported.")


def _wrapped(path: Path, number: int, atoms: Atoms) -> bool | None:
    """Whether atoms were moved into the cell; None in open boundaries."""
    if not atoms.pbc.any():
        return None
    if not atoms.pbc.all():
        raise ValueError(f"{path}: expected a cell that is periodic in all directions or in none, got {atoms.pbc}.")
    info = _info(atoms)
    if "wrapped" not in info:
        raise ValueError(
            f"{path}: a periodic data set has to say whether its positions were moved into the cell: "
            "write `wrapped=T` or `wrapped=F` into the comment line."
        )
    return entries.flag(f"{path}: frame {number}", "wrapped", info["wrapped"])


def _info(atoms: Atoms) -> dict[str, Any]:
    """What is said of the frame; a database has it in two places."""
    inner = [value for name in ("key_value_pairs", "data") if isinstance(value := atoms.info.get(name), dict)]
    return {name: value for part in (atoms.info, *inner) for name, value in part.items()}


def _state(path: Path, numbers: list[int], frames: Sequence[Atoms]) -> dict[str, Any]:
    """Total charge and multiplicity; frames that do not state them are passed over."""
    stated, infos = {}, [_info(atoms) for atoms in frames]
    for name in sorted({str(name) for info in infos for name in info if entries.is_of_state(str(name))}):
        given = [(number, np.asarray(info[name])) for number, info in zip(numbers, infos, strict=True) if name in info]
        given = [(number, value) for number, value in given if value.size == 1 and value.dtype.kind in "iufU"]
        stated[name] = np.array([number for number, _ in given]), np.array([value.item() for _, value in given])
    return entries.state(str(path), stated)


def _labels(where: str, atoms: Atoms, keys: Keys) -> tuple[float, np.ndarray]:
    results = {} if atoms.calc is None else atoms.calc.results
    own: dict[str, Any] = {name: value for name, value in atoms.arrays.items() if name not in ("numbers", "positions")}
    present = {**_info(atoms), **own, **results}
    names = entries.find(where, "energy", present, keys.energy), entries.find_force(where, present, keys.force)
    if names[0] is None or names[1] is None:
        listed = ", ".join(sorted(present)) or "nothing else"
        raise ValueError(
            f"{where} has no energy or no forces: expected `energy=` in the comment line and a column `forces:R:3`, "
            f"got {listed}: set config.data.energy_key and force_key to the names that are there."
        )
    energy, force = np.asarray(present[names[0]]), np.asarray(present[names[1]])
    is_number = energy.dtype.kind in "iuf" and force.dtype.kind in "iuf"
    if not is_number or energy.size != 1 or force.shape != (len(atoms), 3):
        raise ValueError(
            f"{where}: expected a number as `{names[0]}` and numbers [atom, 3] as `{names[1]}`, got {energy.dtype} of "
            f"shape {energy.shape} and {force.dtype} of shape {force.shape}."
        )
    return float(energy.item()), force.astype(float) * (-1 if entries.is_gradient(names[1]) else 1)


def _velocity(path: Path, numbers: list[int], frames: list[Atoms], mass: np.ndarray) -> np.ndarray | None:
    """Velocities, Å/fs: as they are in a column, or momenta in ASE's unit divided by masses."""
    from ase.units import fs

    first = frames[0].arrays
    name = next((name for name in ("momenta", *_VELOCITIES) if name in first), None)
    if name is None:
        return None
    for number, atoms in zip(numbers, frames, strict=True):
        if name not in atoms.arrays:
            raise ValueError(f"{path}: frame {number} has no `{name}`, frame {numbers[0]} has them.")
        if atoms.arrays[name].dtype.kind not in "iuf" or atoms.arrays[name].shape != (len(atoms), 3):
            raise ValueError(f"{path}: frame {number}: expected numbers [atom, 3] as `{name}`.")
    values = np.array([atoms.arrays[name] for atoms in frames], float)
    if name != "momenta":
        return values
    return values / mass[:, None] * fs


def _masses(path: Path, frames: list[Atoms], keys: Keys, species: np.ndarray) -> np.ndarray | None:
    name = entries.find(f"{path}: frame 0", "mass", frames[0].arrays, keys.mass)
    if name is None:
        return None
    for atoms in frames:
        if name not in atoms.arrays:
            raise ValueError(f"{path}: only some frames have `{name}`: give every frame the same masses, or none.")
    return entries.check_masses(f"{path}: `{name}`", np.array([atoms.arrays[name] for atoms in frames]), species)
