"""One owner of evaluation: shapes, forms, scale, offset, and a subset of parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from harmonic import LENGTH, Springs

from stablejax import SchNet, bind, forms, from_atom_energies, from_energy, periodic
from stablejax.models.protocol import Model, RadialFilters
from stablejax.space import OPEN, all_pairs

SPECIES = np.array([8, 1, 1])
POSITION = jnp.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
MODEL = SchNet(num_features=8, num_filters=8, num_blocks=2)


@pytest.fixture(scope="module")
def bound():
    potential = bind(MODEL, SPECIES, scale=np.array([2.0, 1.0, 0.5]), offset=-2000.5)
    return potential, potential.init(jax.random.key(0))


@pytest.mark.parametrize("shape", [(6, 3), (2, 3), (5, 3, 3), (3, 2)])
def test_positions_of_another_shape_are_refused_when_traced(shape, bound):
    potential, params = bound
    message = rf"expected positions of one frame, \(3, 3\), got \({', '.join(map(str, shape))}\)"
    for fn in (potential.energy, potential.forces, potential.fast(64).energy, potential.atom_energies):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(fn, params, jnp.zeros(shape))


def test_scale_and_offset_belong_to_every_form(bound):
    potential, params = bound
    plain = bind(MODEL, SPECIES).atom_energies(params, POSITION)
    np.testing.assert_allclose(potential.atom_energies(params, POSITION), plain * jnp.array([2.0, 1, 0.5]), rtol=1e-5)
    lists = dict(skin=0.5, num_pairs=3)
    for form in (potential.fast(), potential.with_lists(**lists), potential.fast().with_lists(**lists)):
        np.testing.assert_allclose(form.energy(params, POSITION), potential.energy(params, POSITION), rtol=1e-4)
        assert form.offset == -2000.5 and form.cutoff == MODEL.cutoff
    energy, force = potential.energy_and_forces(params, POSITION)
    np.testing.assert_allclose(force, -jax.grad(potential.energy, argnums=1)(params, POSITION), rtol=1e-6)
    assert float(energy) == pytest.approx(float(potential.energy(params, POSITION)))


def test_tables_have_the_gradient_of_the_network_in_every_weight(bound):
    potential, params = bound
    exact = jax.grad(potential.energy)(params, POSITION)
    found = jax.grad(potential.fast(2048).energy)(params, POSITION)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(exact))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3 * largest), found, exact)
    assert float(jnp.abs(exact["params"]["filter_in_0"]["kernel"]).max()) > 1e-3 * largest


def test_a_subset_of_the_parameters_is_a_potential_of_its_own(bound):
    potential, params = bound
    part, subset = forms.trainable(potential, params, lambda name: name.startswith("params/readout"))
    assert len(jax.tree.leaves(subset)) == 4 < len(jax.tree.leaves(params))
    for form in (part, part.fast(64)):
        np.testing.assert_allclose(form.energy(subset, POSITION), potential.energy(params, POSITION), rtol=1e-3)
    gradient = jax.grad(part.energy)(subset, POSITION)
    whole = jax.grad(potential.energy)(params, POSITION)
    np.testing.assert_allclose(
        gradient["params"]["readout_in"]["kernel"], whole["params"]["readout_in"]["kernel"], rtol=1e-4
    )
    moved = jax.tree.map(lambda leaf: leaf + 1.0, subset)
    assert abs(float(part.energy(moved, POSITION) - potential.energy(params, POSITION))) > 0.1
    with pytest.raises(ValueError, match="expected at least one trainable leaf"):
        forms.trainable(potential, params, lambda name: name == "nothing")


def test_lists_are_given_where_there_are_any_and_only_there(bound):
    potential, params = bound
    listed = potential.with_lists(skin=0.5, num_pairs=3)
    with pytest.raises(ValueError, match="expected a neighbor list, got NoneType: pass `potential.lists.init"):
        listed.prepared_energy(params, POSITION)
    with pytest.raises(ValueError, match="expected no neighbor list, got NeighborList"):
        potential.prepared_energy(params, POSITION, listed.lists.init(POSITION))
    with pytest.raises(ValueError, match="expected a potential with lists"):
        forms.with_longer_lists(potential)
    assert forms.with_longer_lists(listed).lists.num_pairs == 3  # all there are
    with pytest.raises(ValueError, match="`neighbor_lists`: expected distances of at most 5.250 Å"):
        bind(MODEL, SPECIES, space=periodic(10.5 * np.eye(3))).with_lists(skin=0.5, num_pairs=3)


class WithoutElements(nn.Module):
    cutoff: float = 3.0

    @nn.compact
    def __call__(self, species, pairs, vector):
        return jnp.zeros(len(species)) * self.param("zero", lambda _: jnp.zeros(()))


class WithoutCall(nn.Module):
    cutoff: float = 3.0
    elements: tuple[int, ...] = (1, 8)


@pytest.mark.parametrize(
    ("model", "missing"),
    [(WithoutElements(), "`elements`"), (WithoutCall(), "`__call__`"), (nn.Dense(3), "`cutoff`, ")],
)
def test_a_model_that_lacks_something_is_told_what(model, missing):
    message = f"expected a model with .*`cutoff`, .*got {type(model).__name__} without {missing}.*models.protocol.Model"
    with pytest.raises(ValueError, match=message):
        bind(model, SPECIES)


def test_any_module_with_what_is_asked_for_is_a_model():
    """Without radial filters its fast form is itself."""
    potential = bind(Springs(), SPECIES)
    assert isinstance(Springs(), Model) and not isinstance(Springs(), RadialFilters)
    params = potential.init(jax.random.key(0))
    expected = 0.5 * 20.0 * float(jnp.sum((OPEN.distances(POSITION, all_pairs(3)) - LENGTH) ** 2))
    assert float(potential.fast().energy(params, POSITION)) == pytest.approx(expected, rel=1e-5)
    assert potential.fast() is potential
    schnet = bind(MODEL, SPECIES)
    assert isinstance(MODEL, RadialFilters) and schnet.fast() is not schnet


def test_any_function_is_a_potential():
    well = from_energy(lambda k, x: 0.5 * k * jnp.sum(x**2), num_atoms=2, offset=3.0)
    position = jnp.ones((2, 3))
    assert float(well.energy(2.0, position)) == 6.0
    np.testing.assert_array_equal(well.forces(2.0, position), -2.0)
    assert well.fast() is well and well.offset == 3.0
    for call, message in (
        (lambda: well.atom_energies(2.0, position), "made from a total energy"),
        (lambda: well.with_lists(skin=1.0, num_pairs=1), "expected a potential of pairs with a cutoff"),
        (lambda: well.init(jax.random.key(0)), "expected a potential made with `init`"),
        (lambda: well.energy(2.0, jnp.ones((3, 3))), "expected positions of one frame"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def springs(k, position, pairs):
    half = jnp.where(pairs.first < 3, 0.25 * k * jnp.exp(-OPEN.distances(position, pairs)), 0.0)
    return jnp.zeros(3).at[pairs.first].add(half, mode="drop").at[pairs.second].add(half, mode="drop")


def test_energies_over_a_list_that_is_not_whole_are_no_numbers():
    """Of one with too little room for all pairs, and of one that was made where atoms are no more."""
    potential = from_atom_energies(springs, num_atoms=3, cutoff=4.0)
    for num_pairs, is_whole in ((3, True), (2, False)):
        listed = potential.with_lists(skin=0.5, num_pairs=num_pairs)
        alone = listed.energy(1.0, POSITION), listed.atom_energies(1.0, POSITION)
        in_dynamics = listed.prepared_energy(1.0, POSITION, listed.lists.init(POSITION))
        assert all(bool(jnp.isfinite(values).all()) == is_whole for values in (*alone, in_dynamics))
    whole = potential.with_lists(skin=0.5, num_pairs=3)
    for moved, is_covered in ((0.2, True), (0.3, False)):
        energy = whole.prepared_energy(1.0, POSITION.at[1, 2].add(moved), whole.lists.init(POSITION))
        assert bool(jnp.isfinite(energy)) == is_covered


def test_any_function_of_pairs_has_energies_of_atoms_and_lists():
    potential = from_atom_energies(springs, num_atoms=3, cutoff=4.0)
    expected = float(0.5 * jnp.sum(jnp.exp(-OPEN.distances(POSITION, all_pairs(3)))))
    assert float(potential.energy(1.0, POSITION)) == pytest.approx(expected, rel=1e-5)
    listed = potential.with_lists(skin=0.5, num_pairs=3)
    np.testing.assert_allclose(listed.atom_energies(1.0, POSITION), potential.atom_energies(1.0, POSITION), rtol=1e-6)


def test_species_may_be_traced():
    """A sweep over elements in one program."""
    params = bind(MODEL, SPECIES).init(jax.random.key(0))
    energy = lambda species: bind(MODEL, species).energy(params, POSITION)  # noqa: E731
    found = jax.jit(jax.vmap(energy))(jnp.array([[8, 1, 1], [7, 1, 1]]))
    np.testing.assert_allclose(found, [energy(SPECIES), energy(np.array([7, 1, 1]))], rtol=1e-5)
    assert abs(float(found[0] - found[1])) > 1e-4


def test_an_ensemble_is_the_mean_of_its_members_in_every_form(bound):
    potential, _ = bound
    members = [potential.init(jax.random.key(seed)) for seed in range(3)]
    together = forms.ensemble(potential)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    expected = np.mean([potential.atom_energies(one, POSITION) for one in members], axis=0)
    np.testing.assert_allclose(together.atom_energies(params, POSITION), expected, rtol=1e-5)
    lists = dict(skin=0.5, num_pairs=3)
    for form in (together.fast(), together.with_lists(**lists), together.fast().with_lists(**lists)):
        np.testing.assert_allclose(form.energy(params, POSITION), expected.sum(), rtol=1e-5)
    first = together.init(jax.random.key(0))
    np.testing.assert_allclose(together.energy(first, POSITION), potential.energy(members[0], POSITION), rtol=1e-5)
