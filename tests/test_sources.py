"""Several files as one data set, HDF5, and entries that are only compared: total charge, multiplicity, stress."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
from test_data_cases import NUM, SPECIES, load, refused, saved, stored, text, water

from experiments import provenance
from experiments.data import loaders, sources
from stablejax import units


def part(tmp_path, name, seed=0, **changes):
    path = tmp_path / name
    np.savez(path, **{key: array for key, array in (water(seed) | changes).items() if array is not None})
    return path


def refused_in(message, path, **changes):
    """In one sentence; which file is in the message."""
    with pytest.raises(ValueError, match=message) as caught:
        load(path, **changes)
    assert "\n" not in str(caught.value)


def test_several_files_are_one_data_set(tmp_path):
    one, other = part(tmp_path, "a.npz"), part(tmp_path, "b.npz", seed=1)
    written = stored(tmp_path, text(), "c.xyz")
    for given in (f"{one},{other}", f"{one}, {other}", f"{tmp_path}/*.npz"):
        dataset = load(given)
        np.testing.assert_allclose(dataset.energy, np.concatenate([water()["E"], water(1)["E"]]))
        np.testing.assert_allclose(dataset.force[NUM:], water(1)["F"], rtol=1e-5, atol=1e-5)
        assert dataset.trajectory.tolist() == [0] * NUM + [1] * NUM
    assert len(load(f"{written},{other}").energy) == 2 * NUM
    (tmp_path / "with,comma.npz").write_bytes(one.read_bytes())
    assert len(load(tmp_path / "with,comma.npz").energy) == NUM


def test_trajectories_are_numbered_apart_by_file(tmp_path):
    own = np.repeat([5, 3], NUM // 2)
    part(tmp_path, "a.npz", trajectory=own)
    part(tmp_path, "b.npz", seed=1)
    part(tmp_path, "c.npz", seed=2, trajectory=own)
    found = load(f"{tmp_path}/*.npz").trajectory
    assert found.tolist() == [1] * 12 + [0] * 12 + [2] * NUM + [4] * 12 + [3] * 12
    assert len(np.unique(found)) == 5


BOX = {"cell": 12.0 * np.eye(3), "wrapped": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": np.array([8, 1, 7])}, "b.npz: has the atoms OHN, .*a.npz has OH2"),
        (BOX, r"b.npz: has the cell \[\[12.0, 0.0, 0.0\].*, .*a.npz None"),
        ({"masses": np.array([16.0, 2.0, 1.0])}, "b.npz: atom 1 has a mass of 2, in .*a.npz 1.008 amu"),
        ({"V": np.zeros((NUM, 3, 3))}, "b.npz: has velocity, unlike .*a.npz"),
        ({"frame_spacing_fs": 2.0}, "b.npz: `frame_spacing_fs` is 2.0, in .*a.npz None"),
        ({"E": water()["E"] - 400}, "b.npz: its energies are 400 eV from those of .*a.npz"),
        ({"charge": np.ones(NUM)}, "b.npz: has a total charge of 1.0, .*a.npz of 0"),
        ({"F": None}, "b.npz: expected force under one of the names"),
    ],
)
def test_files_that_do_not_belong_together(changes, message, tmp_path):
    one, other = part(tmp_path, "a.npz", charge=0), part(tmp_path, "b.npz", seed=1, **changes)
    refused_in(message, f"{one},{other}")


def test_cells_and_wrapping_of_files_agree(tmp_path):
    one = part(tmp_path, "a.npz", **BOX)
    assert load(f"{one},{part(tmp_path, 'b.npz', seed=1, **BOX)}").cell is not None
    refused_in("b.npz: has the cell", f"{one},{part(tmp_path, 'b.npz', cell=13 * np.eye(3), wrapped=False)}")
    refused_in("`is_wrapped` is True", f"{one},{part(tmp_path, 'b.npz', cell=12 * np.eye(3), wrapped=True)}")


def test_a_bad_frame_is_named_by_its_file_and_its_number_there(tmp_path):
    force = water(1)["F"]
    force[7, 1, 2] = 4000.0
    one, other = part(tmp_path, "a.npz"), part(tmp_path, "b.npz", seed=1, F=force)
    refused_in(r"b.npz: frame 7 has a force of 4000 eV/Å", f"{one},{other}")


def test_the_bound_is_on_all_files_together(tmp_path):
    one, other = part(tmp_path, "a.npz"), part(tmp_path, "b.npz", seed=1)
    size = one.stat().st_size
    load(one, max_bytes=1.5 * size)
    refused_in("b.npz: takes .* beside .* read before it, more than", f"{one},{other}", max_bytes=1.5 * size)
    load(f"{one},{other}", max_bytes=2.5 * size)


def test_names_that_name_no_files(tmp_path):
    one = part(tmp_path, "a.npz")
    refused_in("expected names of files, separated by commas", f"{one},")
    refused_in("no file has a name like this", f"{tmp_path}/*.xyz")
    refused_in("is named twice", f"{one},{tmp_path}/*.npz")
    refused_in("no such file", f"{one},{tmp_path}/b.npz")
    os.mkfifo(tmp_path / "b.npz")
    refused_in("is not a regular file", f"{tmp_path}/*.npz")


def spice(path, names=("water",), **changes):
    """In hartree and bohr, with the gradient and what else is there."""
    data = water()
    content = {
        "atomic_numbers": SPECIES,
        "conformations": (data["R"] / units.BOHR).astype(np.float32),
        "dft_total_energy": data["E"] / units.HARTREE,
        "dft_total_gradient": -data["F"] * units.BOHR / units.HARTREE,
        "mbis_charges": np.zeros((NUM, 3, 1)),
        "smiles": np.array(["O"], dtype=object),
    } | changes
    with h5py.File(path, "w") as file:
        for name in names:
            group = file.create_group(name) if name else file
            for key, value in content.items():
                if value is not None:
                    group.create_dataset(key, data=value)
    return path


ATOMIC = {"energy_unit": "hartree", "length_unit": "bohr"}


def test_hdf5_of_spice_has_gradients(tmp_path):
    dataset = load(spice(tmp_path / "one.hdf5"), **ATOMIC)
    np.testing.assert_allclose(dataset.energy, water()["E"], rtol=1e-6)
    np.testing.assert_allclose(dataset.force, water()["F"], rtol=1e-4, atol=1e-4)
    flat = load(spice(tmp_path / "flat.h5", names=[""]), **ATOMIC)
    np.testing.assert_allclose(flat.position, dataset.position)
    named = loaders.Keys(force="dft_total_gradient")
    np.testing.assert_allclose(load(tmp_path / "flat.h5", keys=named, **ATOMIC).force, dataset.force)


def test_flat_hdf5_has_the_names_of_an_npz(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for name, array in (water() | {"cell": 12 * np.eye(3), "wrapped": True}).items():
            file.create_dataset(name, data=array)
    dataset = load(tmp_path / "data.h5")
    np.testing.assert_allclose(dataset.energy, water()["E"])
    assert dataset.is_wrapped and dataset.cell is not None


def test_one_molecule_of_several_is_chosen(tmp_path):
    path = spice(tmp_path / "many.h5", names=[f"m{number}" for number in range(7)])
    refused(
        r"holds several molecules, expected one: choose one with .*many.h5:GROUP; there are m0, m1, m2, m3, …", path
    )
    assert len(load(f"{path}:m3", **ATOMIC).energy) == NUM
    assert len(load(f"{path}:m3,{path}:m4", **ATOMIC).energy) == 2 * NUM
    refused_in(r"many.h5:m9: has no such group, but m0, m1", f"{path}:m9")
    nested = spice(tmp_path / "nested.h5", names=["data/a", "data/b"])
    assert len(load(f"{nested}:data/b", **ATOMIC).energy) == NUM


def test_hdf5_that_promises_too_much_or_leads_elsewhere(tmp_path):
    path = spice(tmp_path / "large.h5", conformations=None)
    with h5py.File(path, "a") as file:
        file["water"].create_dataset("conformations", shape=(10**9, 3, 3), chunks=(100, 3, 3), dtype="f8")
    assert path.stat().st_size < 1e5
    refused("`conformations`: takes 72 GB, more than the 1 GB that are allowed", path)
    (tmp_path / "raw").write_bytes(bytes(NUM * 72))
    path = spice(tmp_path / "elsewhere.h5", conformations=None)
    with h5py.File(path, "a") as file:
        outside = [(str(tmp_path / "raw"), 0, NUM * 72)]
        file["water"].create_dataset("conformations", shape=(NUM, 3, 3), dtype="f8", external=outside)
    refused("`conformations` refers to another file", path)
    path = spice(tmp_path / "link.h5", names=["a"])
    with h5py.File(path, "a") as file:
        file["b"], file["a/again"] = h5py.ExternalLink("many.h5", "/m0"), file["a"]
    assert len(load(path, **ATOMIC).energy) == NUM
    refused_in("has no such group", f"{path}:b")
    (tmp_path / "noise.h5").write_bytes(b"noise")
    refused(r"cannot be read \(OSError", tmp_path / "noise.h5")


def test_gradients_are_minus_the_forces(tmp_path):
    data = water()
    np.testing.assert_allclose(
        load(saved(tmp_path, F=None, gradient=-data["F"])).force, data["F"], rtol=1e-5, atol=1e-6
    )
    load(saved(tmp_path, gradient=-data["F"]))
    refused("`F` is not minus `gradient`", saved(tmp_path, gradient=data["F"]))
    refused("the forces drive stretched bonds apart", stored(tmp_path, text(force="gradient")))


@pytest.mark.parametrize("name", ["charge", "total_charge", "REF_total_charge", "multiplicity", "spin"])
def test_a_state_that_changes_is_refused(name, tmp_path):
    values = np.zeros(NUM)
    for given in (values, values[:, None], 0, values.astype(int)):
        load(saved(tmp_path, **{name: given}))
    values[5] = 1
    refused(f"frame 5 has another .* than frame 0, `{name}` is 1.0 and 0.0", saved(tmp_path, **{name: values}))
    frames = text(info=f"{name}=0")
    load(stored(tmp_path, frames))
    frames[5] = frames[5].replace(f"{name}=0", f"{name}=1")
    refused("frame 5 has another (total charge|spin multiplicity) than frame 0", stored(tmp_path, frames))
    refused("another entry says", saved(tmp_path, charge=0, total_charge=1))


def test_charges_of_atoms_and_stress_are_passed_over(tmp_path):
    charges = np.random.default_rng(0).normal(size=(NUM, 3))
    stress = np.ones((NUM, 3, 3))
    expected = water()["E"]
    for extra in (
        {"charges": charges},
        {"charge": charges},
        {"stress": stress},
        {"cell_stress": stress, "virial": stress},
    ):
        np.testing.assert_allclose(load(saved(tmp_path, **extra)).energy, expected)
    for info in ('stress="1 2 3 4 5 6"', 'virial="1 2 3 4 5 6 7 8 9"', "REF_stress=1", 'stress="9 8 7 6 5 4 3 2 1"'):
        np.testing.assert_allclose(load(stored(tmp_path, text(info=info))).energy, expected)


def test_labels_of_a_database_may_be_under_other_names(tmp_path):
    from ase.db import connect
    from ase.io import read

    frames = read(stored(tmp_path, text(energy="mine", force="ours")), index=":")
    with connect(tmp_path / "data.db") as database:
        for atoms in frames:
            database.write(atoms, key_value_pairs={"mine": atoms.info["mine"]}, data={"ours": atoms.arrays["ours"]})
    found = load(tmp_path / "data.db", keys=loaders.Keys("mine", "ours"))
    np.testing.assert_allclose(found.force, water()["F"], atol=1e-6)


def test_a_cell_that_would_take_for_ever_to_reduce(tmp_path):
    cell = np.array([[12.0, 0, 0], [12e9, 12, 0], [0, 0, 12]])
    refused("the lattice vectors have lengths of 12 to 1.2e.10 Å", saved(tmp_path, cell=cell, wrapped=False))


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("species:S:99999999999:pos:R:3", "expected name:type:columns of each column in `Properties`"),
        ("species:S:1:species:S:1", "expected name:type:columns of each column in `Properties`"),
        ("species:S", "expected name:type:columns of each column in `Properties`"),
        ("species:S:1:pos:R:99999", "line 3 has 7 columns, `Properties` names 100000"),
    ],
)
def test_columns_are_those_that_the_library_would_make_room_for(stated, message, tmp_path):
    """It takes the last of several `Properties`, in any quotes."""
    for form in (f'Properties="{stated}"', f'"Properties" = {{{stated}}}'):
        refused(f"frame 0: {message}", stored(tmp_path, text(info=form)))


def test_a_word_that_is_no_element_beside_an_isotope(tmp_path):
    refused("frame 0: 'Wrapped' is no symbol of an element", stored(tmp_path, text(symbols=["O", "D", "wrapped"])))


def test_values_in_messages_are_short_and_in_one_line(tmp_path):
    refused("got float64 of shape", saved(tmp_path, frame_spacing_fs=np.ones((50, 50))))
    refused("is named 5 10", saved(tmp_path, **{"E": None, "is named 5\n10": np.ones(3)}))
    with pytest.raises(ValueError) as caught:
        load(saved(tmp_path, **{"E": None, "x" * 5000: np.ones(3)}))
    assert len(str(caught.value)) < 1100


def test_arrays_of_records_and_dates_are_passed_over(tmp_path):
    record = np.zeros(NUM, np.dtype("f8,i4"))
    assert len(load(saved(tmp_path, info=record, when=np.zeros(NUM, "M8[s]"))).energy) == NUM
    refused("expected energy under one of the names", saved(tmp_path, E=record))
    load(saved(tmp_path, total_energy=record, coords=np.zeros(NUM, "M8[s]")))


def test_a_trajectory_has_a_whole_number(tmp_path):
    refused("`trajectory` has to be integers, got float64", saved(tmp_path, trajectory=np.full(NUM, np.nan)))


def test_patterns_are_sorted(tmp_path):
    for name in ("b.xyz", "a.xyz", "c.npz"):
        (tmp_path / name).touch()
    assert [source.path.name for source in sources.find(f"{tmp_path}/*.xyz")] == ["a.xyz", "b.xyz"]


def test_records_name_files_without_their_folders(monkeypatch):
    assert sources.without_folders("/home/me/a.xyz,data/b.h5:set/water,/c*.npz") == "a.xyz,b.h5:set/water,c*.npz"
    monkeypatch.setattr("sys.argv", ["run", "--config.data.path=/home/me/a.xyz,/home/me/b.h5:set/water"])
    assert provenance.command().endswith("--config.data.path=a.xyz,b.h5:set/water")
