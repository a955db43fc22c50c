"""Inputs for `experiments.benchmarks.fuzz`: valid data files, configs and command lines with faults put into them."""

from __future__ import annotations

import functools
import gzip
import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from hypothesis import strategies as st

from experiments import cli
from experiments.configs import check
from experiments.data import entries

NUM = 12
"""Frames of the valid files."""
MOST_FAULTS = 3
DTYPES = ("f2", "f4", ">f8", "f16", "i4", "u1", "?", "c8", "S3", "U3", "O", "M8[s]", "f8,i4")
NUMBERS = (0.0, -1.0, 1e-300, 1e10, 1e30, 1e38, 1e300, -1e308, np.nan, np.inf, -np.inf)
TEXTS = (
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 30,
    "-1",
    "0",
    "1e",
    "0x1",
    "",
    " ",
    "T",
    "None",
    "[1,2",
    "{",
    '"',
    "é",
    "\0",
)
OTHERS = (
    *("V", "trajectory", "frame_spacing_fs", "wrapped", "cell", "pbc", "lattice", "motion_msd", "motion_spacing_fs"),
    *("masses", "charge", "total_charge", "multiplicity", "charges", "stress", "virial", "gradient", "REF_energy"),
    *("dft_total_gradient", "conformations", "symbols", "free_energy", "momenta", "name", "é"),
)
WORDS = (
    *('Lattice="9 0 0 0 9 0 0 0 9"', 'Lattice="9 0 0"', 'Lattice="nan 0 0 0 9 0 0 0 9"', 'pbc="T T T"', 'pbc="T F T"'),
    *(
        "wrapped=T",
        "wrapped=maybe",
        "wrapped=F",
        'stress="1 2 3"',
        "charge=1",
        "charge=x",
        "multiplicity=2",
        "energy=1",
    ),
    *("REF_energy=1", "energy=nan", "config_type=isolated", "key_value_pairs=3", "data=4", 'momenta="1 2 3"', '"', "="),
    *(
        "Properties=species:S:1:pos:R:3",
        "Properties=pos:R:3",
        "Properties=species:S:99999999999:pos:R:3",
        "Properties=",
    ),
    *(
        "Properties=species:S:1:pos:R:3:forces:S:3",
        "Properties=species:R:1:pos:R:3:forces:R:3",
        "VEC1 1 2 3",
        "_JSON [1",
    ),
    *("Properties=Z:I:1:pos:R:3:masses:R:3", "Properties=species:S:1:pos:R:3:momenta:R:3", "{", "info={1: 2}", "a.b=c"),
)
CONFIG = '''"""A config of one's own."""

from experiments.configs import aspirin


def get_config():
    config = aspirin.get_config()
    config.name = "mine"
    config.seed = 3
    config.data.path = "mine.npz"
    config.data.energy_unit = "eV"
    config.md.temperature_K = 300.0
    config.stable.num_replicas = 16
    config.observable.others = "bond_angles=1.0"
    config.evaluate.horizon_ps = 10.0
    return config
'''
TOKENS = (
    *(
        "config",
        "config.data",
        "aspirin",
        "get_config()",
        "None",
        "0",
        "-1",
        "1e400",
        "'x'",
        "True",
        "[1]",
        "{}",
        "lambda: 0",
    ),
    *(
        "nan",
        "=",
        "==",
        ".",
        "(",
        ")",
        ":",
        "return",
        "del",
        "raise",
        "import os",
        "@",
        "\t",
        "  ",
        "\0",
        "é",
        "#",
        '"""',
        "\\",
    ),
)


@functools.cache
def water(seed: int) -> dict[str, np.ndarray]:
    """Thermal frames of three atoms on springs, with labels that belong together."""
    start = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    position = start + 0.05 * np.random.default_rng(seed).normal(size=(NUM, 3, 3))
    energy, force = np.zeros(NUM), np.zeros((NUM, 3, 3))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        vector = position[:, b] - position[:, a]
        length = np.linalg.norm(vector, axis=-1)
        stretch = length - np.linalg.norm(start[b] - start[a])
        energy += 15 * stretch**2
        pull = (30 * stretch / length)[:, None] * vector
        force[:, a] += pull
        force[:, b] -= pull
    return {"z": np.array([8, 1, 1]), "R": position, "E": energy, "F": force}


@functools.cache
def by_ase(suffix: str) -> bytes:
    """A valid file that ASE writes: `.xyz`, `.traj` or `.db`."""
    frames, data = [], water(0)
    for position, energy, force in zip(data["R"], data["E"], data["F"], strict=True):
        atoms = Atoms(data["z"], position, info={"charge": 0, "wrapped": False})
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=force)
        frames.append(atoms)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"data{suffix}"
        write(path, frames)
        return path.read_bytes()


def _reshaped(draw: st.DrawFn, array: np.ndarray) -> np.ndarray:
    changes: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
        np.ravel,
        np.transpose,
        lambda a: a[None],
        lambda a: a[..., None],
        lambda a: a[:0],
        lambda a: a[:1],
        lambda a: a[1:] if a.ndim else a,
        lambda a: np.repeat(a, 2, axis=-1) if a.ndim else a,
        lambda a: a.ravel()[:1].reshape(()) if a.size else a,
    )
    return draw(st.sampled_from(changes))(array if array.ndim else array.reshape(1))


def _retyped(draw: st.DrawFn, array: np.ndarray) -> np.ndarray:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    try:
        return array.astype(dtype)
    except (TypeError, ValueError, RuntimeError):  # a date does not fit a short text
        return np.zeros(array.shape, dtype)


def _spoilt(draw: st.DrawFn, array: np.ndarray) -> np.ndarray:
    if not array.size or array.dtype.kind != "f":
        return array
    array = array.astype(float)
    value = draw(st.sampled_from(NUMBERS))
    if draw(st.booleans()):
        return array * value
    array.flat[draw(st.integers(0, array.size - 1))] = value
    return array


def _any_array(draw: st.DrawFn) -> np.ndarray:
    shapes = ((), (1,), (3,), (NUM,), (3, 3), (NUM, 3), (NUM, 1), (NUM, 3, 3), (0,))
    shape = draw(st.sampled_from(shapes))
    return _retyped(draw, np.full(shape, draw(st.sampled_from((*NUMBERS, 1.0, 9.0)))))


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Named arrays with up to `MOST_FAULTS` faults in names, shapes, types and values; some are periodic."""
    found = dict(water(draw(st.integers(0, 1))))
    if draw(st.booleans()):
        found |= {"cell": 9.0 * np.eye(3), "wrapped": np.array(draw(st.booleans()))}
        found |= {"trajectory": np.repeat([0, 1], NUM // 2), "frame_spacing_fs": np.array(1.0)}
    for _ in range(draw(st.integers(0, MOST_FAULTS))):
        name = draw(st.sampled_from(sorted(found)))
        kind = draw(st.integers(0, 5))
        if kind == 0 and len(found) > 1:
            del found[name]
        elif kind == 1:
            known = [one for names in entries.NAMES.values() for one in names]
            found[draw(st.sampled_from([*known, *OTHERS]))] = found[name]
        elif kind == 2:
            found[draw(st.sampled_from(OTHERS))] = _any_array(draw)
        else:
            found[name] = (_reshaped, _retyped, _spoilt)[kind - 3](draw, found[name])
    return found


def _npz(draw: st.DrawFn, content: dict[str, np.ndarray]) -> bytes:
    """Some with faults in the bytes of an array whose checksum is right, so that its header lies."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))) as archive:
        for name, array in content.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=True)
            data = member.getvalue()
            if draw(st.integers(0, 7)) == 0:
                data = draw(damaged(data, reach=128))
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def _hdf5(draw: st.DrawFn, content: dict[str, np.ndarray]) -> bytes:
    file, names = io.BytesIO(), draw(st.sampled_from((("",), ("a",), ("a", "b"), ("a/b",))))
    with h5py.File(file, "w") as opened:
        for name in names:
            group = opened.require_group(name) if name else opened
            for key, array in content.items():
                if array.dtype.kind in "biufc" or array.dtype.kind == "S" and array.dtype.itemsize:
                    options = {"compression": "gzip", "chunks": True} if array.size and draw(st.booleans()) else {}
                    group.create_dataset(key, data=array, **(options if array.ndim else {}))
        if draw(st.integers(0, 9)) == 0:
            opened.create_dataset("R2", shape=(10**9, 3, 3), dtype="f8", chunks=(10, 3, 3))
            if "R" in opened:
                del opened["R"]
                opened["R"] = opened["R2"]
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn, data: bytes, reach: int | None = None) -> bytes:
    """The bytes with some changed, inserted, repeated or cut off, among the first `reach`."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, MOST_FAULTS))):
        # As a fraction: sizes of compressed files and of HDF5 differ from time to time, drawn bounds must not.
        at = draw(st.integers(0, 2**20 - 1)) * min(len(changed), reach or len(changed)) >> 20
        kind, length = draw(st.integers(0, 5)), draw(st.integers(1, 64))
        if kind == 0:
            changed[at : at + 1] = bytes(byte ^ 1 << length % 8 for byte in changed[at : at + 1])
        elif kind == 1:
            changed[at : at + length] = draw(st.binary(max_size=8))
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 3 and not reach:
            del changed[at:]
        elif kind == 4:
            changed[at : at + 8] = b"\xff" * 8
        else:
            changed[at : at + 1] = draw(st.sampled_from((b"0", b"9", b"-", b",", b"(", b" ", b"99999999")))
    return bytes(changed)


@st.composite
def text(draw: st.DrawFn) -> bytes:
    """Extended XYZ with faults in lines, numbers and comments."""
    lines = by_ase(".xyz").decode().splitlines()
    for _ in range(draw(st.integers(0, MOST_FAULTS))):
        at, kind = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, 5))
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines.insert(at, draw(st.sampled_from((*TEXTS, *WORDS, lines[at]))))
        elif kind == 2:
            words = lines[at].split(" ")
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(TEXTS))
            lines[at] = " ".join(words)
        elif kind == 3:
            comments = [n for n, line in enumerate(lines) if "Properties" in line]
            word = draw(st.sampled_from(WORDS))
            for number in comments if draw(st.booleans()) else comments[:1]:
                lines[number] = f"{word} {lines[number]}" if draw(st.booleans()) else f"{lines[number]} {word}"
        elif kind == 4:
            lines[at] = draw(st.sampled_from(WORDS))
        else:
            old, new = (
                draw(st.sampled_from((":R:", "forces", "energy=", "=", "H", "pos", '"'))),
                draw(st.sampled_from(TEXTS)),
            )
            lines = [line.replace(old, new) for line in lines]
    return ("\n".join(lines) + "\n").encode()


@st.composite
def file(draw: st.DrawFn) -> tuple[str, bytes]:
    """Ending and content of a file of data, more or less damaged."""
    suffix = draw(st.sampled_from((".npz", ".npz", ".h5", ".xyz", ".xyz", ".xyz.gz", ".traj", ".db")))
    if suffix in (".npz", ".h5"):
        data = (_npz if suffix == ".npz" else _hdf5)(draw, draw(arrays()))
    elif suffix in (".traj", ".db"):
        data = by_ase(suffix)
    else:
        data = draw(text())
        data = gzip.compress(data, 1) if suffix.endswith("gz") else data
    return suffix, draw(damaged(data)) if draw(st.integers(0, 2)) == 0 or suffix in (".traj", ".db") else data


@st.composite
def config_file(draw: st.DrawFn) -> str:
    """A config with faults in its lines, words and characters."""
    lines = CONFIG.splitlines()
    for _ in range(draw(st.integers(0, MOST_FAULTS))):
        at, kind, token = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, 4)), draw(st.sampled_from(TOKENS))
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 2:
            words = lines[at].split(" ")
            words[draw(st.integers(0, len(words) - 1))] = token
            lines[at] = " ".join(words)
        elif kind == 3:
            name = draw(st.sampled_from(FIELDS))
            lines.insert(len(lines) - 1, f"    config.{name} = {token}")
        else:
            place = draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:place] + token + lines[at][place:]
    return "\n".join(lines) + "\n"


FIELDS = [name for name, _ in check.fields(cli.load_config(str(cli.CONFIGS / "aspirin.py")))]
_VALUES = st.one_of(
    st.sampled_from(
        (*TEXTS, "true", "1.5", "3", "(1,2)", "1,2", "inf", "eV", "schnet", "a=1", "a=b", "/dev/null", "..")
    ),
    st.text(max_size=8),
    st.integers().map(str),
    st.floats().map(str),
)


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    """A command line with fields of a config, most of them known, and other options."""
    found = ["program"]
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(FIELDS))
        if draw(st.integers(0, 3)) == 0:
            name = draw(
                st.one_of(st.just(name[1:]), st.text(max_size=6), st.sampled_from(("data", "model", "", "a.b")))
            )
        prefix = draw(st.sampled_from(("--config.", "--config.", "--config.", "-config.", "--", "--noconfig.", "")))
        value = draw(_VALUES)
        found += [f"{prefix}{name}={value}"] if draw(st.integers(0, 5)) else [f"{prefix}{name}", value]
    others = ("--config", "--config=", "--config=missing.py", "--", "--flagfile=missing", "--help=1", "x")
    return [*found, draw(st.sampled_from(others))] if draw(st.integers(0, 7)) == 0 else found
