"""Neighbor lists in dynamics: made when they have to be, shared by replicas side by side, repaired where overfull."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import standard_error

from stablejax import dynamics, parallel, units
from stablejax.geometry import all_pairs, most_pairs, neighbor_lists, pair_distances
from stablejax.potential import MDForm, listed_form

BOX, CUTOFF, NUM_ATOMS = 13.0, 4.5, 64
CELL = BOX * np.eye(3)
KT, DT = units.thermal_energy(300.0), 2 * units.FEMTOSECOND
MASS = jnp.full(NUM_ATOMS, 10.0)
START = jnp.asarray(np.argwhere(np.ones((4, 4, 4))) * BOX / 4, jnp.float32)


def soft_spheres(_, position, pairs=None):
    """Repulsion that ends smoothly at the cutoff."""
    pairs = all_pairs(NUM_ATOMS) if pairs is None else pairs
    is_pair = jnp.asarray(pairs.first) < NUM_ATOMS
    scaled = jnp.where(is_pair, pair_distances(position, pairs, CELL) / CUTOFF, 1.0)
    return 2.0 * jnp.sum(jnp.where(scaled < 1, (1 - scaled) ** 3, 0.0))


WHOLE = MDForm(prepare=lambda params: params, energy=soft_spheres)
REACH = dict(cutoff=CUTOFF, skin=0.6, cell=CELL)


def engine(lists=None):
    form = WHOLE if lists is None else listed_form(WHOLE, lists)
    return dynamics.langevin(form.energy, MASS, kT=KT, timestep=DT, friction=0.01, lists=form.lists)


def never(position):
    return -1.0 + 0.0 * position[0, 0]


def run(integrator, keys, start, *, batch_size, num_steps):
    def one(_, key):
        replica = dynamics.init_replica(integrator, key, None, start)
        return dynamics.advance(integrator, never, None, replica, num_steps)

    return jax.jit(parallel.map_replicas(one, batch_size=batch_size))(None, keys)


@pytest.mark.parametrize(("batch_size", "skin"), [(None, 0.6), (1, 0.6), (2, 0.6), (None, 0.15), (1, 0.15)])
def test_dynamics_with_lists_is_that_with_all_pairs(batch_size, skin):
    """With a narrow skin many a step is more than the list covers, and is taken again."""
    keys = jax.random.split(jax.random.key(0), 4)
    reach = REACH | {"skin": skin}
    num_pairs = most_pairs(START[None], **reach, margin=1.5)
    assert num_pairs < 0.7 * NUM_ATOMS * (NUM_ATOMS - 1) / 2
    lists = neighbor_lists(NUM_ATOMS, num_pairs=num_pairs, **reach)
    plain = run(engine(), keys, START, batch_size=batch_size, num_steps=400)
    listed = run(engine(lists), keys, START, batch_size=batch_size, num_steps=400)
    np.testing.assert_array_equal(listed.step, 400)
    moved = np.linalg.norm(np.asarray(plain.md.position - START), axis=-1).max()
    assert moved > 3 * skin  # lists had to be made again
    np.testing.assert_allclose(listed.md.position, plain.md.position, atol=2e-3)


def test_a_list_that_is_never_made_again_is_found_out():
    """The positive control: atoms leave what the list covers, and the dynamics stops instead of going wrong."""
    lists = neighbor_lists(NUM_ATOMS, num_pairs=2016, **REACH)
    stale = lists._replace(update=lambda listed, *_: listed)
    replica = run(engine(stale), jax.random.key(0)[None], START, batch_size=None, num_steps=400)
    assert not bool(replica.is_finite[0])
    assert 5 < int(replica.step[0]) < 400


@pytest.mark.parametrize("num_replicas", [1, 8])
def test_side_by_side_lists_are_a_branch_and_not_a_selection(num_replicas):
    lists = neighbor_lists(NUM_ATOMS, num_pairs=2016, **REACH)
    listed = jax.vmap(lists.find)(jnp.tile(START, (num_replicas, 1, 1)))
    update = jax.vmap(lists.update)
    active = jnp.ones(num_replicas, bool)
    shown = str(jax.make_jaxpr(update)(listed, listed.position, active, active))
    assert "cond[" in shown and "pred[] = " in shown.replace("bool[]", "pred[]")
    moved = listed.position.at[-1, 0, 0].add(0.16)  # one atom of the last replica, by over a quarter skin
    again = update(listed, moved, active, ~active)
    np.testing.assert_array_equal(again.position, moved)
    frozen = active.at[-1].set(False)
    same = update(listed, moved, frozen, ~frozen)
    np.testing.assert_array_equal(same.position, listed.position)  # a frozen replica keeps nobody busy
    little = update(listed, listed.position.at[-1, 0, 0].add(0.14), active, ~active)
    np.testing.assert_array_equal(little.position, listed.position)


@pytest.fixture(scope="module")
def sparse():
    """The frame of a trajectory that has the fewest pairs, so that there are more soon after, and how many it has."""
    replica = dynamics.init_replica(engine(), jax.random.key(7), None, START)
    sample = partial(dynamics.sample, engine(), never, None, num_frames=40, steps_per_frame=20)
    position = jax.jit(sample)(replica)[1].frame.position[5:]
    counts = [most_pairs(x[None], **REACH, margin=1.0) for x in position]
    return position[int(np.argmin(counts))], min(counts)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_an_overfull_list_loses_no_step(batch_size, sparse):
    """The replica waits before the step that its list is too short for, and goes on with a longer one."""
    start, num_pairs = sparse
    keys = jax.random.split(jax.random.key(0), 3)
    ample = engine(neighbor_lists(NUM_ATOMS, num_pairs=2016, **REACH))
    expected = run(ample, keys, start, batch_size=batch_size, num_steps=300)
    short = engine(neighbor_lists(NUM_ATOMS, num_pairs=num_pairs, **REACH))
    waiting = run(short, keys, start, batch_size=batch_size, num_steps=300)
    assert bool(waiting.is_overfull.all()) and bool(waiting.is_finite.all()) and not bool(waiting.is_frozen.any())
    assert 0 < int(waiting.step.min()) <= int(waiting.step.max()) < 300
    mapped = parallel.map_replicas(
        lambda _, replica: dynamics.advance(ample, never, None, replica, 300), batch_size=batch_size
    )
    whole = jax.jit(mapped)(None, waiting)
    np.testing.assert_array_equal(whole.step, 300)
    assert not bool(whole.is_overfull.any())
    np.testing.assert_allclose(whole.md.position, expected.md.position, atol=2e-3)


def test_frames_after_an_overfull_list_do_not_count(sparse):
    start, num_pairs = sparse
    short = engine(neighbor_lists(NUM_ATOMS, num_pairs=num_pairs, **REACH))
    replica = dynamics.init_replica(short, jax.random.key(0), None, start)
    sample = partial(dynamics.sample, short, never, None, num_frames=20, steps_per_frame=5)
    replica, trajectory = jax.jit(sample)(replica)
    assert bool(replica.is_overfull)
    np.testing.assert_array_equal(trajectory.is_valid, 5 * np.arange(1, 21) <= int(replica.step))
    assert 0 < trajectory.is_valid.sum() < 20
    none = engine(neighbor_lists(NUM_ATOMS, num_pairs=num_pairs - 1, **REACH))
    assert bool(dynamics.init_replica(none, jax.random.key(0), None, start).is_overfull)


def test_lists_without_places_or_skin_are_refused():
    with pytest.raises(ValueError, match="`num_pairs` must be at least 1 and `skin` positive, got 0 and 0.6"):
        neighbor_lists(NUM_ATOMS, num_pairs=0, **REACH)
    with pytest.raises(ValueError, match="smallest height is 8.000 Å, which is less than twice the cutoff of 4.5 Å"):
        neighbor_lists(NUM_ATOMS, num_pairs=10, cutoff=CUTOFF, skin=0.6, cell=8.0 * np.eye(3))


def test_nose_hoover_in_a_cell_has_all_but_the_drift_at_the_temperature():
    """3N − 3 degrees of freedom: angular momentum is not conserved in a cell."""
    integrator = dynamics.nose_hoover(
        soft_spheres, MASS, kT=KT, timestep=DT, damping_time=100 * units.FEMTOSECOND, num_removed=3
    )

    def one(key):
        replica = dynamics.init_replica(integrator, key, None, START)
        return dynamics.sample(integrator, never, None, replica, num_frames=200, steps_per_frame=20)[1].frame.velocity

    velocity = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 16))
    np.testing.assert_allclose(jnp.sum(velocity[:, -1], axis=1), 0, atol=1e-3)
    temperature = dynamics.kinetic_temperature(velocity[:, 40:], MASS, num_removed=3) / KT
    error = standard_error(temperature.mean(axis=1), num_blocks=16)
    # With 3N − 6 it would be 3/189 = 0.016 too cold.
    assert abs(float(temperature.mean()) - 1) < 0.008 and error < 0.004
    angular = jnp.sum(jnp.cross(START, velocity), axis=2)  # it changes, so it must not be counted as removed
    assert float(jnp.std(angular[:, 40:])) > 0.01
    with pytest.raises(ValueError, match="`num_removed` is 6 in open boundaries, 3 in a cell, got 5"):
        dynamics.nose_hoover(soft_spheres, MASS, kT=KT, timestep=DT, damping_time=1.0, num_removed=5)
