"""The pretraining stage: supervised training on energies and forces, before StABlE training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments import memory
from experiments.progress import Progress
from experiments.systems import base
from experiments.systems.base import System
from stablejax import parallel, pretrain
from stablejax.losses import Labeled
from stablejax.parallel import REPLICA_AXIS, REPLICATED
from stablejax.pretrain import PretrainState
from stablejax.types import Array, Params


class Settings(NamedTuple):
    """Settings of supervised training."""

    optimizer: optax.GradientTransformation
    num_steps: int  # largest number
    batch_size: int
    steps_per_validation: int
    average_decay: float  # of the moving average of parameters that is kept
    position_noise: float  # Å
    min_rate_scale: float | None  # of a plateau, at which training ends; None: another schedule
    seed: int


class Course(NamedTuple):
    """State of supervised training between two validations."""

    state: PretrainState
    best_params: Params  # of the lowest validation loss so far
    best_loss: Array  # []


class Program(NamedTuple):
    """Compiled supervised training, with batches sharded over all devices."""

    init: Callable  # params -> state
    run: Callable  # (state, frames, index of each batch) -> (state, info of each step)


def settings_of(config: ConfigDict) -> Settings:
    """The settings of `config.pretrain`.

    Raises:
      ValueError: there is no schedule of that name.
    """
    settings = config.pretrain
    return Settings(
        optimizer=optimizer_of(settings),
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        steps_per_validation=settings.steps_per_validation,
        average_decay=settings.average_decay,
        position_noise=settings.position_noise_A,
        min_rate_scale=settings.min_rate_scale if settings.schedule == "plateau" else None,
        seed=config.seed,
    )


def start(settings: Settings, system: System, program: Program) -> Course:
    """The state before the first step.

    Args:
      settings: from `settings_of`.
      system: what is trained.
      program: from `build`.
    """
    state = program.init(system.problem.potential.init(base.key_for(settings.seed, "model")))
    return Course(state, state.average_params, jnp.float32(jnp.inf))


def run_pretraining(
    settings: Settings,
    system: System,
    progress: Progress,
    *,
    program: Program | None = None,
    saved: Course | None = None,
    save: Callable[[int, Course], None] = lambda *_: None,
) -> Params:
    """Parameters with the lowest validation loss.

    Args:
      settings: from `settings_of`.
      system: what is trained.
      progress: updated after every validation.
      program: from `build`, where it has been built already.
      saved: state to go on from. None: the start.
      save: called after every validation with the number of steps and the state.

    Raises:
      ValueError: training diverged, or the batch does not fit the devices or the memory.
    """
    data = system.data
    program = program or build(settings, system)
    validate = jax.jit(system.problem.qm_loss())
    train, validation = data.labeled(data.split.train), data.labeled(data.split.validation)
    course = saved or start(settings, system, program)
    check_memory(settings, program, course.state, train)
    for done, index in _blocks(settings, len(train.energy)):
        if done <= course.state.step:  # by an earlier invocation
            continue
        if _has_ended(settings, course.state):
            break
        state, info = program.run(course.state, train, index)
        loss, errors = validate(state.average_params, validation)
        _report(progress, done, settings.num_steps, float(info.loss.mean()), float(loss), errors)
        if not np.isfinite(float(loss)):
            raise ValueError("pretraining diverged: lower config.pretrain.learning_rate.")
        is_best = loss < course.best_loss
        course = Course(state, *((state.average_params, loss) if is_best else course[1:]))
        save(done, course)
    return course.best_params


def _blocks(settings: Settings, num_frames: int) -> Iterator[tuple[int, jax.Array]]:
    """Steps until the end of each validation, and the indices of their batches."""
    rng = np.random.default_rng([settings.seed, 0])
    for done in range(0, settings.num_steps, settings.steps_per_validation):
        num_steps = min(settings.steps_per_validation, settings.num_steps - done)
        yield done + num_steps, batches(rng, num_frames, num_steps, settings.batch_size)


def _report(progress: Progress, step: int, num_steps: int, train_loss: float, loss: float, errors) -> None:
    energy_mae, force_mae = float(errors.energy_mae), float(errors.force_mae)
    progress.update(
        f"step {step}/{num_steps}, loss {train_loss:.4f}, validation {1000 * energy_mae:.0f} meV, {force_mae:.3f} eV/Å",
        step / num_steps,
        step=step,
        train_loss=train_loss,
        validation_loss=loss,
        validation_energy_mae_eV=energy_mae,
        validation_force_mae_eV_per_A=force_mae,
    )


def _has_ended(settings: Settings, state: PretrainState) -> bool:
    """Whether the rate has fallen as far as it may."""
    if settings.min_rate_scale is None:
        return False
    # Scales are products in float32, slightly above or below the bound.
    return float(optax.tree.get(state.optimizer_state, "scale")) <= settings.min_rate_scale * (1 + 1e-5)


def check_memory(settings: Settings, program: Program, state, train: Labeled) -> int:
    """Compile the program, and raise where it would not fit; returns its peak memory on each device, bytes.

    Args:
      settings: from `settings_of`.
      program: from `build`.
      state: from its `init`.
      train: all training frames.
    """
    num_first = min(settings.num_steps, settings.steps_per_validation)
    first = batches(np.random.default_rng(0), len(train.energy), num_first, settings.batch_size)
    return memory.check("pretraining", program.run, (state, train, first), "lower config.pretrain.batch_size")


def build(settings: Settings, system: System) -> Program:
    """Supervised training under `jit`.

    Args:
      settings: from `settings_of`.
      system: what is trained.

    Raises:
      ValueError: the batch cannot be sharded evenly over the devices.
    """
    mesh = parallel.replica_mesh()
    if settings.batch_size % mesh.size:
        raise ValueError(
            f"config.pretrain.batch_size = {settings.batch_size} cannot be sharded evenly over {mesh.size} devices: "
            "choose a multiple, or set config.host_devices."
        )
    init, step = pretrain.pretraining(
        system.problem.qm_loss(),
        settings.optimizer,
        average_decay=settings.average_decay,
        position_noise=settings.position_noise,
        seed=settings.seed,
        axis_name=REPLICA_AXIS,
    )

    def run(state, frames, index):
        return jax.lax.scan(lambda s, batch: step(s, jax.tree.map(lambda leaf: leaf[batch], frames)), state, index)

    def place(params):
        # With the sharding that `run` returns, so that it is compiled once.
        return jax.device_put(init(params), NamedSharding(mesh, REPLICATED))

    in_specs = (REPLICATED, REPLICATED, PartitionSpec(None, REPLICA_AXIS))
    shared = jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=REPLICATED, check_vma=False)
    return Program(place, jax.jit(shared))


def batches(rng: np.random.Generator, num_frames: int, num_batches: int, batch_size: int) -> jax.Array:
    """Indices of batches, drawn without replacement within an epoch.

    Args:
      rng: draws the order.
      num_frames: to draw from.
      num_batches: to draw.
      batch_size: frames of each.
    """
    needed = num_batches * batch_size
    epochs = [rng.permutation(num_frames) for _ in range(-(-needed // num_frames))]
    return jnp.asarray(np.concatenate(epochs)[:needed].reshape(num_batches, batch_size))


def optimizer_of(settings: ConfigDict) -> optax.GradientTransformation:
    """Adam with the schedule of `config.pretrain`.

    Raises:
      ValueError: there is no schedule of that name.
    """
    clip, rate = optax.clip_by_global_norm(settings.clip_norm), settings.learning_rate

    def adam(rate) -> optax.GradientTransformation:
        return optax.adamw(rate, weight_decay=settings.weight_decay) if settings.weight_decay else optax.adam(rate)

    if settings.schedule == "cosine":
        return optax.chain(clip, adam(optax.cosine_decay_schedule(rate, settings.num_steps)))
    if settings.schedule == "constant":
        return optax.chain(clip, adam(rate))
    if settings.schedule == "plateau":
        plateau = optax.contrib.reduce_on_plateau(
            factor=settings.plateau_factor,
            patience=settings.plateau_patience,
            accumulation_size=settings.steps_per_validation,
        )
        return optax.chain(clip, adam(rate), plateau)
    raise ValueError(f"config.pretrain.schedule has to be constant, cosine or plateau, got {settings.schedule!r}.")
