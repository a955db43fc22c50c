"""Neighbor lists in dynamics: made when needed, shared by replicas side by side, repaired where they overflow."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import standard_error

from stablejax import dynamics, integrators, parallel, units
from stablejax.energy_functions import from_atom_energies
from stablejax.neighbors import most_pairs, neighbor_lists
from stablejax.space import periodic

BOX, CUTOFF, NUM_ATOMS = 13.0, 4.5, 64
SPACE = periodic(BOX * np.eye(3))
KT, DT = units.thermal_energy(300.0), 2 * units.FEMTOSECOND
MASS = jnp.full(NUM_ATOMS, 10.0)
START = jnp.asarray(np.argwhere(np.ones((4, 4, 4))) * BOX / 4, jnp.float32)


def soft_spheres(_, position, pairs):
    """Repulsion that ends smoothly at the cutoff, half of each pair's energy on either atom."""
    is_pair = jnp.asarray(pairs.first) < NUM_ATOMS
    scaled = jnp.where(is_pair, SPACE.distances(position, pairs) / CUTOFF, 1.0)
    energy = jnp.where(scaled < 1, (1 - scaled) ** 3, 0.0)
    return jnp.zeros(NUM_ATOMS).at[pairs.first].add(energy, mode="drop").at[pairs.second].add(energy, mode="drop")


WHOLE = from_atom_energies(soft_spheres, num_atoms=NUM_ATOMS, cutoff=CUTOFF, space=SPACE)
REACH = dict(cutoff=CUTOFF, skin=0.6, space=SPACE)


def engine(num_pairs=None, skin=0.6):
    potential = WHOLE if num_pairs is None else WHOLE.with_lists(skin=skin, num_pairs=num_pairs)
    return integrators.langevin(potential, MASS, kT=KT, timestep=DT, friction=0.01)


def never(frame):
    return -1.0 + 0.0 * frame.position[0, 0]


def run(integrator, keys, start, *, batch_size, num_steps):
    def one(_, key):
        replica = dynamics.init_replica(integrator, key, start, None)
        return dynamics.advance(integrator, never, None, replica, num_steps)

    return jax.jit(parallel.map_replicas(one, batch_size=batch_size))(None, keys)


@pytest.mark.parametrize(("batch_size", "skin"), [(None, 0.6), (2, 0.15), (1, 0.15)])
def test_dynamics_with_lists_is_that_with_all_pairs(batch_size, skin):
    """With a narrow skin many a step is more than the list covers, and is taken again."""
    keys = jax.random.split(jax.random.key(0), 4)
    reach = REACH | {"skin": skin}
    num_pairs = most_pairs(START[None], **reach, margin=1.5)
    assert num_pairs < 0.7 * NUM_ATOMS * (NUM_ATOMS - 1) / 2
    plain = run(engine(), keys, START, batch_size=batch_size, num_steps=400)
    listed = run(engine(num_pairs, skin), keys, START, batch_size=batch_size, num_steps=400)
    np.testing.assert_array_equal(listed.step, 400)
    moved = np.linalg.norm(np.asarray(plain.md.position - START), axis=-1).max()
    assert moved > 3 * skin  # lists had to be made again
    np.testing.assert_allclose(listed.md.position, plain.md.position, atol=2e-3)


def test_a_list_that_is_never_made_again_is_found_out():
    """The positive control: atoms leave what the list covers, and the dynamics stops instead of going wrong."""
    potential = WHOLE.with_lists(skin=0.6, num_pairs=2016)
    stale = replace(potential, lists=potential.lists._replace(step=lambda listed, *_: listed))
    integrator = integrators.langevin(stale, MASS, kT=KT, timestep=DT, friction=0.01)
    replica = run(integrator, jax.random.key(0)[None], START, batch_size=None, num_steps=400)
    assert not bool(replica.is_finite[0])
    assert 5 < int(replica.step[0]) < 400


@pytest.mark.parametrize("num_replicas", [1, 8])
def test_side_by_side_lists_are_a_branch_and_not_a_selection(num_replicas):
    lists = neighbor_lists(NUM_ATOMS, num_pairs=2016, **REACH)
    listed = jax.vmap(lists.init)(jnp.tile(START, (num_replicas, 1, 1)))
    update = jax.vmap(lists.step)
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
    replica = dynamics.init_replica(engine(), jax.random.key(7), START, None)
    sample = partial(dynamics.sample, engine(), never, None, num_frames=40, steps_per_frame=20)
    position = jax.jit(sample)(replica)[1].frame.position[5:]
    counts = [most_pairs(x[None], **REACH, margin=1.0) for x in position]
    return position[int(np.argmin(counts))], min(counts)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_list_that_overflows_loses_no_step(batch_size, sparse):
    """The replica is paused before the step that its list is too short for, and resumes with a longer one."""
    start, num_pairs = sparse
    keys = jax.random.split(jax.random.key(0), 3)
    ample = engine(2016)
    expected = run(ample, keys, start, batch_size=batch_size, num_steps=300)
    short = engine(num_pairs)
    paused = run(short, keys, start, batch_size=batch_size, num_steps=300)
    assert bool(paused.did_overflow.all()) and bool(paused.is_finite.all()) and not bool(paused.is_frozen.any())
    assert 0 < int(paused.step.min()) <= int(paused.step.max()) < 300
    mapped = parallel.map_replicas(
        lambda _, replica: dynamics.advance(ample, never, None, replica, 300), batch_size=batch_size
    )
    whole = jax.jit(mapped)(None, paused)
    np.testing.assert_array_equal(whole.step, 300)
    assert not bool(whole.did_overflow.any())
    np.testing.assert_allclose(whole.md.position, expected.md.position, atol=2e-3)


def test_frames_after_an_overflow_do_not_count(sparse):
    start, num_pairs = sparse
    short = engine(num_pairs)
    replica = dynamics.init_replica(short, jax.random.key(0), start, None)
    sample = partial(dynamics.sample, short, never, None, num_frames=20, steps_per_frame=5)
    replica, trajectory = jax.jit(sample)(replica)
    assert bool(replica.did_overflow)
    np.testing.assert_array_equal(trajectory.is_valid, 5 * np.arange(1, 21) <= int(replica.step))
    assert 0 < trajectory.is_valid.sum() < 20


def test_a_replica_that_starts_with_an_overflow_gets_its_forces_later_and_is_not_unstable(sparse):
    """Finding its list too short it has no forces; with a longer one it runs as if it had begun so."""
    start, num_pairs = sparse
    ample, short = engine(2016), engine(num_pairs - 1)
    begin = dynamics.init_replica(short, jax.random.key(0), start, None)
    assert bool(begin.did_overflow) and bool(jnp.isnan(begin.md.force).all())
    advance = jax.jit(lambda replica: dynamics.advance(ample, never, None, replica, 50))
    after, expected = advance(begin), advance(dynamics.init_replica(ample, jax.random.key(0), start, None))
    assert int(after.step) == 50 and not bool(after.is_unstable)
    np.testing.assert_allclose(after.md.position, expected.md.position, atol=1e-5)
    restarted = advance(dynamics.restart(begin))  # as replays and samples do
    assert bool(restarted.is_finite)
    np.testing.assert_allclose(restarted.md.position, expected.md.position, atol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_call_evaluates_forces_once_a_step(batch_size):
    """And none to begin with, where forces are known: a call of one step would cost two."""
    evaluations = []

    def counted(params, position, pairs):
        one = jax.pure_callback(
            lambda x: evaluations.append(x.shape) or np.ones(x.shape[:-2], x.dtype),
            jax.ShapeDtypeStruct((), position.dtype),
            jax.lax.stop_gradient(position),
            vmap_method="expand_dims",
        )
        return one * soft_spheres(params, position, pairs)

    potential = from_atom_energies(counted, num_atoms=NUM_ATOMS, cutoff=CUTOFF, space=SPACE)
    integrator = integrators.langevin(
        potential.with_lists(skin=0.6, num_pairs=2016), MASS, kT=KT, timestep=DT, friction=0.01
    )
    keys = jax.random.split(jax.random.key(0), 2)
    replicas = jax.vmap(lambda key: dynamics.init_replica(integrator, key, START, None))(keys)
    evaluations.clear()

    def go_on(_, replica):
        return dynamics.advance(integrator, never, None, replica, replica.step + 3)

    jax.block_until_ready(jax.jit(parallel.map_replicas(go_on, batch_size=batch_size))(None, replicas))
    assert len(evaluations) == 3 * (len(keys) if batch_size else 1)


def test_a_list_says_when_there_are_more_pairs_than_it_holds():
    num_pairs = most_pairs(START[None], **REACH, margin=1.0)
    for capacity, does_overflow in ((num_pairs, False), (num_pairs - 1, True)):
        listed = neighbor_lists(NUM_ATOMS, num_pairs=capacity, **REACH).init(START)
        assert bool(listed.did_overflow) == does_overflow
        assert int(jnp.sum(listed.pairs.first < NUM_ATOMS)) == capacity


def test_lists_without_capacity_or_skin_are_refused():
    with pytest.raises(ValueError, match="`num_pairs` must be at least 1 and `skin` positive, got 0 and 0.6"):
        neighbor_lists(NUM_ATOMS, num_pairs=0, **REACH)
    with pytest.raises(ValueError, match="at most 4.000 Å, half the smallest height of the cell, got 5.1 Å"):
        neighbor_lists(NUM_ATOMS, num_pairs=10, cutoff=CUTOFF, skin=0.6, space=periodic(8.0 * np.eye(3)))


def test_nose_hoover_in_a_cell_has_all_but_the_drift_at_the_temperature():
    """3N − 3 degrees of freedom: angular momentum is not conserved in a cell."""
    integrator = integrators.nose_hoover(WHOLE, MASS, kT=KT, timestep=DT, damping_time=100 * units.FEMTOSECOND)
    assert integrator.constrained_dof == 3

    def one(key):
        replica = dynamics.init_replica(integrator, key, START, None)
        return dynamics.sample(integrator, never, None, replica, num_frames=200, steps_per_frame=20)[1].frame.velocity

    velocity = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 16))
    np.testing.assert_allclose(jnp.sum(velocity[:, -1], axis=1), 0, atol=1e-3)
    temperature = integrators.kinetic_temperature(velocity[:, 40:], MASS, constrained_dof=3) / KT
    error = standard_error(temperature.mean(axis=1), num_blocks=16)
    # With 3N − 6 it would be 3/189 = 0.016 too cold.
    assert abs(float(temperature.mean()) - 1) < 0.008 and error < 0.004
    angular = jnp.sum(jnp.cross(START, velocity), axis=2)  # it changes, so it must not be counted as constrained
    assert float(jnp.std(angular[:, 40:])) > 0.01
