"""Kinds of files that look right and are not: each is read as a person would, or refused in one sentence."""

from __future__ import annotations

import gzip
import io
import logging
import os
import re
import zipfile

import numpy as np
import pytest
import tiny

from experiments import systems
from experiments.data import extxyz, loaders
from experiments.systems import base
from stablejax import stability, topology, units
from stablejax.space import periodic
from stablejax.types import Frame

NUM = 24
SPECIES = np.array([8, 1, 1])
START = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def water(seed=0):
    """Thermal frames of three atoms on springs: labels that belong together."""
    position = START + 0.05 * np.random.default_rng(seed).normal(size=(NUM, 3, 3))
    energy, force = np.zeros(NUM), np.zeros((NUM, 3, 3))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        vector = position[:, b] - position[:, a]
        length = np.linalg.norm(vector, axis=-1)
        stretch = length - np.linalg.norm(START[b] - START[a])
        energy += 15 * stretch**2
        pull = (30 * stretch / length)[:, None] * vector
        force[:, a] += pull
        force[:, b] -= pull
    return {"z": SPECIES, "R": position, "E": energy, "F": force}


def saved(tmp_path, **changes):
    path = tmp_path / "data.npz"
    np.savez(path, **{name: array for name, array in (water() | changes).items() if array is not None})
    return path


def text(columns="", row="", info="", symbols="OHH", energy="energy", force="forces", num=NUM):
    """Extended XYZ of `water`; `columns` and `row` add to each atom."""
    data = water()
    frames = []
    for position, value, forces in zip(data["R"][:num], data["E"], data["F"], strict=False):
        lines = ["3", f"Properties=species:S:1:pos:R:3:{force}:R:3{columns} {energy}={value:.10f} {info}"]
        for symbol, x, f in zip(symbols, position, forces, strict=True):
            lines.append(" ".join([symbol, *(f"{number:.8f}" for number in (*x, *f))]) + row)
        frames.append("\n".join(lines) + "\n")
    return frames


def stored(tmp_path, frames, name="data.extxyz"):
    path = tmp_path / name
    path.write_text("".join(frames))
    return path


def load(path, **changes):
    return loaders.load(path, **(dict(energy_unit="eV", length_unit="angstrom") | changes))


def refused(message, path, **changes):
    with pytest.raises(ValueError, match=message) as caught:
        load(path, **changes)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


CASES = {
    "lattice_without_cell.npz": "`lattice` says something about boundaries",
    "wrong_sign_forces.npz": "energies and forces disagree in sign",
    "padded_atoms.npz": "atoms 21, 22, 23 are of no element",
    "one_absurd_force.npz": "frame 17 has a force of 346 eV/Å",
    "cut_short.extxyz": "frame 7 is cut short",
    "header_lies.npz": "the header of `R` promises 60000000000 bytes",
}
NUMBERS = ("far_from_origin.npz", "lattice_without_cell.npz", "moved_duplicates.npz", "header_lies.npz")
KCAL = {*NUMBERS, "wrong_sign_forces.npz", "padded_atoms.npz", "one_absurd_force.npz", "spacing_almost.npz"}


def test_every_file_of_the_folder_of_cases_is_read_or_refused_in_a_sentence(shared):
    for path in sorted((shared / "data" / "cases").glob("*.*")):
        unit = "kcal/mol" if path.name in KCAL else "eV"
        if path.name in CASES:
            refused(CASES[path.name], path, energy_unit=unit)
        elif path.suffix != ".md":
            assert np.isfinite(load(path, energy_unit=unit).position).all()


def test_frames_that_are_others_moved_are_refused_however_few_are_used(shared):
    dataset = load(shared / "data" / "cases" / "moved_duplicates.npz", energy_unit="kcal/mol")
    with pytest.raises(ValueError, match=r"frame \d+ is the same as frame \d+, rotations and translations aside"):
        loaders.split(dataset, num_train=4, num_validation=4, num_test=4, seed=0)


def test_forces_that_are_gradients(tmp_path):
    load(saved(tmp_path))  # the control
    refused("these are gradients; multiply them by −1", saved(tmp_path, F=-water()["F"]))
    refused("the energy rises where the forces do work", saved(tmp_path, E=-water()["E"]))


def test_a_single_frame_that_failed_is_named_and_no_unit_blamed(tmp_path):
    force = water()["F"]
    force[7, 1, 2] = 4000.0
    refused(r"frame 7 has a force of 4000 eV/Å.*remove it", saved(tmp_path, F=force))
    energy = water()["E"]
    energy[5] += 900.0
    refused(r"frame 5 has an energy 900", saved(tmp_path, E=energy))


@pytest.mark.parametrize("name", ["lattice", "unit_cell", "pbc", "box", "Cell"])
def test_boundaries_under_other_names(name, tmp_path):
    refused(f"`{name}` says something about boundaries", saved(tmp_path, **{name: 12.0 * np.eye(3)}))
    assert load(saved(tmp_path, pbc=np.array([False] * 3))).cell is None
    cell = {"cell": 12.0 * np.eye(3), "wrapped": False}
    assert load(saved(tmp_path, pbc=np.array([True] * 3), **cell)).cell is not None
    refused("`box` and `cell` are both there and disagree", saved(tmp_path, box=9.0 * np.eye(3), **cell))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("no", False), ("off", False), (".false.", False), ("0", False), ("F", False), ("yes", True), ("1", True)],
)
def test_spellings_of_wrapped(value, expected, tmp_path):
    lattice = f'Lattice="12 0 0 0 12 0 0 0 12" pbc="T T T" wrapped={value}'
    assert load(stored(tmp_path, text(info=lattice))).is_wrapped is expected
    assert load(saved(tmp_path, cell=12.0 * np.eye(3), wrapped=np.array(value))).is_wrapped is expected
    refused("`wrapped` has to be true or false", stored(tmp_path, text(info=lattice.replace(f"={value}", "=maybe"))))


@pytest.mark.parametrize(
    ("species", "message"),
    [
        ([8, 1, 0], r"atoms 2 are of no element \(got 0\)"),
        ([8, 1, 119], "got 119"),
        ([8.7, 1.0, 1.0], "atoms 0 are of no element"),
        (["O", "H", "X"], "atoms 2 are of no element"),
    ],
)
def test_atoms_of_no_element(species, message, tmp_path):
    refused(message, saved(tmp_path, z=np.array(species)))


def test_masses_are_those_of_the_file(tmp_path):
    masses = np.array([15.999, 2.014, 1.008])
    assert load(saved(tmp_path, masses=masses)).mass == pytest.approx(masses)
    frames = [block.replace("\nH", "\nD", 1) for block in text()]
    dataset = load(stored(tmp_path, frames))
    assert dataset.species.tolist() == [8, 1, 1] and dataset.mass == pytest.approx(masses, abs=1e-3)
    frames = text(columns=":masses:R:1", row=" 2.014", symbols="HHH")
    assert load(stored(tmp_path, frames)).mass == pytest.approx(np.full(3, 2.014))
    refused("atom 0 has a mass of 1.008, its element 15.999 amu", saved(tmp_path, masses=masses[::-1].copy()))


def test_positions_far_from_the_origin_keep_their_distances(tmp_path):
    near, far = load(saved(tmp_path)), load(saved(tmp_path, R=water()["R"] + 1e4))
    between = lambda d: np.linalg.norm(d.position[:, 1:].astype(float) - d.position[:, :1], axis=-1)  # noqa: E731
    np.testing.assert_allclose(between(far), between(near), atol=1e-6)
    assert np.abs(far.position).max() < 10


def test_a_frame_that_was_moved_or_rotated_is_the_same_frame(tmp_path):
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    content = {name: array if name == "z" else np.concatenate([array, array]) for name, array in water().items()}
    content["R"][NUM:] = content["R"][:NUM] @ rotation + 5.0
    content["F"][NUM:] = content["F"][:NUM] @ rotation
    counts = dict(num_train=24, num_validation=4, num_test=12, seed=0)
    with pytest.raises(ValueError, match="rotations and translations aside"):
        loaders.split(load(saved(tmp_path, **content)), **counts)
    content["R"][NUM:] = water(seed=2)["R"]
    loaders.split(load(saved(tmp_path, **{**content, "F": None, "forces": np.tile(water()["F"], (2, 1, 1))})), **counts)


def test_labels_under_other_names(tmp_path):
    for energy, force in (("REF_energy", "REF_forces"), ("dft_energy", "dft_forces"), ("free_energy", "forces")):
        np.testing.assert_allclose(load(stored(tmp_path, text(energy=energy, force=force))).energy, water()["E"])
    path = stored(tmp_path, text(energy="mine", force="ours"))
    refused("frame 0 has no energy or no forces.*got mine, ours: set config.data.energy_key", path)
    np.testing.assert_allclose(load(path, keys=loaders.Keys("mine", "ours")).energy, water()["E"])
    refused("config.data.energy_key is 'yours', but there are only", path, keys=loaders.Keys("yours", "ours"))
    both = stored(tmp_path, text(info="REF_energy=7.0"))
    refused("frame 0: `energy` and `REF_energy` are both there and disagree", both)
    assert load(both, keys=loaders.Keys(energy="energy")).energy[0] == pytest.approx(water()["E"][0])


def test_isolated_atoms_are_skipped_and_this_is_said(tmp_path, caplog):
    alone = "1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-3.0 config_type=IsolatedAtom\nH 0 0 0 0 0 0\n"
    with caplog.at_level(logging.WARNING):
        assert len(load(stored(tmp_path, [alone, *text()])).energy) == NUM
    assert "1 frames of isolated atoms are skipped" in caplog.text


def test_blank_lines_and_compressed_files(tmp_path):
    assert len(load(stored(tmp_path, ["\n", *text()[:9], "\n  \n", *text()[9:], "\n"])).energy) == NUM
    path = tmp_path / "data.xyz.gz"
    path.write_bytes(gzip.compress("".join(text()).encode()))
    assert len(load(path).energy) == NUM
    refused("more than the 1e-06 GB that are allowed", path, max_bytes=1e3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[: t.rindex("H")], "frame 23 is cut short"),
        (lambda t: t[:-12] + "\n", "frame 23: line 120 has 6 columns"),
        (lambda t: "1000000000000\n" + t, "frame 0 is cut short: line 1 promises 1000000000000 atoms"),
        (lambda t: t.replace("O 0", "O zero", 1), "frame 0"),
        (lambda t: t.replace("O ", "Qq ", 1), "frame 0: cannot be read"),
        (lambda t: t.replace("3\n", "three\n", 1), "frame 0: expected the number of atoms in line 1, got 'three'"),
        (lambda _: "", "holds no frames"),
    ],
)
def test_damaged_text(change, message, tmp_path):
    refused(message, stored(tmp_path, [change("".join(text()).replace("O -0", "O 0"))]))


def test_files_that_are_no_files_or_lie_about_their_size(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    refused("is not a regular file", tmp_path / "pipe.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    refused("is not a regular file", tmp_path / "zero.npz")
    (tmp_path / "noise.npz").write_bytes(b"noise")
    refused("cannot be read .BadZipFile", tmp_path / "noise.npz")
    (tmp_path / "noise.xyz").write_bytes(b"\xff\xfe\x80")
    refused("cannot be read .UnicodeDecodeError", tmp_path / "noise.xyz")
    refused("more than the 1e-06 GB that are allowed", saved(tmp_path), max_bytes=1e3)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 3, 3)})
    path = saved(tmp_path, R=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("R.npy", header.getvalue() + bytes(800))
    refused("the header of `R` promises 72000000000 bytes", path)


def test_a_bug_of_ours_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(*_):
        raise KeyError("ours")

    monkeypatch.setattr(extxyz, "_labels", broken)
    with pytest.raises(KeyError, match="ours"):
        load(stored(tmp_path, text()))


def test_momenta_and_velocities(tmp_path):
    momenta = load(stored(tmp_path, text(columns=":momenta:R:3", row=" 1.0 0.0 0.0")))
    np.testing.assert_allclose(momenta.velocity[0, :, 0], 1 / np.array([15.999, 1.008, 1.008]), rtol=1e-4)
    velocities = load(stored(tmp_path, text(columns=":velocities:R:3", row=" 0.01 0.0 0.0")))
    np.testing.assert_allclose(velocities.velocity[0, :, 0], 0.01 / units.FEMTOSECOND, rtol=1e-5)


def test_further_units(tmp_path):
    data = water()
    for unit, factor in (("kJ/mol", 0.010364269656262175), ("meV", 1e-3)):
        path = saved(tmp_path, E=data["E"] / factor, F=data["F"] / factor)
        np.testing.assert_allclose(load(path, energy_unit=unit).force, data["F"], rtol=1e-5, atol=1e-6)
    path = saved(tmp_path, R=data["R"] / 10, F=data["F"] * 10)
    np.testing.assert_allclose(load(path, length_unit="nm").position, data["R"], rtol=1e-5, atol=1e-6)


def test_a_skewed_lattice_is_reduced(tmp_path):
    lattice = 'Lattice="12 0 0 24 12 0 0 0 12" wrapped=F'
    np.testing.assert_allclose(load(stored(tmp_path, text(info=lattice))).cell, 12.0 * np.eye(3))
    refused("span no volume", stored(tmp_path, text(info=lattice.replace("24 12", "24 0"))))


def drifting(speed):
    position = water()["R"] + speed * np.arange(NUM)[:, None, None]
    periodically = {
        "cell": 8.0 * np.eye(3),
        "wrapped": True,
        "frame_spacing_fs": 10.0,
        "trajectory": np.zeros(NUM, int),
    }
    return periodically | {"R": position - 8.0 * np.floor(position / 8.0)}, position


def test_wrapped_trajectories_are_continuous_in_time(tmp_path, caplog):
    content, position = drifting(0.9)
    found = load(saved(tmp_path, **content))
    np.testing.assert_allclose(found.position - found.position[0], position - position[0], atol=1e-4)
    content, _ = drifting(2.2)
    with caplog.at_level(logging.WARNING):
        assert load(saved(tmp_path, **content)).frame_spacing_fs is None
    assert "cannot be followed in time" in caplog.text


def test_coarse_labels_are_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(saved(tmp_path))
        assert not caplog.text
        load(saved(tmp_path, E=(water()["E"] - 20_000).astype(np.float32)))
    assert "energy was rounded to float32 in steps of 0.002 eV" in caplog.text


@pytest.mark.parametrize("space", [None, periodic(30.0 * np.eye(3))], ids=["open", "periodic"])
def test_atoms_and_parts_without_bonds_are_watched(space):
    """A proton between two oxygens, and an ion: bonds alone would not notice that they leave."""
    position = np.tile(
        np.array([[0.0, 0, 0], [0, 0.96, 0], [2.7, 0, 0], [2.7, 0.96, 0], [1.35, 0, 0], [0, 0, 4]]), (5, 1, 1)
    )
    position[:, 5, 2] += np.linspace(-0.2, 0.2, 5)
    molecule = np.array([0, 0, 1, 1, 2, 3], np.int32)
    keywords = {} if space is None else {"space": space}
    links = topology.find_links(position, molecule, **keywords)
    criterion = stability.fragment_distance(links, threshold=0.5, **keywords)
    inside = position[0].astype(np.float32)
    assert criterion(Frame(inside)) == pytest.approx(-0.5, abs=1e-5)
    for atoms, shift in (([4], [0, 5.0, 0]), ([5], [0, 0, 1.0]), ([5], [0, 0, -1.0]), ([2, 3], [1.0, 0, 0])):
        moved = inside.copy()
        moved[atoms] += shift
        assert criterion(Frame(moved)) > 0, atoms
    assert topology.find_links(position, np.zeros(6, np.int32)) is None


def test_every_message_of_a_library_is_one_sentence(tmp_path):
    (tmp_path / "data.traj").write_bytes(b"no trajectory")
    refused(re.escape("cannot be read ("), tmp_path / "data.traj")


def test_databases_and_trajectories_of_ase(tmp_path):
    from ase.io import read, write

    frames = read(stored(tmp_path, text()), index=":")
    for name in ("data.traj", "data.db"):
        write(tmp_path / name, frames)
        np.testing.assert_allclose(load(tmp_path / name).energy, water()["E"], atol=1e-9)


def test_a_diatomic_molecule_has_no_angles(tmp_path):
    """Figures that do not exist are left out, of the structure as of the measures."""
    config = tiny.get_config()
    length = 1.1 + 0.03 * np.random.default_rng(0).normal(size=NUM)
    position = np.zeros((NUM, 2, 3))
    position[:, 1, 0] = length
    force = np.zeros((NUM, 2, 3))
    force[:, 0, 0], force[:, 1, 0] = 90 * (length - 1.1), -90 * (length - 1.1)
    path = saved(tmp_path, z=np.array([7, 7]), R=position, F=force, E=45 * (length - 1.1) ** 2)
    config.data.path, config.data.energy_unit = str(path), "eV"
    evaluation = systems.build(config).evaluation
    assert base.ANGLE_MEASURE not in evaluation.measures
    assert set(evaluation.structure_reference) == {measure.name for measure in evaluation.measures}
    assert all(np.isfinite(value).all() for value in evaluation.structure_reference.values())


def test_masses_of_the_file_reach_the_dynamics(tmp_path):
    config = tiny.get_config()
    masses = np.array([15.999, 2.014, 1.008])
    path = saved(tmp_path, masses=masses, REF_energy=water()["E"] + 1)
    config.data.path, config.data.energy_unit, config.data.energy_key = str(path), "eV", "E"
    assert base.find_topology(base.load(config)).mass == pytest.approx(masses)
