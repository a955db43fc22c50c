"""A potential that goes out: to a file, to ASE, to a compiled function; compared with the potential itself."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from safetensors.numpy import load_file, save_file

import stablejax
from stablejax import GemNetT, NequIP, SchNet, bind, from_energy, periodic
from stablejax.forms import ensemble, of_prepared, trainable
from stablejax.interfaces import exported, files
from stablejax.interfaces.ase import PotentialCalculator

OFFSET = -2075.3
MODELS = {
    "schnet": SchNet(num_blocks=1, num_features=16, num_filters=16, cutoff=4.0),
    "nequip": NequIP((1, 8), num_features=4, num_layers=2, radial_widths=(8,), cutoff=4.0, num_neighbors=1 / 3),
    "gemnet": GemNetT(num_blocks=1, atom_size=8, edge_size=8, triplet_size=4, cutoff=4.0, scales=(0.5,) * 5),
}
QUICK = [pytest.param(name, marks=pytest.mark.slow) if name == "gemnet" else name for name in MODELS]
CELL = np.array([[6.5, 0, 0], [0.5, 6.2, 0], [0, 0.3, 6.4]])


def water(model=MODELS["schnet"], **options):
    potential = bind(model, [8, 1, 1], offset=OFFSET, **options)
    return potential, jax.jit(potential.init)(jax.random.key(0))


def rattled():
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=1)
    return atoms


def liquid():
    """Two molecules in a cell that is smaller than the cutoff in one direction, and than twice the cutoff in all."""
    position = np.random.default_rng(0).uniform(0, 3.9, (6, 3))
    cell = [[3.9, 0, 0], [0.3, 4.3, 0], [0, 0.3, 4.4]]
    return Atoms("OH2OH2", position, cell=cell, pbc=True)


class TestFiles:
    """`save` and `load`."""

    @pytest.mark.parametrize("name", QUICK)
    def test_what_is_read_is_what_was_written_to_the_bit(self, name, tmp_path):
        potential, params = water(MODELS[name], space=periodic(10 * CELL), scale=np.array([0.7, 1.0, 1.3]))
        path = stablejax.save(tmp_path / "mine", potential, params, provenance={"run": "a"})
        assert [file.name for file in tmp_path.iterdir()] == ["mine.safetensors"] == [path.name]
        for written in (path, tmp_path / "mine"):
            found, its_params = stablejax.load(written)
            assert jax.tree.structure(params) == jax.tree.structure(its_params)
            assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(its_params)))
            np.testing.assert_array_equal(found.space.cell, potential.space.cell)
            assert (found.offset, found.cutoff) == (OFFSET, potential.cutoff)
            position = jnp.asarray(rattled().positions, jnp.float32)
            assert found.energy(its_params, position) == potential.energy(params, position) != 0
        about = files.describe(path)
        assert (about["provenance"], about["units"]["energy"], about["elements"]) == ({"run": "a"}, "eV", [1, 8])

    def test_forms_for_dynamics_are_written_as_the_potential_itself(self, tmp_path):
        potential, params = water()
        fast = potential.fast(128).with_lists(skin=0.5, num_pairs=3)
        files.save(tmp_path / "fast", fast, params)
        found, its_params = files.load(tmp_path / "fast")
        position = jnp.asarray(rattled().positions, jnp.float32)
        assert found.lists is None and found.energy(its_params, position) == potential.energy(params, position)

    def test_parameters_of_other_forms_and_of_functions_are_refused(self, tmp_path):
        potential, params = water()
        part, subset = trainable(potential, params, lambda name: "readout" in name)
        for other, its_params in ((of_prepared(potential), params), (ensemble(potential), params), (part, subset)):
            with pytest.raises(ValueError, match="got one of an energy function: a file holds no code"):
                files.save(tmp_path / "x", other, its_params)
        with pytest.raises(
            ValueError, match=r"expected a potential made by `bind` from one of GemNetT, NequIP, SchNet"
        ):
            files.save(tmp_path / "x", from_energy(lambda k, x: k * jnp.sum(x**2), num_atoms=2), 1.0)
        wider = bind(SchNet(num_blocks=2, num_features=16, num_filters=16, cutoff=4.0), [8, 1, 1])
        with pytest.raises(ValueError, match="`save`, x: expected parameters of its model, .* of shape .*, got none"):
            files.save(tmp_path / "x", wider, params)
        assert not list(tmp_path.iterdir())

    def test_other_files_are_refused_in_a_sentence(self, tmp_path):
        potential, params = water()
        path = files.save(tmp_path / "good", potential, params)
        content, leaves = path.read_bytes(), load_file(path)
        about = files.describe(path)

        def with_header(name, **changes):
            save_file(leaves, tmp_path / name, {files.HEADER: json.dumps(about | changes)})

        (tmp_path / "cut.safetensors").write_bytes(content[:-100])
        (tmp_path / "text.safetensors").write_text("not a potential")
        save_file(leaves, tmp_path / "bare.safetensors")
        with_header("newer.safetensors", version=2)
        with_header("other.safetensors", architecture="os")
        with_header("wider.safetensors", sizes=about["sizes"] | {"num_filters": 8})
        for name, message in {
            "cut": "cut.safetensors: expected a file in the safetensors format, got a damaged or another one",
            "text": "text.safetensors: expected a file in the safetensors format",
            "bare": "bare.safetensors: expected the description of a potential in its header, got none",
            "newer": "expected version 1 of the format and .*, got version 2 and SchNet: it is of another version",
            "other": "got version 1 and os",
            "wider": r"`load`, wider: expected parameters of its model, `params/.*` of shape .*, got .*: they are of a",
        }.items():
            with pytest.raises(ValueError, match=message):
                files.load(tmp_path / name)
        with pytest.raises(FileNotFoundError, match="absent.safetensors: expected the file of a potential"):
            files.load(tmp_path / "absent")


class TestCalculator:
    """`PotentialCalculator`."""

    @pytest.mark.parametrize("name", QUICK)
    def test_energies_and_forces_are_the_potentials_in_any_order(self, name):
        potential, params = water(MODELS[name])
        atoms = rattled()
        atoms.calc = PotentialCalculator(potential, params)
        position = jnp.asarray(atoms.positions, jnp.float32)
        energy, forces = potential.energy_and_forces(params, position)
        assert atoms.get_potential_energy() == pytest.approx(float(energy) + OFFSET, abs=1e-6)
        assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=1e-5, atol=1e-5)
        other = atoms[[2, 0, 1]]
        other.calc = PotentialCalculator(potential, params)
        np.testing.assert_allclose(other.get_forces(), atoms.get_forces()[[2, 0, 1]], rtol=1e-5, atol=1e-5)
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()

    @pytest.mark.parametrize("name", QUICK)
    def test_a_cell_and_twelve_of_it_are_the_same_material(self, name):
        """In the small cell several images of an atom are within the cutoff, also of itself."""
        potential, params = water(MODELS[name])
        small = liquid()
        large = small.repeat((3, 2, 2))
        small.calc, large.calc = (PotentialCalculator(potential, params) for _ in range(2))
        assert large.get_potential_energy() == pytest.approx(12 * small.get_potential_energy(), rel=0, abs=3e-4)
        np.testing.assert_allclose(large.get_forces(), np.tile(small.get_forces(), (12, 1)), rtol=1e-5, atol=3e-5)
        np.testing.assert_allclose(large.get_stress(), small.get_stress(), rtol=1e-4, atol=1e-6)
        inside = bind(MODELS[name], large.numbers, space=periodic(large.cell.array), offset=24 * OFFSET)
        energy = inside.energy(params, jnp.asarray(large.positions, jnp.float32))
        assert large.get_potential_energy() - 24 * OFFSET == pytest.approx(float(energy), rel=0, abs=3e-4)

    def test_forces_and_stress_are_derivatives(self, x64):
        potential = bind(MODELS["schnet"], [8, 1, 1])
        atoms = liquid()
        atoms.calc = PotentialCalculator(potential, potential.init(jax.random.key(0)))
        step, rng = 1e-4, np.random.default_rng(1)
        moved, strain = rng.normal(size=(6, 3)), rng.normal(size=(3, 3))

        def energy(sign, moves, strains):
            other = atoms.copy()
            other.calc = atoms.calc
            other.positions += sign * step * moves
            other.set_cell(other.cell.array @ (np.eye(3) + sign * step * strains), scale_atoms=True)
            return other.get_potential_energy()

        def slope(moves, strains):
            return (energy(1, moves, strains) - energy(-1, moves, strains)) / (2 * step)

        assert slope(moved, 0 * strain) == pytest.approx(-np.sum(atoms.get_forces() * moved), rel=1e-4)
        stress = atoms.get_stress(voigt=False)
        assert slope(0 * moved, strain) == pytest.approx(atoms.get_volume() * np.sum(stress * strain), rel=1e-4)

    def test_offset_is_of_the_composition(self):
        potential, params = water()
        two, relative = liquid(), liquid()
        two.calc, relative.calc = (
            PotentialCalculator(potential, params),
            PotentialCalculator(potential, params, offset=0.0),
        )
        assert two.get_potential_energy() - relative.get_potential_energy() == pytest.approx(2 * OFFSET)
        peroxide = Atoms("H2O2", np.eye(4)[:, :3] * 1.2, calculator=PotentialCalculator(potential, params))
        with pytest.raises(ValueError, match="own composition or a multiple of it, .* pass `offset`"):
            peroxide.get_potential_energy()
        peroxide.calc = PotentialCalculator(potential, params, offset=0.0)
        assert abs(peroxide.get_potential_energy()) < 100

    def test_what_it_cannot_do_is_said(self):
        potential, params = water(MODELS["nequip"])
        alcohol = molecule("CH3OH")
        alcohol.calc = PotentialCalculator(potential, params, offset=0.0)
        with pytest.raises(ValueError, match=r"expected atoms of the elements \[1, 8\], got atomic number 6"):
            alcohol.get_potential_energy()
        broken = rattled()
        broken.calc = PotentialCalculator(potential, jax.tree.map(lambda leaf: leaf * jnp.nan, params))
        with pytest.raises(ValueError, match="expected finite energy and forces"):
            broken.get_potential_energy()
        with pytest.raises(ValueError, match="got one of an energy function, which cannot be applied to other atoms"):
            PotentialCalculator(from_energy(lambda k, x: k * jnp.sum(x**2), num_atoms=2), 1.0)
        with pytest.raises(ValueError, match="a model with a scale for each atom"):
            PotentialCalculator(bind(MODELS["nequip"], [8, 1, 1], scale=np.ones(3)), params)

    def test_atoms_that_are_alone_have_no_pairs(self):
        potential, params = water()
        apart = Atoms("OH2", 50.0 * np.eye(3), calculator=PotentialCalculator(potential, params))
        assert np.abs(apart.get_forces()).max() == 0 and np.isfinite(apart.get_potential_energy())

    def test_workflows_of_ase_run(self, tmp_path, x64):
        """Relaxation, vibrations as second differences of the energy, and a trajectory that keeps its energy."""
        model = SchNet(num_blocks=1, num_features=8, num_filters=8, cutoff=4.0)
        potential = bind(model, [8, 1, 1])
        atoms = rattled()
        atoms.calc = PotentialCalculator(potential, potential.init(jax.random.key(3)))
        first = atoms.get_potential_energy()
        BFGS(atoms, logfile=None).run(fmax=1e-4, steps=100)
        assert atoms.get_potential_energy() < first and np.abs(atoms.get_forces()).max() < 1e-4
        vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3)
        vibrations.run()
        hessian = vibrations.get_vibrations().get_hessian_2d()
        position = jnp.asarray(atoms.positions)
        exact = jax.hessian(lambda x: potential.energy(atoms.calc.params, x.reshape(3, 3)))(position.reshape(-1))
        np.testing.assert_allclose(hessian, exact, atol=1e-3 * np.abs(exact).max())
        atoms.set_momenta(0.3 * np.random.default_rng(0).normal(size=(3, 3)))
        total = atoms.get_total_energy()
        VelocityVerlet(atoms, 0.25 * units.fs).run(100)
        assert atoms.get_total_energy() == pytest.approx(total, abs=2e-4)


def test_an_exported_function_runs_without_the_library(tmp_path):
    potential, params = water()
    position = rattled().positions.astype(np.float32)
    (tmp_path / "mine.stablehlo").write_bytes(exported.to_bytes(potential, params, platforms=["cpu"]))
    np.save(tmp_path / "x.npy", position)
    code = (
        "import sys; sys.modules['stablejax'] = sys.modules['flax'] = None\n"
        "import numpy as np; from jax import export\n"
        "fn = export.deserialize(bytearray(open('mine.stablehlo', 'rb').read()))\n"
        "energy, forces = fn.call(np.load('x.npy')); print(float(energy)); np.save('f.npy', forces)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    energy, forces = potential.energy_and_forces(params, jnp.asarray(position))
    assert float(run.stdout) == pytest.approx(float(energy), abs=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), forces, atol=1e-6)


def test_the_package_comes_up_without_other_programs():
    code = "import sys, stablejax; stablejax.bind; print(*{'ase', 'safetensors'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
