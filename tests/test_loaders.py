"""Data sets of the field, and every bad input that is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import covalent_radii
from ase.io import write

from experiments.configs import ac_ala3_nhme as peptide_config
from experiments.configs import aspirin as aspirin_config
from experiments.data import loaders, splits
from stablejax import topology, units
from stablejax.space import Pairs

SPECIES = np.array([8, 1, 1])
NUM = 20


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "z": SPECIES,
        "R": rng.normal(size=(NUM, 3, 3)),
        "E": -2000.0 + rng.normal(size=NUM),
        "F": rng.normal(size=(NUM, 3, 3)),
    }


def written(tmp_path, **changes):
    content = arrays() | changes
    path = tmp_path / "data.npz"
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path


def load(path, energy_unit="eV", length_unit="angstrom"):
    return loaders.load(path, energy_unit=energy_unit, length_unit=length_unit)


def test_units_are_converted_once(tmp_path):
    kcal = arrays()
    path = written(tmp_path, E=kcal["E"] / units.KCAL_PER_MOL, F=kcal["F"] / units.KCAL_PER_MOL)
    dataset = load(path, "kcal/mol")
    np.testing.assert_allclose(dataset.energy, kcal["E"], rtol=1e-12)
    np.testing.assert_allclose(dataset.force, kcal["F"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dataset.position, kcal["R"], rtol=1e-6)
    assert dataset.energy.dtype == np.float64
    bohr = load(written(tmp_path, R=kcal["R"] / units.BOHR, F=kcal["F"] * units.BOHR), length_unit="bohr")
    np.testing.assert_allclose(bohr.position, kcal["R"], rtol=1e-6)
    np.testing.assert_allclose(bohr.force, kcal["F"], rtol=1e-5, atol=1e-6)


def test_rmd17_names_and_energies_in_a_column(tmp_path):
    content = arrays()
    path = tmp_path / "rmd17.npz"
    np.savez(
        path,
        nuclear_charges=content["z"],
        coords=content["R"],
        energies=content["E"][:, None],
        forces=content["F"],
    )
    np.testing.assert_allclose(load(path).energy, content["E"])


def extxyz(path, frames):
    content = arrays()
    for index, atoms in enumerate(frames):
        atoms.calc = SinglePointCalculator(atoms, energy=content["E"][index], forces=content["F"][index])
    write(path, frames, format="extxyz")
    return content


def test_extended_xyz(tmp_path):
    content = arrays()
    path = tmp_path / "data.extxyz"
    extxyz(path, [Atoms(SPECIES, position) for position in content["R"]])
    dataset = load(path)
    np.testing.assert_array_equal(dataset.species, SPECIES)
    np.testing.assert_allclose(dataset.position, content["R"], atol=1e-6)
    np.testing.assert_allclose(dataset.energy, content["E"], atol=1e-6)
    np.testing.assert_allclose(dataset.force, content["F"], atol=1e-6)


def refused(message, path, **declared):
    with pytest.raises(ValueError, match=message) as caught:
        load(path, **declared)
    assert "\n" not in str(caught.value)


def test_missing_and_unknown_units(tmp_path):
    refused(
        "`energy_unit` has to be one of eV, kcal/mol, hartree, kJ/mol, meV, got None",
        written(tmp_path),
        energy_unit=None,
    )
    refused("got 'kJ'", written(tmp_path), energy_unit="kJ")
    refused("`length_unit` has to be one of angstrom, bohr, nm, got 'pm'", written(tmp_path), length_unit="pm")


def test_forces_whose_size_does_not_fit_the_unit(tmp_path):
    path = written(tmp_path, F=arrays()["F"] / units.KCAL_PER_MOL)
    refused("they would fit kcal/mol and angstrom", path)
    refused("no known unit fits", written(tmp_path, F=arrays()["F"] * 1e9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"R": np.zeros((NUM, 4, 3))}, r"position has shape \(20, 4, 3\), expected \(20, 3, 3\)"),
        ({"F": np.zeros((NUM - 1, 3, 3))}, r"force has shape \(19, 3, 3\)"),
        ({"E": np.zeros(NUM + 1)}, r"position has shape \(20, 3, 3\), expected \(21, 3, 3\)"),
        ({"V": np.zeros((NUM, 3))}, "velocity has shape"),
        ({"trajectory": np.zeros(3, int)}, "trajectory has shape"),
        ({"R": np.zeros((NUM, 3, 3), int)}, "position holds int64, expected floating-point"),
        ({"F": None}, "expected force under one of the names F, forces"),
    ],
)
def test_wrong_shapes_and_names(changes, message, tmp_path):
    refused(message, written(tmp_path, **changes))


@pytest.mark.parametrize("field", ["R", "E", "F"])
def test_nan(field, tmp_path):
    content = arrays()[field]
    content[7] = np.nan
    refused(r"of frame 7 is not finite \(1 such frames\)", written(tmp_path, **{field: content}))


def test_atoms_that_change_order(tmp_path):
    order = np.tile(SPECIES, (NUM, 1))
    order[5] = [1, 8, 1]
    refused("frame 5 has its atoms in a different order than frame 0", written(tmp_path, z=order))
    frames = [Atoms(order[index], position) for index, position in enumerate(arrays()["R"])]
    extxyz(tmp_path / "order.xyz", frames)
    refused("frame 5 has its atoms in a different order", tmp_path / "order.xyz")


def test_like_atoms_that_change_order_are_found_by_their_bonds():
    position = np.tile(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), (NUM, 1, 1))
    position[3, 2, 1] = 2.7
    dataset = loaders.Dataset(np.array([8, 1, 1]), position, None, None, None, None, None)
    bonds = Pairs(np.array([0, 0]), np.array([1, 2]))
    with pytest.raises(
        ValueError, match="frame 3: the bond 0-2 is 2.70 Å long, its median is 1.00 Å: the atoms change"
    ):
        loaders.check_bonds_kept(dataset, bonds, threshold=0.5)
    loaders.check_bonds_kept(dataset, bonds, threshold=2.0)


def test_extended_xyz_without_labels(tmp_path):
    write(tmp_path / "bare.xyz", [Atoms(SPECIES, arrays()["R"][0])], format="extxyz")
    refused("frame 0 has no energy or no forces", tmp_path / "bare.xyz")


def test_pickled_arrays(tmp_path):
    refused("holds pickled Python objects", written(tmp_path, R=np.array([{"a": 1}], dtype=object)))


def test_no_such_file_and_unknown_kind(tmp_path):
    refused("no such file", tmp_path / "nothing.npz")
    (tmp_path / "data.csv").write_text("")
    refused(re.escape("expected a file named .npz, .xyz or .extxyz, got '.csv'"), tmp_path / "data.csv")


def split(dataset, **changes):
    return loaders.split(dataset, **(dict(num_train=5, num_validation=3, num_test=4, seed=0) | changes))


def test_split_is_disjoint_and_follows_the_seed(tmp_path):
    dataset = load(written(tmp_path))
    one, other = split(dataset), split(dataset, seed=1)
    assert len(set(np.concatenate(one).tolist())) == 12
    np.testing.assert_array_equal(one.train, split(dataset).train)
    assert not np.array_equal(one.train, other.train)


def test_test_frames_come_from_held_out_trajectories(tmp_path):
    trajectory = np.repeat(np.arange(4), 5)
    chosen = split(load(written(tmp_path, trajectory=trajectory)))
    assert set(trajectory[chosen.test].tolist()) == {3}
    assert 3 not in trajectory[np.concatenate([chosen.train, chosen.validation])]


def test_reference_frames_are_never_those_of_the_test(tmp_path):
    """Nor others of their trajectories, where these are known."""
    trajectory = np.repeat(np.arange(4), 5)
    for dataset, held_out in (
        (load(written(tmp_path)), None),
        (load(written(tmp_path, trajectory=trajectory)), np.arange(15, 20)),
    ):
        chosen = split(dataset)
        held_out = chosen.test if held_out is None else held_out
        left = loaders.reference_frames(dataset, chosen, num=0, seed=0)
        np.testing.assert_array_equal(left, np.setdiff1d(np.arange(NUM), held_out))
        few = loaders.reference_frames(dataset, chosen, num=7, seed=0)
        assert len(set(few.tolist())) == 7 and set(few) <= set(left)


def test_fewer_frames_than_asked_for(tmp_path):
    dataset = load(written(tmp_path))
    with pytest.raises(ValueError, match="asked for 15 training, 3 validation and 4 test frames, but there are 16"):
        split(dataset, num_train=15)
    with pytest.raises(ValueError, match="asked for 0 training"):
        split(dataset, num_train=0)


@pytest.mark.parametrize("num_train", [1, 8])
@pytest.mark.parametrize("block", [3, 4096])
def test_duplicate_frames_of_the_test_are_refused_also_in_the_reference(num_train, block, tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "BLOCK", block)
    content = arrays()["R"]
    content[10:] = content[:10]
    with pytest.raises(ValueError, match=r"frame \d+ is the same as frame \d+, rotations .* held out for the test"):
        split(load(written(tmp_path, R=content)), num_train=num_train)


def test_a_copy_of_a_test_frame_that_only_the_reference_has_is_refused(tmp_path):
    content = arrays()["R"]
    chosen = split(load(written(tmp_path)))
    (unused, *_) = np.setdiff1d(np.arange(NUM), np.concatenate(chosen))
    content[unused] = content[chosen.test[0]] + 5.0
    with pytest.raises(ValueError, match=f"frame {unused} is the same as frame {chosen.test[0]}, rotations"):
        split(load(written(tmp_path, R=content)))


def test_the_data_set_that_ships_is_what_its_card_says():
    config = aspirin_config.get_config()
    dataset = loaders.load(config.data.path, energy_unit=config.data.energy_unit, length_unit=config.data.length_unit)
    assert dataset.position.shape == (10_000, 21, 3)
    assert aspirin_config.DATA.stat().st_size < 6e6
    assert np.bincount(dataset.trajectory).tolist() == [1250] * 8
    assert dataset.frame_spacing_fs == 10.0
    from ase.data import atomic_masses

    kinetic = 0.5 * atomic_masses[dataset.species][:, None] * dataset.velocity.astype(float) ** 2
    assert 2 * kinetic.mean() / units.BOLTZMANN_EV_PER_K == pytest.approx(500, abs=30)
    # Velocities are of the same trajectory: heavy atoms move between consecutive frames as their velocities say.
    is_heavy = dataset.species > 1
    step = (dataset.position[1] - dataset.position[0])[is_heavy]
    predicted = 5 * units.FEMTOSECOND * (dataset.velocity[0] + dataset.velocity[1])[is_heavy]
    assert np.corrcoef(step.ravel(), predicted.ravel())[0, 1] > 0.8


def test_real_md17(shared):
    dataset = load(shared / "data" / "aspirin_md17.npz", "kcal/mol")
    assert dataset.position.shape == (9633, 21, 3)
    with pytest.raises(ValueError, match="they would fit kcal/mol and angstrom"):
        load(shared / "data" / "aspirin_md17.npz", "eV")


def test_real_md22(shared):
    path = shared / "data" / "md22_Ac-Ala3-NHMe_5frames.xyz"
    dataset = load(path, "kcal/mol")
    assert dataset.position.shape == (5, 42, 3)


CELL = 8.0 * np.eye(3)


def test_a_periodic_data_set_has_a_cell_and_says_whether_it_is_wrapped(tmp_path):
    motion = np.ones((3, 5))
    path = written(tmp_path, cell=CELL, wrapped=False, motion_msd=motion, motion_spacing_fs=10.0)
    dataset = load(path)
    np.testing.assert_array_equal(dataset.cell, CELL)
    assert not dataset.is_wrapped and dataset.motion_spacing_fs == 10.0
    assert list(dataset.motion) == ["msd"]
    np.testing.assert_allclose(load(path, length_unit="bohr").cell, CELL * units.BOHR)
    assert load(written(tmp_path)).cell is None
    with pytest.raises(ValueError, match="expected `cell` and `wrapped` together, got no `wrapped`"):
        load(written(tmp_path, cell=CELL))


def test_periodic_extended_xyz_says_whether_it_is_wrapped(tmp_path):
    path = tmp_path / "box.xyz"

    def frames(**info):
        return [Atoms(SPECIES, x, cell=CELL, pbc=True, info=dict(info)) for x in arrays()["R"]]

    extxyz(path, frames(wrapped=True))
    dataset = load(path)
    np.testing.assert_array_equal(dataset.cell, CELL)
    assert dataset.is_wrapped
    extxyz(path, frames())
    with pytest.raises(ValueError, match="write `wrapped=T` or `wrapped=F` into the comment line"):
        load(path)
    several = frames(wrapped=True)
    several[3].cell = 1.1 * CELL
    extxyz(path, several)
    with pytest.raises(ValueError, match="frame 3 has a different cell than frame 0"):
        load(path)
    several = frames(wrapped=True)
    for atoms in several:
        atoms.pbc = [True, True, False]
    extxyz(path, several)
    with pytest.raises(ValueError, match="periodic in all directions or in none"):
        load(path)


def test_the_peptide_of_md22_can_be_read_and_has_the_geometry_of_ours(shared):
    dataset = load(shared / "data" / "md22_Ac-Ala3-NHMe_5frames.xyz", "kcal/mol")
    assert dataset.position.shape == (5, 42, 3)
    bonds, length = topology.find_bonds(dataset.position, covalent_radii[dataset.species])
    assert len(length) == 41
    phi, psi = topology.backbone_dihedrals(dataset.species, bonds)
    assert len(phi) == len(psi) == 3
    ours = load(peptide_config.DATA)
    our_bonds, our_length = topology.find_bonds(ours.position[::50], covalent_radii[ours.species])

    def by_kind(species, bonds, length):
        kinds = np.sort(species[np.stack(bonds)], axis=0).T
        return {tuple(kind): length[(kinds == kind).all(axis=1)].mean() for kind in np.unique(kinds, axis=0)}

    real = by_kind(dataset.species, bonds, length)
    mine = by_kind(ours.species, our_bonds, our_length)
    assert real.keys() == mine.keys()
    for kind, value in real.items():
        assert mine[kind] == pytest.approx(value, abs=0.03), kind
