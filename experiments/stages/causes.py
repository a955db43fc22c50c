"""Why all replicas of a stage failed, in one sentence that says what to change."""

from __future__ import annotations

from functools import partial

import jax

from experiments import processes
from experiments.systems.base import System
from stablejax import dynamics
from stablejax.dynamics import Replica
from stablejax.failures import Cause, cause
from stablejax.types import Criterion, Params

ADVICE = {
    Cause.STARTS: "raise the threshold of config.stability, or check that the data are of this system",
    Cause.LOST: "lower config.md.timestep_fs, or raise config.pretrain.num_steps",
    Cause.EARLY: "lower config.md.timestep_fs or config.md.temperature_K",
    Cause.POOR: "raise config.pretrain.num_steps",
}


def sentence(
    system: System, criterion: Criterion, params: Params, starts: Replica, *, num_lost: int, most_steps: int
) -> str:
    """The cause and what to do; the criterion is evaluated on the starts for it.

    Args:
      system: its potential and thermostat.
      criterion: that all replicas failed by.
      params: of the potential.
      starts: of the replicas.
      num_lost: replicas whose state was not finite.
      most_steps: that any of them took.
    """
    problem = system.problem
    potential = problem.potential.fast(system.table_intervals)
    integrator = system.thermostat(potential, problem.mass, kT=problem.kT)
    violates = jax.jit(jax.vmap(partial(dynamics.violates, integrator, criterion), in_axes=(None, 0)))
    found = processes.to_host(violates(jax.jit(potential.prepare)(params), starts))
    why = cause(num_replicas=len(found), num_violating=int(found.sum()), num_lost=num_lost, most_steps=most_steps)
    return f"{why.value}: {ADVICE[why]}"
