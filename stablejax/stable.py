"""StABlE training (Algorithm 1): alternating simulation and learning, with the whole state in one pytree.

`run` is the method: from a `Problem`, `Settings` and a state to a refined potential.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from stablejax import forms
from stablejax.learn import Endpoints, LearnInfo, Learning, LearnState, learn_phase, static_batch
from stablejax.losses import Labeled
from stablejax.parallel import ONE_DEVICE, Execution
from stablejax.problem import Problem, check_problem
from stablejax.simulate import SimulateInfo, SimulateState, Simulation, make_engine, simulate_phase
from stablejax.types import Array, Bool, Float, Int, Key, Params, Positions

SIMULATE, LEARN, FINISHED = 0, 1, 2
"""Phases."""
LEAST_FRACTION = 0.25
"""Of what a phase has learned that is worth keeping."""


class Settings(NamedTuple):
    """Settings of StABlE training."""

    simulation: Simulation
    learning: Learning
    num_cycles: int = 4  # of simulation and learning, at the most
    seed: int = 0  # of the batches of the static data set
    returns_best: bool = False  # another search follows the last cycle, and the best parameters are returned
    max_held_out_error: float = math.inf  # bound on the held-out force MAE, over that at the start


class Best(NamedTuple):
    """Parameters with which replicas are stable for longest in a search."""

    params: Params
    stable_steps: Float[Array, ""]  # see `SimulateInfo`; -inf until the first search has ended
    first_error: Float[Array, ""]  # force MAE on the held-out frames at the start, eV/Å; NaN until then


class StableState(NamedTuple):
    """State of StABlE training: everything that determines the steps that follow."""

    simulation: SimulateState
    learning: LearnState
    key: Key
    num_calls: Int[Array, ""]  # steps of either phase
    phase: Int[Array, ""]  # SIMULATE, LEARN or FINISHED
    cycle: Int[Array, ""]  # completed cycles
    best: Best

    @property
    def params(self) -> Params:
        """Parameters of the potential."""
        return self.learning.updates.params


class StableTraining(NamedTuple):
    """Algorithm 1 as pure functions; `step` of the phase that comes next is `simulate` or `learn`."""

    init: Callable[[Key, Params, Positions], StableState]
    simulate: Callable[[StableState], tuple[StableState, SimulateInfo]]
    learn: Callable[..., tuple[StableState, LearnInfo]]  # (state, frames, *, num_rounds=1)
    stop: Callable[[StableState], StableState]  # no further epoch of learning; a search for the best goes on to its end


def stable_training(problem: Problem, settings: Settings, *, execution: Execution = ONE_DEVICE) -> StableTraining:
    """Algorithm 1 for a problem, as functions to be compiled. `run` does so and calls them.

    With a `temperature_ratio` above 1 replicas are hotter in training: they cross the same barriers sooner, so that
    failures take less to find. The estimator is that of the higher temperature, and so have to be the references of the
    observables; that of a violation which never happens in the reference is the same at both.

    Args:
      problem: potential, observables, criterion and data.
      settings: of both phases.
      execution: devices and batch sizes.

    Raises:
      ValueError: parts of the problem or of the settings are inconsistent.
    """
    check_problem(problem)
    if not settings.learning.min_unstable < settings.simulation.max_unstable:
        raise ValueError(
            "`stable_training`: expected min_unstable < max_unstable, got "
            f"{settings.learning.min_unstable} and {settings.simulation.max_unstable}: a phase would end at once."
        )
    if math.isfinite(settings.max_held_out_error) and (problem.held_out is None or not settings.returns_best):
        raise ValueError(
            "`stable_training`: `max_held_out_error` needs frames to measure it on, and best parameters to go back to: "
            "set `held_out` of the problem and `returns_best`."
        )
    if not (ratio := settings.simulation.temperature_ratio) > 0:
        raise ValueError(f"`Simulation`: expected temperature_ratio > 0, got {ratio}: choose 1 or more.")
    problem = problem._replace(kT=problem.kT * ratio)
    engine = make_engine(problem, settings.simulation, execution)
    simulation = simulate_phase(engine, settings.simulation)
    learning = learn_phase(problem, engine, settings.learning)

    def init(key: Key, params: Params, position: Positions) -> StableState:
        first = simulation.init(key, params, position)
        zero, unknown = jnp.int32(0), jnp.full((), jnp.nan, jnp.result_type(float))
        best = Best(jax.tree.map(jnp.copy, params), jnp.full_like(unknown, -jnp.inf), unknown)
        return StableState(
            first,
            learning.init(params, first.replicas),
            jax.random.fold_in(key, 1),
            zero,
            jnp.int32(SIMULATE),
            zero,
            best,
        )

    def simulate(state: StableState) -> tuple[StableState, SimulateInfo]:
        simulated, info = simulation.step(state.simulation, state.params)
        phase = jnp.where(info.starts_learning, LEARN, jnp.where(info.gives_up, FINISHED, SIMULATE))
        moved = state._replace(simulation=simulated, num_calls=state.num_calls + 1)
        if not settings.returns_best:
            return moved._replace(phase=phase.astype(jnp.int32)), info
        best, is_best = jax.lax.cond(
            info.starts_learning | info.gives_up, compared, lambda *_: (state.best, jnp.bool(False)), *(state, info)
        )
        is_over = (phase == FINISHED) | ((phase == LEARN) & (state.cycle >= settings.num_cycles))
        chosen = jax.tree.map(lambda a, b: jnp.where(is_over, a, b), best.params, state.params)
        learned = state.learning._replace(updates=state.learning.updates._replace(params=chosen))
        phase = jnp.where(is_over, FINISHED, phase).astype(jnp.int32)
        return moved._replace(phase=phase, best=best, learning=learned), info._replace(is_best=is_best)

    def compared(state: StableState, info: SimulateInfo) -> tuple[Best, Bool[Array, ""]]:
        """The best so far, and whether it is that of the search that has just ended."""
        best = state.best
        is_best = info.stable_steps > best.stable_steps
        params, steps = jax.tree.map(
            lambda a, b: jnp.where(is_best, a, b),
            (state.params, info.stable_steps.astype(best.stable_steps.dtype)),
            (best.params, best.stable_steps),
        )
        is_first = jnp.isnan(best.first_error)
        error = jax.lax.cond(is_first, lambda: held_out_error(state.params), lambda: best.first_error)
        return Best(params, steps, error), is_best

    qm_loss = problem.qm_loss()

    def held_out_error(params: Params) -> Float[Array, ""]:
        if problem.held_out is None:
            return jnp.zeros((), jnp.result_type(float))
        return jnp.asarray(qm_loss(params, problem.held_out)[1].force_mae, jnp.result_type(float))

    def kept_of(state: StableState) -> tuple[StableState, Float[Array, ""]]:
        """The state at the end of a phase with as much of what was learned as keeps the bound of the held-out error.

        Parameters go back half of the way to the best ones, and half of the rest; or the whole way, where a quarter of
        what was learned is still too much.
        """
        whole = jnp.float32(1)
        if not math.isfinite(settings.max_held_out_error):
            return state, whole
        bound = settings.max_held_out_error * state.best.first_error

        def part(fraction) -> Params:
            between = optax.incremental_update(state.params, state.best.params, fraction)
            return jax.tree.map(lambda leaf, whole: leaf.astype(whole.dtype), between, state.params)

        tried = jax.lax.while_loop(
            lambda fraction: (fraction >= LEAST_FRACTION) & (held_out_error(part(fraction)) > bound),
            lambda fraction: fraction / 2,
            whole,
        )
        fraction = jnp.where(tried >= LEAST_FRACTION, tried, 0)
        learned = state.learning._replace(updates=state.learning.updates._replace(params=part(fraction)))
        return state._replace(learning=learned), fraction

    def key_of(state: StableState) -> Key:
        return jax.random.fold_in(state.key, state.num_calls)

    def learn(state: StableState, frames: Labeled, *, num_rounds: int = 1) -> tuple[StableState, LearnInfo]:
        key = key_of(state)
        learned, info = learning.step(state.learning, state.simulation.rewound, frames, key, num_rounds=num_rounds)
        assert info.endpoints is not None
        moved = state._replace(learning=learned, num_calls=state.num_calls + 1)
        chosen, fraction = jax.lax.cond(
            info.ends_cycle,
            lambda moved, ends: next_cycle(moved, ends, key),
            lambda moved, _: (moved, jnp.float32(1)),
            *(moved, info.endpoints),
        )
        is_over = info.gives_up | (fraction == 0)
        chosen = chosen._replace(phase=jnp.where(is_over, FINISHED, chosen.phase).astype(jnp.int32))
        return chosen, info._replace(endpoints=None, kept_fraction=fraction)

    def next_cycle(state: StableState, ends: Endpoints, key: Key) -> tuple[StableState, Float[Array, ""]]:
        """Stable replicas continue from their endpoints; unstable ones are inactive, with a checkpoint before failure.

        Or all begin again. With the fraction that is kept of what was learned.
        """
        state, fraction = kept_of(state)
        state, cycle = state._replace(learning=learning.begin(state.learning)), state.cycle + 1
        replicas = ends.replicas._replace(is_frozen=ends.replicas.is_unstable)
        begun = simulation.begin(state.simulation, replicas, ends.checkpoint, state.params, jax.random.fold_in(key, 1))
        is_over = (cycle >= settings.num_cycles) & (not settings.returns_best)
        phase = jnp.where(is_over, FINISHED, SIMULATE).astype(jnp.int32)
        return state._replace(simulation=begun, cycle=cycle, phase=phase), fraction

    def stop(state: StableState) -> StableState:
        last = jnp.int32(settings.num_cycles)
        if not settings.returns_best:
            return state._replace(phase=jnp.int32(FINISHED), cycle=last)

        def search(state: StableState) -> StableState:
            rewound = state.simulation.rewound
            return next_cycle(state, Endpoints(rewound, rewound), key_of(state))[0]

        return jax.lax.cond(state.phase == LEARN, search, lambda state: state, state)._replace(cycle=last)

    return StableTraining(init, simulate, learn, stop)


def compiled(training: StableTraining, *, donates: bool) -> StableTraining:
    """The functions under `jit`.

    Args:
      training: from `stable_training`.
      donates: the buffers of a state are donated to the next, which halves the memory; a state cannot be used twice.
    """
    donated = "state" if donates else None
    return StableTraining(
        jax.jit(training.init),
        jax.jit(training.simulate, donate_argnames=donated),
        jax.jit(training.learn, static_argnames="num_rounds", donate_argnames=donated),
        jax.jit(training.stop),
    )


def build(problem: Problem, settings: Settings, *, execution: Execution = ONE_DEVICE) -> StableTraining:
    """`stable_training` under `jit`. States are donated where asked, unless a step may have to be repeated.

    Args:
      problem: see `stable_training`.
      settings: see `stable_training`.
      execution: devices and batch sizes.
    """
    training = stable_training(problem, settings, execution=execution)
    return compiled(training, donates=execution.donates and problem.potential.lists is None)


def init(
    problem: Problem,
    settings: Settings,
    key: Key,
    params: Params,
    position: Positions,
    *,
    execution: Execution = ONE_DEVICE,
) -> StableState:
    """The state before the first step: one replica at each position, with thermal velocities.

    Args:
      problem: potential, observables, criterion and data.
      settings: of both phases.
      key: PRNG key of velocities and noise.
      params: of the potential, pretrained.
      position: of the replicas, from the training data, Å.
      execution: devices and batch sizes.
    """
    return build(problem, settings, execution=execution).init(key, params, position)


def run(
    problem: Problem,
    settings: Settings,
    state: StableState,
    *,
    execution: Execution = ONE_DEVICE,
    on_step: Callable[[StableState, SimulateInfo | LearnInfo], None] | None = None,
    on_longer_lists: Callable[[Problem], None] | None = None,
    is_time_up: Callable[[], bool] = lambda: False,
    training: StableTraining | None = None,
) -> StableState:
    """StABlE training from the given state, until `num_cycles` are complete or no more instability is found.

    An epoch of learning that goes wrong is taken back, with a smaller rate, and training that goes wrong too often ends
    with the best parameters of its last learning phase; see `learn.learn_phase`. Where nothing went wrong, the last
    parameters are returned.

    Steps that ran out of capacity of their neighbor lists are repeated with longer ones. With the same arguments the
    result is the same, whether or not the run was interrupted and resumed from a saved state.

    Args:
      problem: potential, observables, criterion and data.
      settings: of both phases.
      state: from `init`, or a saved one.
      execution: devices and batch sizes.
      on_step: called with the state and the info of every step, to save or to print. With `execution.donates` what is
        kept of the state has to be copied.
      on_longer_lists: called with the problem whenever its lists were lengthened.
      is_time_up: asked after every step until it says so: then nothing more is learned, and with `returns_best` a
        search shows what the last parameters are worth. What is returned then depends on the speed of the machine.
      training: what `build` gives, where it has been built already.

    Returns:
      The state at the end; its `params` are the refined ones.
    """
    training = training or build(problem, settings, execution=execution)
    while int(state.phase) != FINISHED:
        result: tuple[StableState, SimulateInfo | LearnInfo]
        if int(state.phase) == SIMULATE:
            result = training.simulate(state)
        else:
            cycle, epoch = int(state.cycle), int(state.learning.epoch)
            frames = static_batch(problem, settings.learning, seed=settings.seed, cycle=cycle, epoch=epoch)
            result = training.learn(state, frames, num_rounds=int(state.learning.num_rounds))
        if int(result[1].num_overflows):
            problem = problem._replace(potential=forms.with_longer_lists(problem.potential))
            training = build(problem, settings, execution=execution)
            if on_longer_lists is not None:
                on_longer_lists(problem)
            continue
        state = result[0]
        if on_step is not None:
            on_step(state, result[1])
        if int(state.cycle) < settings.num_cycles and int(state.phase) != FINISHED and is_time_up():
            state = training.stop(state)
    return state
