"""One contract for all models, ours and others': symmetries, forces, locality, padding, periodic images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax_md import energy as md_energy
from jax_md import space

from stablejax import named, potential
from stablejax.energy_functions import from_atom_energies
from stablejax.forms import with_longer_lists
from stablejax.models.gemnet import GemNetT
from stablejax.models.nequip import NequIP
from stablejax.models.protocol import ModelData
from stablejax.models.schnet import SchNet
from stablejax.potential import Potential
from stablejax.space import OPEN, Pairs, all_pairs, pad_pairs, periodic

SPECIES = np.array([6, 8, 1, 1, 6, 1, 8])
CUTOFF = 4.0


def of_others(species, init, atom_energies):
    return from_atom_energies(atom_energies, num_atoms=len(species), cutoff=CUTOFF, init=init)


def lennard_jones(species, **_):
    """jax-md's classical pair potential as a potential of ours."""
    fn = md_energy.lennard_jones_pair(space.free()[0], r_onset=3.0, r_cutoff=CUTOFF, per_particle=True)
    init = lambda key: {"sigma": jnp.float32(1.3), "epsilon": jnp.float32(0.02)}  # noqa: E731
    return of_others(species, init, lambda params, position, _: fn(position, **params))


def behler_parrinello(species, **_):
    """jax-md's neural network potential as a potential of ours."""

    def build(key):
        fn = md_energy.behler_parrinello(
            space.free()[0],
            key=key,
            mlp_sizes=(8,),
            per_particle=True,
            sym_kwargs={"cutoff_distance": CUTOFF, "radial_etas": np.array([0.2, 1.0], np.float32)},
        )
        return nnx.split(fn.model, nnx.Param, ...)

    graph, _, rest = build(jax.random.key(0))
    return of_others(
        species, lambda key: build(key)[1], lambda params, position, _: nnx.merge(graph, params, rest)(position)[:, 0]
    )


def bound(make):
    return lambda species, **options: potential.bind(make(), species, **options)


class Case(NamedTuple):
    build: Callable[..., Potential]
    is_ours: bool = True  # takes pairs, cells and elements
    has_reflection: bool = True
    has_float64: bool = True


NEQUIP = dict(elements=(1, 6, 8), num_features=8, num_layers=2, radial_widths=(8,), cutoff=CUTOFF)
GEMNET = dict(num_blocks=2, atom_size=16, edge_size=16, triplet_size=8, bilinear_size=8, num_degrees=4, cutoff=CUTOFF)
CASES = {
    "schnet": Case(bound(lambda: SchNet(num_features=16, num_filters=16, num_blocks=2, cutoff=CUTOFF))),
    "nequip": Case(bound(lambda: NequIP(**NEQUIP))),
    "nequip-degree-2": Case(bound(lambda: NequIP(**NEQUIP, max_degree=2))),
    "nequip-degree-3": Case(bound(lambda: NequIP(**NEQUIP, max_degree=3))),
    "nequip-one-parity": Case(
        bound(lambda: NequIP(**NEQUIP | {"num_layers": 3}, has_parity=False)), has_reflection=False
    ),
    "gemnet": Case(bound(lambda: GemNetT(**GEMNET))),
    "lennard-jones": Case(lennard_jones, is_ours=False),
    "behler-parrinello": Case(behler_parrinello, is_ours=False, has_float64=False),
}


def parametrize(names):
    """Large tensor products take long to compile."""
    is_slow = {"nequip-degree-2", "nequip-degree-3", "nequip-one-parity"}
    marked = [pytest.param(name, marks=pytest.mark.slow) if name in is_slow else name for name in names]
    return pytest.mark.parametrize("name", marked)


# Each model of the table: one that has no case here fails every test.
OURS = [*named.MODELS, *(name for name, case in CASES.items() if case.is_ours and name not in named.MODELS)]
every_model = parametrize([*OURS, *(name for name, case in CASES.items() if not case.is_ours)])
our_models = parametrize(OURS)


@pytest.fixture(scope="module")
def position():
    """Atoms from 0.9 Å apart, all within reach of some other."""
    rng, placed = np.random.default_rng(0), [np.zeros(3)]
    while len(placed) < len(SPECIES):
        candidate = rng.uniform(-2, 2, 3)
        if min(np.linalg.norm(candidate - other) for other in placed) > 0.9:
            placed.append(candidate)
    return jnp.asarray(placed, jnp.float32)


@cache
def parameters(name, num_atoms):
    """They do not depend on the species, so that they serve for all molecules of a size."""
    with jax.enable_x64(False):  # they are kept for tests of both precisions
        return jax.jit(CASES[name].build(np.full(num_atoms, 6)).init)(jax.random.key(0))


@cache
def compiled(name, species):
    with jax.enable_x64(False):
        return with_compiled_energies(CASES[name].build(np.array(species)))


def with_compiled_energies(system):
    return replace(system, evaluate=jax.jit(system.evaluate))


def made(name, species=SPECIES, **options):
    """A model bound to atoms, its atom energies compiled, and parameters."""
    if options:
        system = with_compiled_energies(CASES[name].build(species, **options))
    else:
        system = compiled(name, tuple(species.tolist()))
    return system, parameters(name, len(species))


def in_best_precision(name, tree):
    """As float64, where the model knows it, and what then counts as equal."""
    dtype, tolerance = (np.float64, 1e-10) if CASES[name].has_float64 else (np.float32, 2e-5)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree), tolerance


@every_model
def test_symmetries_and_what_is_none(name, position, x64):
    system, params = made(name)
    (params, position), tolerance = in_best_precision(name, (params, position))
    energy = jax.jit(system.energy)
    whole = float(energy(params, position))
    tolerance *= float(jnp.abs(system.atom_energies(params, position)).sum())
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0].astype(position.dtype)
    rotation *= np.sign(np.linalg.det(rotation))
    for same in (position @ rotation, position + 3.0):
        assert float(energy(params, same)) == pytest.approx(whole, abs=tolerance)
    reflected = float(energy(params, -position))
    assert (abs(reflected - whole) < tolerance) == CASES[name].has_reflection
    shear = np.eye(3, dtype=position.dtype) + np.array([[0, 0.1, 0], [0, 0, 0], [0, 0, 0]], position.dtype)
    assert abs(float(energy(params, position @ shear)) - whole) > 10 * tolerance


@every_model
def test_like_atoms_are_exchangeable_and_unlike_are_not(name, position):
    system, params = made(name)
    like, unlike = np.arange(7), np.arange(7)
    like[[2, 3]], unlike[[0, 1]] = [3, 2], [1, 0]
    energies = system.atom_energies(params, position)
    tolerance = 2e-5 * float(jnp.abs(energies).sum())
    np.testing.assert_allclose(system.atom_energies(params, position[like]), energies[like], atol=tolerance)
    if CASES[name].is_ours:
        assert abs(float(system.energy(params, position[unlike]) - energies.sum())) > 2 * tolerance


@every_model
def test_forces_are_finite_differences(name, position, x64):
    system, params = made(name)
    (params, position), tolerance = in_best_precision(name, (params, position))
    _, force = jax.jit(potential.energy_and_forces(system.energy))(params, position)
    assert force.dtype == position.dtype
    direction = jnp.asarray(np.random.default_rng(2).normal(size=position.shape), position.dtype)
    fn = jax.jit(lambda step: system.energy(params, position + step * direction))
    step = 0.1 * tolerance**0.5
    slope = float(fn(step) - fn(-step)) / (2 * step)
    assert abs(slope) > 1e-4
    assert slope == pytest.approx(-float(jnp.vdot(force, direction)), rel=1e3 * tolerance)


@every_model
def test_what_is_beyond_the_cutoff_is_not_felt_and_what_is_within_is(name, position):
    species = np.append(SPECIES, 6)
    system, params = made(name, species)
    atoms = jax.jit(system.atom_energies)
    force_of_probe = jax.jit(jax.grad(lambda probe: system.energy(params, jnp.vstack([position, probe]))))
    far = float(jnp.abs(position).max()) + CUTOFF

    def with_probe(x):
        return atoms(params, jnp.vstack([position, jnp.array([x, 0.0, 0.0])]))

    np.testing.assert_allclose(with_probe(far + 0.1), with_probe(far + 9.0), atol=1e-6)
    assert jnp.abs(force_of_probe(jnp.array([far + 0.1, 0.0, 0.0]))).max() == 0
    assert jnp.abs(with_probe(far - 2.5)[:-1] - with_probe(far + 9.0)[:-1]).max() > 1e-6


@our_models
def test_energy_and_force_go_to_zero_at_the_cutoff(name):
    system, params = made(name, np.array([6, 8]))
    energy = jax.jit(lambda r: system.energy(params, jnp.array([[0.0, 0.0, 0.0], [r, 0.0, 0.0]])))
    force = jax.jit(jax.grad(energy))
    alone = float(energy(2 * CUTOFF))
    assert float(energy(CUTOFF - 1e-3)) == pytest.approx(alone, abs=1e-5)
    assert abs(float(force(CUTOFF - 1e-3))) < 1e-2 * abs(float(force(CUTOFF - 1.0)))
    assert abs(float(energy(CUTOFF - 2.0)) - alone) > 1e-4


@every_model
def test_two_distant_copies_have_twice_the_energy(name, position):
    system, params = made(name)
    double, _ = made(name, np.tile(SPECIES, 2))
    energies = double.atom_energies(params, jnp.vstack([position, position + 50.0]))
    np.testing.assert_allclose(energies, np.tile(system.atom_energies(params, position), 2), atol=2e-5)


@our_models
def test_padding_and_pairs_beyond_the_cutoff_change_nothing(name, position):
    system, params = made(name)
    spread = position * 1.8
    every = all_pairs(len(SPECIES))
    is_near = np.asarray(OPEN.distances(spread, every)) < CUTOFF
    assert 0 < is_near.sum() < len(is_near)
    near = Pairs(every.first[is_near], every.second[is_near])
    fn = lambda pairs: jax.jit(jax.value_and_grad(system.energy, argnums=1))(params, spread, pairs)  # noqa: E731
    energy, gradient = fn(near)
    for pairs in (pad_pairs(near, 40, num_atoms=7), every):
        other, other_gradient = fn(pairs)
        np.testing.assert_allclose(other, energy, rtol=2e-6)
        np.testing.assert_allclose(other_gradient, gradient, atol=5e-6 * float(jnp.abs(gradient).max()))


@every_model
def test_no_nan_where_an_atom_is_far_away(name, position):
    system, params = made(name)
    assert_finite(potential.energy_and_forces(system.energy)(params, position.at[1].add(100.0)))


@our_models
def test_no_nan_where_atoms_coincide(name, position):
    system, params = made(name)
    assert_finite(potential.energy_and_forces(system.energy)(params, position.at[1].set(position[0])))


def assert_finite(tree):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@every_model
def test_one_trace_and_frames_side_by_side_are_frames_in_turn(name, position):
    system, params = made(name)
    frames, traces = jnp.stack([position, 1.1 * position, position + 1.0]), []

    @jax.jit
    def energy(params, position):
        traces.append(None)
        return system.energy(params, position)

    in_turn = [energy(params, frame) for frame in frames]
    assert len(traces) == 1
    np.testing.assert_allclose(jax.vmap(system.energy, (None, 0))(params, frames), in_turn, rtol=1e-5, atol=1e-5)


@our_models
def test_periodic_images(name, position):
    cell = np.array([[9.0, 0.0, 0.0], [1.0, 10.0, 0.0], [-0.5, 0.7, 11.0]])
    open_system, params = made(name)
    system, _ = made(name, space=periodic(cell))
    energies = system.atom_energies(params, position)
    np.testing.assert_allclose(energies, open_system.atom_energies(params, position), atol=2e-5)  # fits into the cell
    moved = position.at[2].add(jnp.asarray(cell[0] - 2 * cell[1], jnp.float32))
    np.testing.assert_allclose(system.atom_energies(params, moved), energies, atol=5e-5)
    outside = jnp.abs(open_system.atom_energies(params, moved) - energies).max()
    assert outside > 1e-3 * jnp.abs(energies).max()


@our_models
@pytest.mark.parametrize(
    ("reach", "cell"),
    [("3.500", np.diag([9.0, 7.0, 9.0])), ("3.878", np.array([[9.5, 0, 0], [4.75, 9.5, 0], [4.75, 0, 9.5]]))],
)
def test_cells_that_are_too_small_are_refused(name, reach, cell):
    with pytest.raises(ValueError, match=f"`bind`: expected distances of at most {reach} Å, .*, got 4 Å"):
        made(name, space=periodic(cell))


@our_models
def test_unknown_elements_are_named(name):
    with pytest.raises(ValueError, match="`species` has atomic number 118, which the model does not support"):
        made(name, np.array([1, 118]))


WATERS = ModelData(
    species=np.tile([8, 1, 1], 2),
    position=np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], np.float32)[None, [0, 1, 2, 0, 1, 2]]
    + np.array([0, 0, 0, 4.9, 4.9, 4.9], np.float32)[:, None],
    space=periodic(10.0 * np.eye(3)),
    key=jax.random.key(0),
)
SIZES = {
    "nequip": dict(num_features=2, num_layers=1, max_degree=1, num_basis=8, radial_width=4),
    "gemnet": dict(
        num_blocks=1, atom_size=4, edge_size=4, triplet_size=4, bilinear_size=4, num_spherical=2, num_radial=6
    ),
}


def test_models_by_name_take_from_the_data_what_they_need():
    """Elements, neighbors within the cutoff, and factors that are fitted to the frames."""
    model = named.make_model("nequip", WATERS, SIZES["nequip"] | {"cutoff": 3.0})
    assert (model.elements, model.num_neighbors, model.radial_widths) == ((1, 8), 2.0, (4, 4))
    scales = named.make_model("gemnet", WATERS, SIZES["gemnet"] | {"cutoff": 3.0}).scales
    assert len(scales) == 5 and np.abs(np.log(scales)).max() > 0.1


def test_models_by_name_are_told_each_of_their_sizes():
    with pytest.raises(ValueError, match="expected one of gemnet, nequip, schnet, got 'shnet': did you mean schnet?"):
        named.make_model("shnet", WATERS, {})
    expected = (
        "expected cutoff, max_degree, num_basis, num_features, num_layers, radial_width for nequip, got cutoff, num_"
    )
    with pytest.raises(ValueError, match=expected):
        named.make_model("nequip", WATERS, {"num_filters": 4, "cutoff": 3.0})


def test_pairs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="21 pairs do not fit into `num_pairs` = 20"):
        pad_pairs(all_pairs(7), 20, num_atoms=7)


@our_models
def test_a_scale_multiplies_the_energy_of_each_atom(name, position):
    scale = np.linspace(0.5, 2.0, 7)
    system, params = made(name)
    scaled, _ = made(name, scale=scale)
    np.testing.assert_allclose(
        scaled.atom_energies(params, position), scale * system.atom_energies(params, position), rtol=1e-5
    )


@pytest.mark.parametrize("scale", [pytest.param(2.0, marks=pytest.mark.slow), np.linspace(0.5, 2.0, 90)])
@pytest.mark.parametrize("is_fast", [False, True])
def test_forms_are_the_potential_itself_and_say_where_they_are_not(is_fast, scale):
    """In a cell, exact and with tables; where pairs may be missing energy and forces are not numbers."""
    rng = np.random.default_rng(0)
    model, species = SchNet(num_features=8, num_filters=8, num_blocks=1), np.tile([8, 1, 1], 30)
    position = jnp.asarray(12.0 * rng.random((90, 3)), jnp.float32)
    system = potential.bind(model, species, space=periodic(12.0 * np.eye(3)), scale=scale)
    params = system.init(jax.random.key(0))
    num_near = int((system.space.distances(position, all_pairs(90)) < 5.5).sum())
    assert 500 < num_near < 0.6 * 90 * 89 / 2
    exact, exact_forces = system.energy_and_forces(params, position)
    whole, tolerance = (system.fast(), 2e-4) if is_fast else (system, 1e-5)
    np.testing.assert_allclose(whole.energy(params, position), exact, rtol=1e-5)
    for capacity in (num_near, num_near + 50):
        form = whole.with_lists(skin=0.5, num_pairs=capacity)
        energy_and_gradient = jax.jit(jax.value_and_grad(form.prepared_energy, argnums=1))
        prepared, listed = form.prepare(params), form.lists.init(position)
        energy, gradient = energy_and_gradient(prepared, position, listed)
        np.testing.assert_allclose(energy, exact, rtol=1e-5)
        np.testing.assert_allclose(-gradient, exact_forces, atol=2 * tolerance)
        moved = position.at[3, 0].add(0.24)
        energy, _ = energy_and_gradient(prepared, moved, listed)
        np.testing.assert_allclose(energy, system.energy(params, moved), rtol=1e-5)
        assert np.isnan(energy_and_gradient(prepared, position.at[3, 0].add(0.26), listed)[1]).all()
    short = whole.with_lists(skin=0.5, num_pairs=num_near - 1)
    energy, gradient = jax.value_and_grad(short.prepared_energy, argnums=1)(
        prepared, position, short.lists.init(position)
    )
    assert np.isnan(energy) and np.isnan(gradient).all()
    np.testing.assert_allclose(form.energy(params, position), exact, rtol=1e-5)
    assert np.isnan(short.energy(params, position))
    np.testing.assert_allclose(with_longer_lists(short).energy(params, position), exact, rtol=1e-5)
