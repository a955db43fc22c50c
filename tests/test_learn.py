"""The learning phase on replicas that stand still, so that what it learns from is known beforehand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_md import simulate as jax_md_simulate

from stablejax import boltzmann_value_and_grad, from_atom_energies, parallel, stable
from stablejax.dynamics import Integrator
from stablejax.learn import Endpoints, LearnInfo, Learning, LearnPhase, Noise, Optimization, learn_phase, static_batch
from stablejax.losses import Labeled, observable_loss
from stablejax.neighborhoods import balanced_subsample
from stablejax.parallel import ONE_DEVICE
from stablejax.problem import Observables, Problem, Subsample
from stablejax.reweighting import effective_sample_size, mixture_energy, perturbation_weights
from stablejax.simulate import Simulation, make_engine
from stablejax.types import Frame
from stablejax.uncertainty import jackknife_gradient

NUM_ATOMS, NUM_REPLICAS = 6, 4
START = jax.random.normal(jax.random.key(0), (NUM_REPLICAS, NUM_ATOMS, 3))
FRAMES = Labeled(jnp.zeros((1, NUM_ATOMS, 3)), jnp.zeros(1), jnp.zeros((1, NUM_ATOMS, 3)))
WEIGHT, REFERENCE = 3.0, 0.2


def standing(potential, mass, *, kT):
    """No atom ever moves."""

    def init(key, position, prepared, listed):
        return jax_md_simulate.NVEState(position, jnp.zeros_like(position), jnp.zeros_like(position), jnp.float32(1))

    return Integrator(potential, init, lambda md, prepared, listed: md, constrained_dof=0)


def make_problem():
    """Atoms in a well are the neighborhoods, of which few are learned from."""
    well = from_atom_energies(
        lambda k, x, pairs: 0.5 * k * jnp.sum(x**2, axis=1), num_atoms=NUM_ATOMS, cutoff=1.0, init=lambda _: 1.0
    )
    return Problem(
        potential=well,
        mass=jnp.ones(NUM_ATOMS),
        kT=0.7,
        criterion=lambda frame: jnp.float32(-1.0),
        observables=Observables(lambda frame: frame.position[:, 1] ** 2, jnp.float32(REFERENCE), WEIGHT),
        frames=FRAMES,
        neighborhoods=lambda frame: jnp.arange(NUM_ATOMS)[:, None],
        subsample=Subsample(lambda frame: frame.position[:, 0], num_bins=4, per_bin=2),
    )


SIMULATION = Simulation(standing, steps_per_epoch=1, table_intervals=0)
LEARNING = Learning(Optimization(optax.sgd(1e-3), qm_weight=0.0), steps_per_frame=1, max_epochs=2)


def test_molecules_are_chosen_among_those_of_all_devices():
    """The loss is that of a subsample of all neighborhoods, drawn by the key alone."""
    problem, key = make_problem(), jax.random.key(5)
    engine = make_engine(problem, SIMULATION, parallel.Execution(mesh=parallel.replica_mesh(jax.devices()[:2])))
    phase = learn_phase(problem, engine, LEARNING)
    replicas = engine.start(jnp.float32(1.3), jax.random.key(1), START)
    _, info = jax.jit(phase.step)(phase.init(jnp.float32(1.3), replicas), replicas, FRAMES, key)
    everywhere = np.ones((NUM_REPLICAS, NUM_ATOMS), bool)
    chosen, _ = balanced_subsample(key, START[:, :, 0], everywhere, num_bins=4, per_bin=2)
    assert 0 < int(chosen.sum()) < 9
    mean = float(np.mean(np.asarray(START[:, :, 1] ** 2)[np.asarray(chosen)]))
    assert float(info.updates.observable_loss) == pytest.approx(WEIGHT * (mean - REFERENCE) ** 2, rel=1e-4)


def test_blocks_of_the_jackknife_are_whole_replicas():
    """Frames of a replica that stands still are copies of each other: apart, they would hide the error."""
    mean_square = lambda frame: jnp.mean(frame.position[:, 1] ** 2)  # noqa: E731
    problem = make_problem()._replace(
        observables=Observables(mean_square, jnp.float32(REFERENCE), WEIGHT), neighborhoods=None, subsample=None
    )
    engine = make_engine(problem, SIMULATION._replace(steps_per_epoch=2), ONE_DEVICE)
    phase = learn_phase(problem, engine, LEARNING._replace(noise=Noise(num_blocks=NUM_REPLICAS)))
    k = jnp.float32(1.3)
    replicas = engine.start(k, jax.random.key(1), START)
    _, info = jax.jit(phase.step)(phase.init(k, replicas), replicas, FRAMES, jax.random.key(0))
    fit = boltzmann_value_and_grad(
        observable_loss(jnp.float32(REFERENCE), WEIGHT), problem.energies(), mean_square, kT=problem.kT
    )
    frames = Frame(jnp.repeat(START, 2, axis=0))
    trust = jackknife_gradient(fit, num_blocks=NUM_REPLICAS)(k, frames, block=np.repeat(np.arange(NUM_REPLICAS), 2))
    assert float(info.signal_to_noise) == pytest.approx(float(trust.signal_to_noise), rel=1e-4)


def test_the_key_of_an_epoch_is_of_the_run_and_of_the_step(monkeypatch):
    """Another seed or another epoch draws another subsample; the same draw the same, resumed or not."""
    problem, drawn = make_problem(), []
    real = learn_phase(problem, make_engine(problem, SIMULATION, ONE_DEVICE), LEARNING)
    info = LearnInfo(*[None] * len(LearnInfo._fields))._replace(ends_cycle=jnp.bool(False), gives_up=jnp.bool(False))

    def step(state, rewound, frames, key, *, num_rounds):
        drawn.append(jax.random.key_data(key).tolist())
        return state, info._replace(endpoints=Endpoints(rewound, rewound))

    monkeypatch.setattr(stable, "learn_phase", lambda *_: LearnPhase(real.init, step, real.begin))
    training = stable.stable_training(problem, stable.Settings(SIMULATION, LEARNING))
    for seed in (0, 1):
        first = training.init(jax.random.key(seed), jnp.float32(1.3), START)
        second, _ = training.learn(first, FRAMES)
        training.learn(second, FRAMES)
        training.learn(second, FRAMES)
    assert drawn[1] == drawn[2] and drawn[4] == drawn[5]
    assert len({tuple(drawn[index]) for index in (0, 1, 3, 4)}) == 4


def test_batches_follow_from_seed_cycle_and_epoch():
    num = np.arange(50.0)
    frames = jnp.broadcast_to(num[:, None, None], (50, NUM_ATOMS, 3))
    problem = make_problem()._replace(frames=Labeled(frames, jnp.asarray(num), frames))
    settings = Learning(Optimization(optax.sgd(0.1), qm_batch_size=10))

    def batch(seed, cycle, epoch):
        found = static_batch(problem, settings, seed=seed, cycle=cycle, epoch=epoch)
        np.testing.assert_array_equal(found.position[:, 0, 0], found.energy)
        return found.energy.tolist()

    assert len(set(batch(0, 0, 0))) == 10  # without replacement
    assert batch(3, 1, 2) == batch(3, 1, 2)
    for other in ((0, 0, 1), (0, 1, 0), (1, 0, 0)):
        assert batch(*other) != batch(0, 0, 0)
    few = settings._replace(optimization=settings.optimization._replace(qm_batch_size=100))
    assert sorted(static_batch(problem, few, seed=0, cycle=0, epoch=0).energy) == num.tolist()


def test_samples_of_the_last_epochs_are_learned_from_as_those_of_their_mixture():
    """Positions differ from epoch to epoch; the third loss is that of the samples of epochs two and three."""
    mean_square = lambda frame: jnp.mean(frame.position[:, 1] ** 2)  # noqa: E731
    problem = make_problem()._replace(
        observables=Observables(mean_square, jnp.float32(REFERENCE), WEIGHT), neighborhoods=None, subsample=None
    )
    engine = make_engine(problem, SIMULATION, ONE_DEVICE)
    optimization = Optimization(optax.sgd(0.05), qm_weight=0.0, buffer_epochs=1)
    phase = learn_phase(problem, engine, LEARNING._replace(optimization=optimization, max_epochs=9))
    frames = [START, 0.8 * START, 0.6 * START]
    starts = [engine.start(jnp.float32(1.3), jax.random.key(1), position) for position in frames]
    state, losses, params, step = phase.init(jnp.float32(1.3), starts[0]), [], [], jax.jit(phase.step)
    for replicas in starts:
        params.append(float(state.updates.params))
        state, info = step(state, replicas, FRAMES, jax.random.key(0))
        losses.append(float(info.updates.observable_loss))
        fraction = float(info.updates.effective_fraction)
    assert len(set(params)) == 3
    both = jnp.concatenate([frames[2], frames[1]])
    square = jnp.sum(both**2, axis=(1, 2))
    energy = 0.5 * jnp.array([[params[2]], [params[1]]]) * square
    sampled = mixture_energy(energy, jnp.array([NUM_REPLICAS] * 2), jnp.ones(2 * NUM_REPLICAS, bool), kT=problem.kT)
    weight = perturbation_weights(energy[0], sampled, kT=problem.kT)
    mean = jnp.average(jnp.mean(both[:, :, 1] ** 2, axis=1), weights=weight)
    assert losses[2] == pytest.approx(float(WEIGHT * (mean - REFERENCE) ** 2), rel=1e-3)
    assert fraction == pytest.approx(float(effective_sample_size(weight)) / (2 * NUM_REPLICAS), rel=1e-4)
    # The first epoch has only its own samples.
    alone = jnp.mean(START[:, :, 1] ** 2)
    assert losses[0] == pytest.approx(float(WEIGHT * (alone - REFERENCE) ** 2), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimization": Optimization(optax.sgd(1e-3), buffer_epochs=-1)}, "expected buffer_epochs >= 0, got -1"),
        (
            {
                "optimization": Optimization(optax.sgd(1e-3), buffer_epochs=1),
                "noise": Noise(num_blocks=2, wanted_signal_to_noise=1.0),
            },
            "a buffer of epochs needs them to be of equal length",
        ),
    ],
)
def test_a_buffer_that_cannot_be_is_refused(changes, message):
    problem = make_problem()
    with pytest.raises(ValueError, match=message):
        learn_phase(problem, make_engine(problem, SIMULATION, ONE_DEVICE), LEARNING._replace(**changes))
