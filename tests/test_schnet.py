"""SchNet against the released checkpoint, its symmetries, and its fast form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import potential
from stablejax.models import schnet
from stablejax.models.schnet import SchNet

SPECIES = np.array([6, 8, 1, 1, 6, 1, 8])


@pytest.fixture
def bound():
    model = SchNet(num_features=16, num_filters=16, num_blocks=2)
    system = potential.bind(model, SPECIES)
    return model, system, system.init(jax.random.key(0))


@pytest.fixture
def position():
    return jnp.asarray(np.random.default_rng(0).normal(size=(len(SPECIES), 3)) * 1.5, jnp.float32)


def released(shared):
    file = np.load(shared / "reference" / "schnet_aspirin_pretrained.npz")
    model, params = schnet.from_torch({name[6:]: file[name] for name in file if name.startswith("param/")})
    return file, model, params


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_released_weights_give_their_energies_and_forces(dtype, tolerance, shared, x64):
    file, model, params = released(shared)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    system = potential.bind(model, file["atomic_numbers"])
    position = jnp.asarray(file["positions"], dtype)
    energy, force = jax.jit(jax.vmap(potential.energy_and_forces(system.energy), (None, 0)))(params, position)
    per_atom = jax.jit(jax.vmap(system.atom_energies, (None, 0)))(params, position)
    assert energy.dtype == dtype
    assert np.abs(energy - file["energies"]).max() < tolerance
    assert np.abs(per_atom - file["atom_energies"]).max() < tolerance
    assert np.abs(force - file["forces"]).max() < 2 * tolerance  # |F| reaches 7 eV/Å


def test_parameter_count_is_the_papers():
    params = potential.bind(SchNet(), SPECIES).init(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 117_953


def test_import_names_what_is_wrong(shared):
    file, _, _ = released(shared)
    state = {name[6:]: file[name] for name in file if name.startswith("param/")}
    with pytest.raises(ValueError, match=r"got `module\.lin1\.weight`"):
        schnet.from_torch(state | {"module.lin1.weight": state["lin1.weight"]})
    with pytest.raises(ValueError, match=r"expected `distance_expansion\.offset`, which is missing"):
        schnet.from_torch({name: array for name, array in state.items() if "offset" not in name})


def test_invariant_under_rotation_translation_reflection_and_not_under_shear(bound, position):
    _, system, params = bound
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    energy = float(system.energy(params, position))
    assert float(system.energy(params, position @ rotation.astype(np.float32))) == pytest.approx(energy, abs=2e-5)
    assert float(system.energy(params, -position)) == pytest.approx(energy, abs=2e-5)
    assert float(system.energy(params, position + 3.0)) == pytest.approx(energy, abs=2e-5)
    shear = np.eye(3, dtype=np.float32) + np.array([[0, 0.1, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    assert abs(float(system.energy(params, position @ shear)) - energy) > 1e-3


def test_like_atoms_are_exchangeable_and_unlike_are_not(bound, position):
    _, system, params = bound
    like, unlike = np.arange(7), np.arange(7)
    like[[2, 3]] = [3, 2]
    unlike[[0, 1]] = [1, 0]
    energy = system.atom_energies(params, position)
    np.testing.assert_allclose(system.atom_energies(params, position[like]), energy[like], atol=1e-5)
    assert abs(float(system.energy(params, position[unlike]) - energy.sum())) > 1e-3


def test_forces_are_finite_differences(bound, position, x64):
    _, system, params = bound
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    position = position.astype(np.float64)
    force = potential.energy_and_forces(system.energy)(params, position)[1]
    direction = jnp.asarray(np.random.default_rng(2).normal(size=position.shape))
    step = 1e-5
    slope = (
        system.energy(params, position + step * direction) - system.energy(params, position - step * direction)
    ) / (2 * step)
    assert float(jnp.abs(force).max()) > 1e-3
    assert float(slope) == pytest.approx(-float(jnp.vdot(force, direction)), rel=1e-7)


def test_no_nan_at_coinciding_or_isolated_atoms(bound, position):
    _, system, params = bound
    for changed in (position.at[1].set(position[0]), position.at[1].add(100.0)):
        energy, force = potential.energy_and_forces(system.energy)(params, changed)
        assert np.isfinite(energy)
        assert np.isfinite(force).all()


def test_nothing_is_felt_beyond_the_cutoff_and_something_within(bound):
    model, _, _ = bound
    system = potential.bind(model, [6, 6])
    params = system.init(jax.random.key(1))

    def energy(distance):
        return system.energy(params, jnp.array([[0.0, 0, 0], [distance, 0, 0]]))

    force = jax.grad(energy)
    assert float(energy(5.0)) == float(energy(7.0))
    assert float(force(5.001)) == 0.0
    assert abs(float(force(4.9999))) < 1e-4
    assert abs(float(energy(4.0) - energy(7.0))) > 1e-4


def test_tabulated_forces_converge_to_the_exact_ones_as_the_cube(bound):
    model, system, params = bound
    positions = jnp.asarray(np.random.default_rng(3).normal(size=(64, len(SPECIES), 3)) * 1.5, jnp.float32)
    exact = jax.vmap(potential.energy_and_forces(system.energy), (None, 0))(params, positions)

    def error(num_intervals):
        form = system.fast(num_intervals)
        prepared = form.prepare(params)
        energy, force = jax.vmap(potential.energy_and_forces(form.prepared_energy), (None, 0))(prepared, positions)
        np.testing.assert_allclose(energy, exact[0], atol=2e-3)
        return np.asarray(force - exact[1])

    errors = [np.sqrt(np.mean(error(n) ** 2)) for n in (48, 96)]
    assert 6 < errors[0] / errors[1] < 10
    assert np.abs(error(1024)).max() < 1e-5 * float(jnp.abs(exact[1]).max()) + 2e-6


def test_tabulated_forces_of_the_released_model_are_within_float32(shared):
    file, model, params = released(shared)
    form = potential.bind(model, file["atomic_numbers"]).fast()
    prepared = form.prepare(jax.tree.map(jnp.asarray, params))
    force = jax.vmap(potential.energy_and_forces(form.prepared_energy), (None, 0))(
        prepared, jnp.asarray(file["positions"], jnp.float32)
    )[1]
    assert np.abs(force - file["forces"]).max() < 5e-5


def test_one_trace_and_jit_is_eager(bound, position):
    _, system, params = bound
    traces = []

    @jax.jit
    def energy(params, position):
        traces.append(None)
        return system.energy(params, position)

    for shift in (0.0, 1.0):
        np.testing.assert_allclose(energy(params, position + shift), system.energy(params, position + shift), atol=1e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("species", [np.ones((2, 2), int), np.ones(3)])
def test_species_have_to_be_integers_in_a_row(species):
    with pytest.raises(ValueError, match="`species` must be one-dimensional integers"):
        potential.bind(SchNet(), species)
