"""How long the stages of a run take on this machine, from a few steps and the most that may be needed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import processes
from experiments.systems.base import System
from stablejax.dynamics import Replica
from stablejax.stable import Settings

FEW_STEPS, MOST_STEPS = 8, 100
"""Of dynamics: the first measurement, and the most that are added to them for the second one."""
ENOUGH_S = 1.0
"""Long enough for a measurement."""


class Speed(NamedTuple):
    """Measured on this machine, with all devices at work."""

    frame_s: float  # to differentiate the loss of a labeled frame
    evaluation_s: float  # of a step of one replica, at the number of replicas of evaluations
    training_s: float  # the same at that of StABlE training


def most_steps(settings: Settings, num_replicas: int) -> int:
    """Replica-steps of StABlE training if nothing ends early: searches, rewinding after them, and epochs.

    Args:
      settings: of the stage.
      num_replicas: R.
    """
    simulation, learning = settings.simulation, settings.learning
    # A longer epoch is simulated twice more, to find where its replicas failed and where they are rewound to.
    in_an_epoch = 1 if _most_rounds(settings) == 1 else 3 * _most_rounds(settings)
    times_t = (simulation.max_searches or 0) + 1 + learning.max_epochs * in_an_epoch
    return settings.num_cycles * times_t * simulation.steps_per_epoch * num_replicas


def most_frames(settings: Settings, system: System, num_replicas: int) -> int:
    """Frames that StABlE training differentiates if nothing ends early; energies of samples count as whole ones.

    Args:
      settings: of the stage.
      system: what is trained.
      num_replicas: R.
    """
    learning = settings.learning
    optimization = learning.optimization
    samples = num_replicas * settings.simulation.steps_per_epoch // learning.steps_per_frame * _most_rounds(settings)
    labeled = min(optimization.qm_batch_size, len(system.data.split.train))
    in_an_epoch = optimization.max_updates * (samples + labeled) + bool(learning.noise.num_blocks) * samples
    return settings.num_cycles * learning.max_epochs * in_an_epoch


def _most_rounds(settings: Settings) -> int:
    noise = settings.learning.noise
    return noise.max_rounds if noise.wanted_signal_to_noise else 1


def num_at_once(system: System, num_replicas: int) -> int:
    """How many replicas all devices simulate at once; the others follow them.

    Args:
      system: provides the size of a batch on a device.
      num_replicas: in all.
    """
    return min(num_replicas, (system.execution.batch_size or num_replicas) * jax.device_count())


def step_seconds(replay: Callable[..., tuple[Replica, Any]], prepared: Any, replicas: Replica, *, number: int) -> float:
    """Wall time of a step of one replica, from two numbers of steps; NaN where no replica takes any.

    Args:
      replay: see `failures.replayer`.
      prepared: parameters, as the dynamics take them.
      replicas: at their start, on axis 0.
      number: of replicas that are simulated, copies where there are fewer.
    """
    chosen = np.resize(np.arange(len(replicas.step)), number)
    replicas = jax.tree.map(lambda leaf: leaf[chosen], replicas)

    def measured(num_steps: int) -> tuple[float, int]:
        until = jnp.full_like(replicas.step, num_steps)
        taken = processes.to_host(replay(prepared, replicas, until)[1].step)
        return seconds(lambda: replay(prepared, replicas, until)), int(taken.sum())

    few_s, few = measured(FEW_STEPS)
    more = min(max(int(FEW_STEPS * ENOUGH_S / few_s), FEW_STEPS), MOST_STEPS)
    many_s, many = measured(FEW_STEPS + more)
    if many > few and many_s > few_s:
        return (many_s - few_s) / (many - few)
    return many_s / many if many else math.nan  # on a busy machine, or where replicas stopped


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of a call, the mean of several where it is short; all processes get the same.

    Args:
      call: of a compiled function; it is called once more before, where it is compiled.
    """
    jax.block_until_ready(call())
    begun, number, took = time.perf_counter(), 0, 0.0
    while took < ENOUGH_S / 2:
        jax.block_until_ready(call())
        number, took = number + 1, processes.smallest(time.perf_counter() - begun)
    return took / number
