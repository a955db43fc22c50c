"""Temperature, first passage, freezing, quarantine, and replicas on several devices."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import standard_error
from jax_md import simulate

from stablejax import dynamics, integrators, parallel, units
from stablejax.energy_functions import from_energy
from stablejax.integrators import Integrator
from stablejax.space import OPEN, all_pairs
from stablejax.types import StatefulCriterion

KT = units.thermal_energy(500.0)
STIFFNESS = 20.0  # eV/Å²
DT = 0.5 * units.FEMTOSECOND


def make_integrator(kind, spring):
    if kind == "langevin":
        return integrators.langevin(
            spring.potential(), spring.mass, kT=KT, timestep=DT, friction=1 / (50 * units.FEMTOSECOND)
        )
    return integrators.nose_hoover(
        spring.potential(), spring.mass, kT=KT, timestep=DT, damping_time=40 * units.FEMTOSECOND
    )


def never(frame):
    return jnp.where(jnp.all(jnp.isfinite(frame.position)), -1.0, jnp.nan)


def simulate_many(integrator, start, *, num_replicas, num_frames, steps_per_frame, stiffness=STIFFNESS, key=0):
    def one(key):
        replica = dynamics.init_replica(integrator, key, start, stiffness)
        return dynamics.sample(
            integrator, never, stiffness, replica, num_frames=num_frames, steps_per_frame=steps_per_frame
        )

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(key), num_replicas))


class Cluster:
    """Twelve atoms of three elements with a spring, not too stiff, between any two."""

    mass = jnp.asarray(np.repeat([1.008, 12.011, 15.999], 4), jnp.float32)
    start = jnp.asarray(1.5 * np.random.default_rng(0).permutation(np.argwhere(np.ones((2, 2, 3)))), jnp.float32)
    pairs = all_pairs(12)
    length = OPEN.distances(start, pairs)

    @staticmethod
    def energy(stiffness, position):
        return 0.5 * stiffness * jnp.sum((OPEN.distances(position, Cluster.pairs) - Cluster.length) ** 2)

    @classmethod
    def potential(cls):
        return from_energy(cls.energy, num_atoms=12)


def cluster_velocities(integrator):
    _, trajectory = simulate_many(
        integrator, Cluster.start, num_replicas=64, num_frames=150, steps_per_frame=100, stiffness=4.0
    )
    return trajectory.frame.velocity[:, 50:]


@pytest.mark.parametrize(("kind", "constrained_dof"), [("langevin", 0), ("nose_hoover", 6)])
def test_internal_temperature_is_the_requested_one_for_every_element(kind, constrained_dof):
    velocity = cluster_velocities(make_integrator(kind, Cluster))
    temperature = integrators.kinetic_temperature(velocity, Cluster.mass, constrained_dof=constrained_dof) / KT
    error = standard_error(temperature.mean(axis=1))  # replicas are independent
    assert error < 0.005
    assert abs(float(temperature.mean()) - 1) < 0.01
    if kind == "langevin":
        per_atom = Cluster.mass * jnp.mean(velocity**2, axis=(0, 1, 3)) / KT
        for element in (slice(0, 4), slice(4, 8), slice(8, 12)):
            assert float(per_atom[element].mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("kind", "constrained_dof"), [("langevin", 0), ("nose_hoover", 6)])
def test_the_start_is_as_warm_as_the_rest(kind, constrained_dof):
    integrator = make_integrator(kind, Cluster)
    start = jax.vmap(lambda key: integrator.init(key, Cluster.start, 4.0, None).velocity)
    velocity = start(jax.random.split(jax.random.key(0), 4000))
    temperature = integrators.kinetic_temperature(velocity, Cluster.mass, constrained_dof=constrained_dof) / KT
    assert abs(float(temperature.mean()) - 1) < 4 * standard_error(temperature) < 0.02


def test_nose_hoover_of_jax_md_alone_is_hot():
    """The positive control: counting 3N degrees of freedom makes the 3N − 6 that move hot by 36/30."""
    ours = make_integrator("nose_hoover", Cluster)

    def init(*given):
        state = ours.init(*given)
        return state.set(chain=state.chain.set(degrees_of_freedom=3 * len(Cluster.mass)))

    velocity = cluster_velocities(ours._replace(init=init))
    temperature = integrators.kinetic_temperature(velocity, Cluster.mass, constrained_dof=6) / KT
    assert float(temperature.mean()) == pytest.approx(1.2, abs=0.01)


@pytest.mark.parametrize("kind", ["langevin", "nose_hoover"])
def test_structure_is_that_of_the_boltzmann_distribution(kind, spring):
    """Both thermostats agree with each other and with equipartition of the springs (to anharmonic order)."""
    _, trajectory = simulate_many(
        make_integrator(kind, spring), spring.start, num_replicas=128, num_frames=160, steps_per_frame=50, key=1
    )
    energy = jax.vmap(jax.vmap(partial(spring.energy, STIFFNESS)))(trajectory.frame.position[:, 20:]) / KT
    error = standard_error(energy.mean(axis=1))
    assert error < 0.03
    # 6 vibrations; the anharmonic correction is below 1 % at this stiffness.
    assert abs(float(energy.mean()) - 3.0) < 3.5 * error + 0.03


def test_maxwell_boltzmann_per_element(spring):
    keys = jax.random.split(jax.random.key(2), 40_000)
    velocity = jax.vmap(partial(integrators.maxwell_boltzmann, mass=spring.mass, kT=KT))(keys)
    np.testing.assert_allclose(jnp.sum(spring.mass[:, None] * velocity, axis=1), 0, atol=1e-4)
    measured = np.asarray(jnp.mean(velocity**2, axis=(0, 2)))
    expected = KT / np.asarray(spring.mass) - KT / float(spring.mass.sum())
    np.testing.assert_allclose(measured, expected, rtol=0.02)
    kurtosis = jnp.mean(velocity**4, axis=(0, 2)) / measured**2
    np.testing.assert_allclose(kurtosis, 3.0, rtol=0.05)


def test_no_rotation_where_asked(spring):
    velocity = integrators.maxwell_boltzmann(jax.random.key(3), spring.mass, kT=KT, position=spring.start)
    arm = spring.start - jnp.average(spring.start, axis=0, weights=spring.mass)
    momentum = spring.mass[:, None] * velocity
    np.testing.assert_allclose(jnp.sum(jnp.cross(arm, momentum), axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(jnp.sum(momentum, axis=0), 0, atol=1e-4)
    assert float(jnp.abs(velocity).max()) > 0


def test_nose_hoover_conserves_its_quantity(spring):
    integrator = make_integrator("nose_hoover", spring)
    replica = dynamics.init_replica(integrator, jax.random.key(4), spring.start, STIFFNESS)

    def conserved(md):
        energy = simulate.nvt_nose_hoover_invariant(lambda position, **_: spring.energy(STIFFNESS, position), md, KT)
        # jax-md's invariant counts 3N degrees of freedom in the chain's own term; 6 of them are at rest.
        return energy - 6 * KT * md.chain.position[0]

    invariant = jax.jit(conserved)
    step = jax.jit(lambda md: jax.lax.fori_loop(0, 100, lambda _, m: integrator.step(m, STIFFNESS, None), md))
    values, md = [], replica.md
    for _ in range(40):
        values.append(float(invariant(md)))
        md = step(md)
    assert np.ptp(values) < 0.02 * KT * 6


def scripted_integrator(nan_after=None):
    """Counts its steps in the position, so first passages are known."""

    def init(key, position, prepared, listed):
        return simulate.NVEState(position, jnp.zeros_like(position), jnp.zeros_like(position), jnp.float32(1))

    def step(state, prepared, listed):
        position = state.position + prepared
        if nan_after is not None:
            position = jnp.where(position > nan_after, jnp.nan, position)
        return state.set(position=position)

    nothing = from_energy(lambda params, position: jnp.sum(position), num_atoms=1)
    return Integrator(nothing, init, step, constrained_dof=0)


def above(level):
    return lambda frame: jnp.max(frame.position) - level


def start_scripted(integrator):
    return dynamics.init_replica(integrator, jax.random.key(0), jnp.zeros((1, 3)), 1.0)


def test_first_passage_is_exact_and_freezes():
    integrator = scripted_integrator()
    replica = dynamics.advance(integrator, above(36.5), 1.0, start_scripted(integrator), 100)
    assert (int(replica.step), bool(replica.is_unstable), bool(replica.is_frozen)) == (37, True, True)
    np.testing.assert_array_equal(replica.md.position, 37.0)
    again = dynamics.advance(integrator, above(36.5), 1.0, replica, 200)
    jax.tree.map(np.testing.assert_array_equal, again, replica)


def test_stable_replica_takes_all_its_steps():
    integrator = scripted_integrator()
    replica = dynamics.advance(integrator, above(1000), 1.0, start_scripted(integrator), 100)
    assert (int(replica.step), bool(replica.is_unstable), float(replica.violation)) == (100, False, -900.0)


def test_freeze_above_lets_a_replica_go_on_and_keeps_its_violation():
    integrator = scripted_integrator()
    replica = dynamics.advance(integrator, above(36.5), 1.0, start_scripted(integrator), 100, freeze_above=10.0)
    assert (int(replica.step), bool(replica.is_unstable), bool(replica.is_frozen)) == (47, True, True)
    replica = dynamics.advance(integrator, above(36.5), 1.0, start_scripted(integrator), 40, freeze_above=10.0)
    assert (int(replica.step), bool(replica.is_unstable), bool(replica.is_frozen)) == (40, True, False)
    assert not bool(dynamics.restart(replica).is_unstable)


def test_sampled_frames_are_valid_until_the_violation():
    integrator = scripted_integrator()
    replica, trajectory = dynamics.sample(
        integrator, above(36.5), 1.0, start_scripted(integrator), num_frames=5, steps_per_frame=10
    )
    np.testing.assert_array_equal(trajectory.is_valid, [True, True, True, False, False])
    np.testing.assert_array_equal(trajectory.frame.position[:, 0, 0], [10, 20, 30, 37, 37])
    assert int(replica.step) == 37


def test_non_finite_state_is_not_entered_and_others_go_on():
    integrator = scripted_integrator(nan_after=20.5)
    replicas = jax.vmap(lambda _: start_scripted(integrator))(jnp.arange(2))
    run = parallel.map_replicas(lambda _, one: dynamics.advance(integrator, above(1000), one[0], one[1], 30))
    after = run(None, (jnp.array([1.0, 0.5]), replicas))
    np.testing.assert_array_equal(after.is_finite, [False, True])
    np.testing.assert_array_equal(after.is_unstable, [True, False])
    np.testing.assert_array_equal(after.step, [21, 30])
    np.testing.assert_array_equal(after.md.position[:, 0, 0], [20, 15])


@pytest.mark.parametrize(("batch_size", "is_sharded"), [(None, False), (2, False), (1, True), (None, True)])
def test_replicas_are_the_same_however_they_are_mapped(batch_size, is_sharded, spring):
    integrator = make_integrator("langevin", spring)
    mesh = parallel.replica_mesh(jax.devices()[:2]) if is_sharded else None

    def one(stiffness, key):
        replica = dynamics.init_replica(integrator, key, spring.start, stiffness)
        return dynamics.advance(integrator, never, stiffness, replica, 20)

    keys = jax.random.split(jax.random.key(5), 4)
    mapped = jax.jit(parallel.map_replicas(one, batch_size=batch_size, mesh=mesh))(STIFFNESS, keys)
    one_alone = jax.jit(one)
    for index in range(4):
        alone = one_alone(STIFFNESS, keys[index])
        np.testing.assert_allclose(mapped.md.position[index], alone.md.position, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "is_sharded"), [(None, False), (1, False), (4, False), (None, True), (4, True)])
def test_putting_frozen_replicas_aside_changes_nothing(batch_size, is_sharded):
    integrator = scripted_integrator()
    mesh = parallel.replica_mesh(jax.devices()[:2]) if is_sharded else None
    start = jax.vmap(lambda x: dynamics.init_replica(integrator, jax.random.key(0), x, 1.0))(
        jnp.arange(48.0).reshape(16, 1, 3)
    )

    def one(step, replica):
        return dynamics.sample(integrator, never, step, replica, num_frames=2, steps_per_frame=3)

    mapped = partial(parallel.map_replicas, one, batch_size=batch_size, mesh=mesh)
    plain, put_aside = jax.jit(mapped()), jax.jit(mapped(is_active=lambda replica: ~replica.is_frozen))
    for num_frozen in (0, 3, 9, 13, 14, 16):
        is_frozen = jax.random.permutation(jax.random.key(num_frozen), jnp.arange(16) < num_frozen)
        expected, found = (fn(1.0, start._replace(is_frozen=is_frozen)) for fn in (plain, put_aside))
        np.testing.assert_array_equal(expected[0].step, np.where(is_frozen, 0, 6))
        np.testing.assert_array_equal(expected[0].md.position[:, 0, 0], 3 * np.arange(16) + np.where(is_frozen, 0, 6))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_replicas_with_work_run_on_the_least_width_that_holds_them():
    assert parallel._widths(16) == [2, 4, 8, 16]
    assert parallel._widths(12) == [3, 6, 12]
    assert parallel._widths(3) == [3]
    widths, has_work_behind = [], []

    def fn(_, one):
        return jax.lax.while_loop(lambda c: c < one, lambda c: c + 1, 0)

    def counting(fn, width, many):
        jax.debug.callback(lambda many: (widths.append(width), has_work_behind.append((many[width:] > 0).any())), many)
        return in_batches(fn, width, many)

    in_batches = parallel._in_batches
    mapped = parallel.map_replicas(fn, is_active=lambda one: one > 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_in_batches", counting)
        for num_active in (0, 1, 2, 3, 5, 8, 9, 16):
            many = jnp.where(jnp.arange(16) < num_active, 5, 0)[::-1]
            np.testing.assert_array_equal(jax.jit(mapped)(None, many), many)
            jax.effects_barrier()
    assert widths == [2, 2, 2, 4, 8, 8, 16, 16]
    assert not any(has_work_behind)


def test_uneven_replicas_are_refused():
    mesh = parallel.replica_mesh(jax.devices()[:2])
    with pytest.raises(ValueError, match="3 replicas cannot be sharded evenly over 2 devices"):
        parallel.map_replicas(lambda _, x: x, mesh=mesh)(None, jnp.ones(3))


def test_same_key_same_bits(spring):
    integrator = make_integrator("langevin", spring)
    runs = [simulate_many(integrator, spring.start, num_replicas=2, num_frames=3, steps_per_frame=10) for _ in range(2)]
    position = [np.asarray(trajectory.frame.position) for _, trajectory in runs]
    np.testing.assert_array_equal(*position)
    assert not np.array_equal(position[0][0], position[0][1])


def test_nose_hoover_needs_three_atoms():
    with pytest.raises(ValueError, match="needs at least 3 atoms"):
        integrators.nose_hoover(
            from_energy(lambda p, x: jnp.sum(x), num_atoms=2), jnp.ones(2), kT=1.0, timestep=0.1, damping_time=1.0
        )


def counting_criterion(level):
    """Unstable when so many steps have been seen since it began: what it knows is only in its state."""
    return StatefulCriterion(
        init=lambda frame: jnp.int32(0), step=lambda seen, frame: (seen + 1, jnp.float32(seen + 1 - level) + 0.5)
    )


def test_state_of_a_criterion_is_kept_from_call_to_call_and_begins_again_at_a_restart():
    integrator, criterion = scripted_integrator(), counting_criterion(25)
    replica = dynamics.init_replica(integrator, jax.random.key(0), jnp.zeros((1, 3)), 1.0, criterion)
    for until, step in ((10, 10), (20, 20), (30, 25)):
        replica = dynamics.advance(integrator, criterion, 1.0, replica, until)
        assert int(replica.step) == step
    assert bool(replica.is_unstable)
    replica = dynamics.restart(replica, criterion)
    replica, trajectory = dynamics.sample(integrator, criterion, 1.0, replica, num_frames=4, steps_per_frame=10)
    np.testing.assert_array_equal(trajectory.is_valid, [True, True, False, False])
    assert int(replica.step) == 50


def test_state_of_a_criterion_is_that_before_a_state_that_is_not_finite():
    integrator, criterion = scripted_integrator(nan_after=7.5), counting_criterion(25)
    replica = dynamics.init_replica(integrator, jax.random.key(0), jnp.zeros((1, 3)), 1.0, criterion)
    replica = dynamics.advance(integrator, criterion, 1.0, replica, 30)
    assert not bool(replica.is_finite) and int(replica.criterion) == 7


class FlexibleWater:
    """One SPC/Fw molecule alone (Wu, Tepper and Voth 2006): O, H, H."""

    mass = jnp.array([15.999, 1.008, 1.008], jnp.float32)
    length, angle = 1.012, np.deg2rad(113.24)  # Å
    start = length * jnp.array([[0, 0, 0], [1, 0, 0], [np.cos(angle), np.sin(angle), 0]], jnp.float32)

    @staticmethod
    def energy(_, position):
        bonds = position[1:] - position[0]
        length = jnp.linalg.norm(bonds, axis=1)
        cosine = jnp.vdot(bonds[0], bonds[1]) / (length[0] * length[1])
        stretch = 1059.162 * jnp.sum((length - FlexibleWater.length) ** 2)
        return 0.5 * units.KCAL_PER_MOL * (stretch + 75.9 * (jnp.arccos(cosine) - FlexibleWater.angle) ** 2)


@pytest.mark.parametrize("timestep_fs", [0.25, 1.0])
def test_modes_of_flexible_water_are_thermal_and_long_steps_read_cold_in_the_stretch_alone(timestep_fs):
    """At full steps BAOAB's kinetic energy of a mode is low by the factor 1 − (ωΔt)²/4; its positions are right."""
    water, kT = FlexibleWater, units.thermal_energy(300.0)
    integrator = integrators.langevin(
        from_energy(water.energy, num_atoms=3),
        water.mass,
        kT=kT,
        timestep=timestep_fs * units.FEMTOSECOND,
        friction=1 / (50 * units.FEMTOSECOND),
    )
    steps_per_frame = round(25 / timestep_fs)
    _, (frame, is_valid) = simulate_many(
        integrator, water.start, num_replicas=256, num_frames=220, steps_per_frame=steps_per_frame
    )
    assert is_valid.all()
    position, velocity = (np.asarray(x)[:, 20:] for x in frame[:2])
    mass = np.asarray(water.mass)[:, None]
    center = (mass * velocity).sum(axis=2) / mass.sum()
    translation = mass.sum() * (center**2).sum(axis=-1).mean() / (3 * kT)
    bond = position[:, :, 1:] - position[:, :, :1]
    along = ((velocity[:, :, 1:] - velocity[:, :, :1]) * bond).sum(axis=-1) / np.linalg.norm(bond, axis=-1)
    reduced = 1 / (1 / 15.999 + 1 / 1.008)
    stretch = reduced * (along**2).mean() / kT
    variance = 1059.162 * units.KCAL_PER_MOL * ((np.linalg.norm(bond, axis=-1) - water.length) ** 2).mean() / kT
    assert translation == pytest.approx(1, abs=0.02)
    assert variance == pytest.approx(1, abs=0.03)
    frequency = np.sqrt(1059.162 * units.KCAL_PER_MOL / reduced) * units.FEMTOSECOND  # per fs
    assert stretch == pytest.approx(1 - (frequency * timestep_fs) ** 2 / 4, abs=0.02)
    assert (stretch < 0.93) == (timestep_fs == 1.0)


FREE = from_energy(lambda params, position: 0.0 * params * jnp.sum(position), num_atoms=2)


def test_free_particles_lose_their_velocity_by_the_friction_and_diffuse_by_einsteins_relation():
    """⟨v(0) v(t)⟩ = kT/m exp(−γt), and the mean squared displacement grows by 6 kT/(mγ) t."""
    friction, mass = 0.2, jnp.array([2.0, 5.0])
    integrator = integrators.langevin(FREE, mass, kT=KT, timestep=0.25, friction=friction)
    _, (frame, _) = simulate_many(
        integrator, jnp.zeros((2, 3)), num_replicas=512, num_frames=120, steps_per_frame=4, stiffness=0.0
    )
    velocity, position = np.asarray(frame.velocity), np.asarray(frame.position)
    for lag in (3, 6):
        decayed = (velocity[:, 20:-lag] * velocity[:, 20 + lag :]).mean(axis=(0, 1, 3))
        np.testing.assert_allclose(decayed * mass / KT, np.exp(-friction * lag), atol=0.02)
    msd = ((position[:, 60:] - position[:, :-60]) ** 2).sum(axis=-1).mean(axis=(0, 1))
    expected = 6 * KT / (np.asarray(mass) * friction) * (60 - (1 - np.exp(-friction * 60)) / friction)
    np.testing.assert_allclose(msd, expected, rtol=0.06)


def test_temperature_may_be_traced():
    """One program for many: ⟨x²⟩ = kT/k in a well."""
    well = from_energy(lambda k, x: 0.5 * k * jnp.sum(x**2), num_atoms=1)

    def spread(kT, key):
        integrator = integrators.langevin(well, jnp.ones(1), kT=kT, timestep=0.2, friction=1.0)
        replica = dynamics.init_replica(integrator, key, jnp.zeros((1, 3)), 2.0)
        _, (frame, _) = dynamics.sample(integrator, never, 2.0, replica, num_frames=200, steps_per_frame=10)
        return jnp.mean(frame.position[20:] ** 2)

    temperatures = jnp.array([0.05, 0.2])
    keys = jax.random.split(jax.random.key(0), 64)
    found = jax.jit(jax.vmap(jax.vmap(spread, (None, 0)), (0, None)))(temperatures, keys).mean(axis=1)
    np.testing.assert_allclose(found, temperatures / 2.0, rtol=0.04)


def test_a_momentum_that_is_not_finite_is_not_entered():
    def step(state, prepared, listed):
        broken = jnp.where(state.position[0, 0] > 4.5, jnp.nan, 1.0)
        return state.set(position=state.position + prepared, momentum=state.momentum * broken)

    integrator = scripted_integrator()._replace(step=step)
    replica = dynamics.advance(integrator, above(1000), 1.0, start_scripted(integrator), 30)
    assert (int(replica.step), bool(replica.is_finite), bool(replica.is_unstable)) == (6, False, True)
    np.testing.assert_array_equal(replica.md.position, 5.0)


def test_frames_carry_velocity_force_and_energy_to_the_criterion(spring):
    """A replica is stopped by its energy, at the step at which it first exceeds a threshold."""
    integrator = make_integrator("langevin", spring)
    replica = dynamics.init_replica(integrator, jax.random.key(3), spring.start, STIFFNESS)
    threshold = 6 * KT
    stopped = jax.jit(
        lambda r: dynamics.advance(integrator, lambda frame: frame.energy - threshold, STIFFNESS, r, 5000)
    )(replica)
    energy = float(spring.energy(STIFFNESS, stopped.md.position))
    assert bool(stopped.is_unstable) and energy > threshold
    assert float(stopped.violation) == pytest.approx(energy - threshold, rel=1e-3)
    run = lambda r, n: dynamics.advance(integrator, never, STIFFNESS, r, n)  # noqa: E731
    before = jax.jit(run)(replica, stopped.step - 1)
    assert float(spring.energy(STIFFNESS, before.md.position)) <= threshold
    seen = jax.jit(
        lambda r: dynamics.advance(
            integrator, lambda f: jnp.max(jnp.abs(f.force)) + jnp.max(jnp.abs(f.velocity)) - 1e6, STIFFNESS, r, 10
        )
    )(replica)
    expected = jnp.max(jnp.abs(seen.md.force)) + jnp.max(jnp.abs(seen.md.velocity)) - 1e6
    assert float(seen.violation) >= float(expected)


def test_masses_of_the_chain_are_those_of_the_damping_time(spring):
    """Q = kT τ², times the 3N − 6 degrees of freedom for the first (Martyna, Klein and Tuckerman 1992)."""
    integrator = make_integrator("nose_hoover", spring)
    md = integrator.init(jax.random.key(0), spring.start, STIFFNESS, None)
    found = jax.jit(integrator.step)(md, STIFFNESS, None).chain.mass
    np.testing.assert_allclose(found, KT * (40 * units.FEMTOSECOND) ** 2 * np.array([6, 1, 1]), rtol=1e-5)


def test_chains_of_one_and_masses_of_others_are_refused(spring):
    given = dict(kT=KT, timestep=DT)
    with pytest.raises(ValueError, match="`chain_length` must be at least 2, got 1"):
        integrators.nose_hoover(spring.potential(), spring.mass, **given, damping_time=1.0, chain_length=1)
    with pytest.raises(ValueError, match=r"expected masses of 4 atoms, got shape \(3,\)"):
        integrators.langevin(spring.potential(), spring.mass[:3], **given, friction=1.0)
    with pytest.raises(ValueError, match="expected a positive `friction`, got 0"):
        integrators.langevin(spring.potential(), spring.mass, **given, friction=0.0)
