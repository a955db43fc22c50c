"""The simulation phase of Algorithm 1: replicas run until some fail, and are rewound to just before their failure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stablejax import dynamics
from stablejax.dynamics import Replica, Trajectory
from stablejax.integrators import Integrator
from stablejax.parallel import Execution
from stablejax.problem import Problem
from stablejax.types import Array, Bool, Criterion, Float, Int, Key, Params, Positions


class Simulation(NamedTuple):
    """Settings of the dynamics and of the simulation phase."""

    thermostat: Callable[..., Integrator]  # (potential, mass, *, kT); `partial(langevin, timestep=…, friction=…)`
    steps_per_epoch: int = 2000  # t
    max_unstable: float = 0.75  # f_max: the phase ends when this fraction of the replicas has failed
    max_searches: int | None = None  # training ends after this many times t without reaching f_max; None: no limit
    target_ratio: float = math.inf  # training ends when replicas are stable this many times as long as at first
    restarts: bool = False  # every search begins at the first positions; False: where the last phase ended
    temperature_ratio: float = 1.0  # of the dynamics in training, over that of the problem
    table_intervals: int = 1024  # of the tables that replace radial networks in dynamics; 0: exact networks


class Engine(NamedTuple):
    """Replicas of one problem under one thermostat; all functions map over replicas."""

    integrator: Integrator
    criterion: Criterion
    execution: Execution
    steps_per_epoch: int

    def prepare(self, params: Params) -> Any:
        """What dynamics computes once from the parameters."""
        return self.integrator.potential.prepare(params)

    def start(self, prepared: Any, key: Key, position: Positions) -> Replica:
        """Replicas at step 0.

        Args:
          prepared: from `prepare`.
          key: PRNG key of velocities and noise.
          position: of each, Å.
        """

        def one(prepared, key_and_position):
            key, position = key_and_position
            return dynamics.init_replica(self.integrator, key, position, prepared, self.criterion)

        return self.execution.map_replicas(one)(prepared, (jax.random.split(key, len(position)), position))

    def run(self, prepared: Any, replicas: Replica) -> Replica:
        """Replicas after t further steps or up to their first violation; frozen ones stay.

        Args:
          prepared: from `prepare`.
          replicas: current ones.
        """

        def one(prepared, replica):
            until_step = replica.step + self.steps_per_epoch
            return dynamics.advance(self.integrator, self.criterion, prepared, replica, until_step)

        return self.execution.map_replicas(one, is_active=lambda replica: ~replica.is_frozen)(prepared, replicas)

    def replay(self, prepared: Any, replicas: Replica, until_step: Int[Array, " replica"]) -> Replica:
        """Repeats the same steps, up to a given step of each replica.

        Args:
          prepared: from `prepare`, with the same parameters.
          replicas: where to begin.
          until_step: of each.
        """

        def one(prepared, replica_and_step):
            replica, until_step = replica_and_step
            restarted = dynamics.restart(replica, self.criterion)
            return dynamics.advance(self.integrator, self.criterion, prepared, restarted, until_step)

        return self.execution.map_replicas(one)(prepared, (replicas, until_step))

    def sample(
        self, prepared: Any, replicas: Replica, *, num_frames: int, steps_per_frame: int, freeze_above: float
    ) -> tuple[Replica, Trajectory]:
        """Frames of each replica from its current state; see `dynamics.sample`.

        Args:
          prepared: from `prepare`.
          replicas: current ones.
          num_frames: of each.
          steps_per_frame: steps between frames.
          freeze_above: value of the criterion, in its unit.
        """

        def one(prepared, replica):
            return dynamics.sample(
                self.integrator,
                self.criterion,
                prepared,
                dynamics.restart(replica, self.criterion),
                num_frames=num_frames,
                steps_per_frame=steps_per_frame,
                freeze_above=freeze_above,
            )

        return self.execution.map_replicas(one)(prepared, replicas)


class SimulateState(NamedTuple):
    """State of the simulation phase. Replicas are on axis 0."""

    replicas: Replica  # current ones
    checkpoint: Replica  # before the latest t steps
    earlier_checkpoint: Replica  # t steps before that; kept once a replica is frozen
    rewound: Replica  # where every epoch of the learning phase starts
    num_searches: Int[Array, ""]  # simulations of t steps in the present phase
    start: Positions  # of the first search, Å
    begun: Int[Array, " replica"]  # steps of each when the present search began
    first_stable_steps: Float[Array, ""]  # of the first search, see `SimulateInfo`; NaN until it has ended


class SimulateInfo(NamedTuple):
    """Statistics of a step of the simulation phase."""

    fraction_unstable: Float[Array, ""]
    num_steps: Int[Array, ""]  # replica-steps taken
    most_steps: Int[Array, ""]  # of one replica
    num_quarantined: Int[Array, ""]  # replicas stopped before a state that was not finite
    num_overflows: Int[Array, ""]  # replicas paused by a neighbor list that overflowed: repeat from the state before
    starts_learning: Bool[Array, ""]
    gives_up: Bool[Array, ""]  # too few failed within `max_searches`
    stable_steps: Float[Array, ""]  # mean of a replica until it fails: all steps of the search over its failures
    reaches_target: Bool[Array, ""]  # `target_ratio`, even if another replica failed now
    is_best: Bool[Array, ""]  # a search ends that was longer than all before; see `stable.Settings.returns_best`


class SimulatePhase(NamedTuple):
    """`init(key, params, position) -> state` and `step(state, params) -> (state, info)`."""

    init: Callable[[Key, Params, Positions], SimulateState]
    step: Callable[[SimulateState, Params], tuple[SimulateState, SimulateInfo]]
    begin: Callable[..., SimulateState]  # another search: (state, replicas, checkpoint, params, key)


def make_engine(problem: Problem, settings: Simulation, execution: Execution) -> Engine:
    """Dynamics of the problem's potential in its fast form.

    Args:
      problem: its potential, masses, kT and criterion.
      settings: the thermostat, t and the tables.
      execution: devices and batch sizes.
    """
    potential = problem.potential.fast(settings.table_intervals)
    integrator = settings.thermostat(potential, problem.mass, kT=problem.kT)
    return Engine(integrator, problem.criterion, execution, settings.steps_per_epoch)


def simulate_phase(engine: Engine, settings: Simulation) -> SimulatePhase:
    """The simulation phase (Algorithm 1, lines 12 to 17 and 23).

    Active replicas run t steps at a time and freeze at their first violation, until a fraction `max_unstable` has. Then
    every replica is rewound by t steps, exactly: a frozen one by replaying, from the earlier checkpoint, up to t steps
    before its violation. None is rewound to before the start of the present simulation phase.

    The mean number of steps until a failure is estimated as for a constant hazard, all steps over the number of
    failures. A search ends training when the estimate reaches `target_ratio` times that of the first search, with one
    failure more than there were.

    Args:
      engine: see `make_engine`.
      settings: f_max and the budget.

    Raises:
      ValueError: t or the budget are not positive, or f_max is not a fraction.
    """
    most = settings.max_searches
    if settings.steps_per_epoch < 1 or not 0 < settings.max_unstable <= 1 or (most is not None and most < 1):
        raise ValueError(
            "`Simulation`: expected steps_per_epoch >= 1, 0 < max_unstable <= 1 and max_searches >= 1, got "
            f"{settings.steps_per_epoch}, {settings.max_unstable} and {most}: change the settings."
        )
    if not settings.target_ratio > 1:
        raise ValueError(f"`Simulation`: expected target_ratio > 1, got {settings.target_ratio}: choose a larger one.")

    def init(key: Key, params: Params, position: Positions) -> SimulateState:
        replicas = engine.start(engine.prepare(params), key, position)
        unknown = jnp.full((), jnp.nan, jnp.result_type(float))
        return SimulateState(
            replicas, replicas, replicas, replicas, jnp.int32(0), position, jnp.copy(replicas.step), unknown
        )

    def begin(state: SimulateState, replicas: Replica, checkpoint: Replica, params: Params, key: Key) -> SimulateState:
        if settings.restarts:
            replicas = checkpoint = engine.start(engine.prepare(params), key, state.start)
        return state._replace(
            replicas=replicas,
            checkpoint=checkpoint,
            earlier_checkpoint=checkpoint,
            num_searches=jnp.int32(0),
            begun=replicas.step,
        )

    def step(state: SimulateState, params: Params) -> tuple[SimulateState, SimulateInfo]:
        prepared, is_active = engine.prepare(params), ~state.replicas.is_frozen
        earlier_checkpoint = select(is_active, state.checkpoint, state.earlier_checkpoint)
        replicas = engine.run(prepared, state.replicas)
        fraction = jnp.mean(replicas.is_unstable)
        num_searches = state.num_searches + 1
        stable_steps, reaches_target = estimate(state, replicas)
        starts_learning = (fraction >= settings.max_unstable) & ~reaches_target
        gives_up = reaches_target | (~starts_learning & (num_searches >= (jnp.inf if most is None else most)))
        first = jnp.where(
            jnp.isnan(state.first_stable_steps) & (starts_learning | gives_up), stable_steps, state.first_stable_steps
        )

        def rewind():
            target = jnp.maximum(replicas.step - settings.steps_per_epoch, earlier_checkpoint.step)
            return engine.replay(prepared, earlier_checkpoint, target)

        rewound = jax.lax.cond(starts_learning, rewind, lambda: state.rewound)
        info = SimulateInfo(
            fraction_unstable=fraction,
            num_steps=jnp.sum(replicas.step - state.replicas.step),
            most_steps=jnp.max(replicas.step - state.replicas.step),
            num_quarantined=jnp.sum(~replicas.is_finite),
            num_overflows=num_overflows(engine, replicas, rewound),
            starts_learning=starts_learning,
            gives_up=gives_up,
            stable_steps=stable_steps,
            reaches_target=reaches_target,
            is_best=jnp.bool(False),
        )
        moved = state._replace(
            replicas=replicas,
            checkpoint=state.replicas,
            earlier_checkpoint=earlier_checkpoint,
            rewound=rewound,
            num_searches=num_searches,
            first_stable_steps=first,
        )
        return moved, info

    def estimate(state: SimulateState, replicas: Replica) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        total = jnp.sum((replicas.step - state.begun).astype(state.first_stable_steps.dtype))
        num_failed = jnp.sum(replicas.is_unstable)
        reaches_target = total / (num_failed + 1) >= settings.target_ratio * state.first_stable_steps
        return total / jnp.maximum(num_failed, 1), reaches_target

    return SimulatePhase(init, step, begin)


def num_overflows(engine: Engine, *some: Replica) -> Int[Array, ""]:
    """Replicas that are paused by a list that overflowed; 0 where there are no lists.

    Args:
      engine: see `make_engine`.
      some: replicas on axis 0.
    """
    if engine.integrator.potential.lists is None:
        return jnp.int32(0)
    return sum((jnp.sum(replicas.did_overflow) for replicas in some), jnp.int32(0))


def select(is_first: Bool[Array, " replica"], first: Any, second: Any) -> Any:
    """One pytree or the other for each replica on axis 0.

    Args:
      is_first: which.
      first: taken where True.
      second: taken where False.
    """

    def one(a, b):
        return jnp.where(is_first.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(one, first, second)
