"""The two stages that change the parameters: pretraining and StABlE training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments import memory, systems
from experiments.progress import Progress
from experiments.systems import System
from stablejax import boltzmann, losses, parallel, pretrain, refine, reweighting, stable, uncertainty, units
from stablejax.parallel import REPLICA_AXIS
from stablejax.types import Params

REPLICATED, SHARDED = PartitionSpec(), PartitionSpec(REPLICA_AXIS)


def run_pretraining(config: ConfigDict, system: System, progress: Progress) -> Params:
    """Parameters with the lowest validation loss."""
    settings = config.pretrain
    init, run = build_pretraining(settings, system)
    validate = jax.jit(system.qm_loss)
    train, validation = systems.labeled(system, system.split.train), systems.labeled(system, system.split.validation)
    state = init(system.potential.init(systems.key_for(config, "model")))
    rng = np.random.default_rng([config.seed, 0])
    num_first = min(settings.num_steps, settings.steps_per_validation)
    first = batches(np.random.default_rng(0), len(train.energy), num_first, settings.batch_size)
    memory.check("pretraining", run, (state, train, first), "lower config.pretrain.batch_size")
    best_loss, best_params = np.inf, state.average_params
    for done in range(0, settings.num_steps, settings.steps_per_validation):
        num_steps = min(settings.steps_per_validation, settings.num_steps - done)
        state, info = run(state, train, batches(rng, len(train.energy), num_steps, settings.batch_size))
        loss, errors = validate(state.average_params, validation)
        if float(loss) < best_loss:
            best_loss, best_params = float(loss), state.average_params
        progress.update(
            f"step {done + num_steps}/{settings.num_steps}, loss {float(info.loss.mean()):.4f}, validation "
            f"{1000 * float(errors.energy_mae):.0f} meV, {float(errors.force_mae):.3f} eV/Å",
            (done + num_steps) / settings.num_steps,
            step=done + num_steps,
            train_loss=float(info.loss.mean()),
            validation_loss=float(loss),
            validation_energy_mae_eV=float(errors.energy_mae),
            validation_force_mae_eV_per_A=float(errors.force_mae),
        )
        if not np.isfinite(float(loss)):
            raise ValueError("pretraining diverged: lower config.pretrain.learning_rate.")
        if settings.schedule == "plateau":
            scale = float(optax.tree.get(state.optimizer_state, "scale"))
            if scale <= settings.min_rate_scale:
                break
    return best_params


def build_pretraining(settings: ConfigDict, system: System):
    """`init(params) -> state` and `run(state, frames, index of each batch) -> (state, info of each step)`."""
    mesh = parallel.replica_mesh()
    if settings.batch_size % mesh.size:
        raise ValueError(
            f"config.pretrain.batch_size = {settings.batch_size} cannot be shared evenly by {mesh.size} devices: "
            "choose a multiple, or set config.host_devices."
        )
    init, step = pretrain.pretraining(
        system.qm_loss, _pretrain_optimizer(settings), average_decay=settings.average_decay, axis_name=REPLICA_AXIS
    )

    def run(state, frames, index):
        return jax.lax.scan(lambda s, batch: step(s, jax.tree.map(lambda leaf: leaf[batch], frames)), state, index)

    def place(params):
        # Where `run` leaves its state, so that it is compiled once.
        return jax.device_put(init(params), NamedSharding(mesh, REPLICATED))

    in_specs = (REPLICATED, REPLICATED, PartitionSpec(None, REPLICA_AXIS))
    return place, jax.jit(jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=REPLICATED, check_vma=False))


def _build_refinement(config: ConfigDict, system: System) -> refine.Refinement:
    """From samples, shared between all devices, to new parameters."""
    settings, kT = config.stable, units.thermal_energy(config.md.temperature_K)
    mesh = parallel.replica_mesh()
    _check_trust(settings, mesh.size)
    chunk_size = settings.estimator_chunk or memory.estimator_chunk(system.potential, len(system.mass))
    shared = partial(jax.shard_map, mesh=mesh, check_vma=False)
    value_and_grad = boltzmann.boltzmann_value_and_grad(
        losses.observable_loss(system.reference, system.observable_weight),
        system.energies,
        system.observable_fn,
        kT=kT,
        chunk_size=chunk_size,
        axis_name=REPLICA_AXIS,
    )

    def observable_grad(params, position, mask, weight):
        mask = mask if system.subsample is None else system.subsample(position, mask)
        return value_and_grad(params, position, mask=mask, weight=weight)

    def signal_to_noise(params, position, mask):
        # Replicas know nothing of each other, so each is whole in one block.
        replica = jnp.arange(len(mask)) * (settings.num_replicas // mesh.size) // len(mask)
        mask = mask if system.subsample is None else system.subsample(position, mask)
        trust = uncertainty.jackknife_gradient(value_and_grad, num_blocks=settings.trust_blocks)
        return trust(params, position, block=replica % settings.trust_blocks, mask=mask).signal_to_noise

    energies = reweighting.sample_energies(system.potential.energy, chunk_size=chunk_size)
    reuse = refine.Reuse(
        energies_fn=shared(energies, in_specs=(REPLICATED, SHARDED), out_specs=SHARDED),
        kT=kT,
        max_updates=settings.max_updates,
        min_effective_fraction=settings.min_effective_fraction,
    )
    samples = (REPLICATED, SHARDED, SHARDED)
    look = shared(signal_to_noise, in_specs=samples, out_specs=REPLICATED)
    return refine.refinement(
        observable_grad=shared(observable_grad, in_specs=(*samples, SHARDED), out_specs=REPLICATED),
        qm_loss=system.qm_loss,
        combine=_combination(settings),
        optimizer=_stable_optimizer(settings),
        reuse=reuse if settings.max_updates > 1 else None,
        signal_to_noise=look if settings.trust_blocks else None,
    )


def build_stable_training(config: ConfigDict, system: System) -> stable.StableTraining:
    """Algorithm 1 with the settings of the config."""
    settings = config.stable
    return stable.stable_training(
        prepare=system.md_form.prepare,
        integrator=system.integrator,
        criterion=system.train_criterion,
        refinement=_build_refinement(config, system),
        plateau=optax.contrib.reduce_on_plateau(factor=settings.plateau_factor, patience=settings.plateau_patience),
        rate_schedule=_rate_schedule(settings),
        min_rate_scale=settings.min_rate_scale,
        max_epochs=settings.max_epochs,
        steps_per_epoch=settings.steps_per_epoch,
        steps_per_frame=settings.steps_per_frame,
        max_unstable=settings.max_unstable,
        min_unstable=settings.min_unstable,
        freeze_above=system.freeze_above,
        map_replicas=system.map_replicas,
    )


def init_stable(config: ConfigDict, system: System, params: Params) -> stable.StableState:
    """The state at the start of StABlE training, from frames of the training set."""
    position = systems.start_positions(system, system.split.train, config.stable.num_replicas)
    return jax.jit(build_stable_training(config, system).init)(systems.key_for(config, "stable"), params, position)


def run_stable(
    config: ConfigDict,
    system: System,
    state: stable.StableState,
    tracker: list[dict],
    save: Callable[[stable.StableState, list[dict]], None],
    progress: Progress,
) -> stable.StableState:
    """Cycles of simulation and learning, from where `state` and `tracker` stand; `save` is called after every step."""
    settings = config.stable
    simulate, learn = _compiled(config, system)
    _check_memory(config, system, simulate, learn, state)
    ps_per_step = config.md.timestep_fs / 1000
    most_calls = settings.max_simulation_ps / (settings.steps_per_epoch * ps_per_step)
    simulated_ps = tracker[-1]["simulated_ps"] if tracker else 0.0
    calls = 0
    while int(state.cycle) < settings.num_cycles:
        cycle, epoch, before = int(state.cycle), int(state.epoch), state
        info: stable.SimulateInfo | stable.LearnInfo
        if int(state.phase) == stable.SIMULATE:
            state, info = simulate(state)
        else:
            num_rounds = _num_rounds(settings, tracker[-1])
            state, info = learn(state, _static_batch(config, system, cycle, epoch), num_rounds=num_rounds)
        if int(info.num_overfull):
            system, state = systems.lengthen_lists(system, progress), before
            simulate, learn = _compiled(config, system)
            continue
        if isinstance(info, stable.SimulateInfo):
            calls = 0 if int(state.phase) == stable.LEARN else calls + 1
        simulated_ps += float(info.num_steps) * ps_per_step
        entry = _course_entry(info, cycle, simulated_ps)
        tracker.append(entry)
        save(state, tracker)
        done = cycle + 1 if int(state.cycle) > cycle else cycle + _fraction_of_cycle(settings, entry, epoch)
        progress.update(
            f"cycle {cycle + 1}/{settings.num_cycles}, {_said(entry, epoch)}, {simulated_ps:.0f} ps simulated, "
            f"{100 * entry['fraction_unstable']:.0f} % unstable",
            done / settings.num_cycles,
            **entry,
        )
        if calls > most_calls:
            progress.say(
                f"no more instability: under {100 * settings.max_unstable:.0f} % of the replicas failed within "
                f"{settings.max_simulation_ps:g} ps, so StABlE training ends after {cycle} cycles"
            )
            break
    return state


def _compiled(config: ConfigDict, system: System) -> tuple[Callable, Callable]:
    """`simulate` and `learn`. Buffers are given up, unless a step may have to be repeated."""
    training = build_stable_training(config, system)
    donated = None if system.with_more_pairs else "state"
    return (
        jax.jit(training.simulate, donate_argnames=donated),
        jax.jit(training.learn, static_argnames="num_rounds", donate_argnames=donated),
    )


def _check_memory(config: ConfigDict, system: System, simulate, learn, state) -> None:
    fewer = "lower config.stable.num_replicas or use more devices"
    memory.check("a step of simulation", simulate, (state,), fewer)
    smaller = "lower config.stable.estimator_chunk or config.stable.qm_batch_size, or "
    frames = _static_batch(config, system, cycle=0, epoch=0)
    memory.check("a step of learning", learn, (state, frames), smaller + fewer, num_rounds=1)


def _num_rounds(settings: ConfigDict, last: dict) -> int:
    """How many times t an epoch simulates, for the wanted signal-to-noise: a power of 2, for few compilations."""
    if not settings.wanted_signal_to_noise or not np.isfinite(last.get("signal_to_noise", np.nan)):
        return 1
    wanted = settings.wanted_signal_to_noise
    needed = uncertainty.samples_needed(last["num_rounds"], last["signal_to_noise"], wanted=wanted)
    return min(2 ** int(np.ceil(np.log2(needed))), settings.max_rounds)


def _check_trust(settings: ConfigDict, num_devices: int) -> None:
    if settings.wanted_signal_to_noise and not settings.trust_blocks:
        raise ValueError(
            "config.stable.wanted_signal_to_noise needs the gradient's signal-to-noise: set config.stable.trust_blocks."
        )
    if settings.trust_blocks * num_devices > settings.num_replicas:
        raise ValueError(
            f"config.stable.trust_blocks = {settings.trust_blocks} needs as many replicas on each of {num_devices} "
            f"devices, got {settings.num_replicas} in all: choose fewer blocks."
        )


def _static_batch(config: ConfigDict, system: System, cycle: int, epoch: int) -> losses.Labeled:
    """Frames of the static set for one epoch, without replacement; they follow from the seed and the epoch only."""
    rng = np.random.default_rng([config.seed, 1, cycle, epoch])
    return systems.labeled(system, rng.permutation(system.split.train)[: config.stable.qm_batch_size])


def _course_entry(info: stable.SimulateInfo | stable.LearnInfo, cycle: int, simulated_ps: float) -> dict:
    """One point of the course of training, as numbers that JSON holds."""
    entry = {
        "phase": "simulating",
        "cycle": cycle,
        "fraction_unstable": float(info.fraction_unstable),
        "num_quarantined": int(info.num_quarantined),
        "simulated_ps": simulated_ps,
    }
    if isinstance(info, stable.SimulateInfo):
        return entry
    seen = info.refinement
    trust = {}
    if not np.isnan(seen.signal_to_noise):
        ratio = float(seen.signal_to_noise)
        wanted = float(uncertainty.samples_needed(int(info.num_samples), seen.signal_to_noise, wanted=1.0))
        trust = {"signal_to_noise": ratio, "samples_for_unit_signal_to_noise": wanted}
    return (
        entry
        | trust
        | {
            "phase": "learning",
            "num_rounds": int(info.num_rounds),
            "num_samples": int(info.num_samples),
            "observable_loss": float(seen.observable_loss),
            "qm_loss": float(seen.qm_loss),
            "qm_force_mae_eV_per_A": float(seen.qm_errors.force_mae),
            "observable_gradient_norm": float(seen.observable_gradient_norm),
            "qm_gradient_norm": float(seen.qm_gradient_norm),
            "gradient_cosine": float(seen.gradient_cosine),
            "rate_scale": float(info.rate_scale),
            "num_updates": int(seen.num_updates),
            "effective_fraction": float(seen.effective_fraction),
        }
    )


def _said(entry: dict, epoch: int) -> str:
    if entry["phase"] == "simulating":
        return "simulating"
    return f"learning, epoch {epoch + 1}, observable loss {entry['observable_loss']:.4f}"


def _fraction_of_cycle(settings: ConfigDict, entry: dict, epoch: int) -> float:
    """Share of a cycle's time that is over; finding instability takes about a quarter."""
    if entry["phase"] == "simulating":
        return max(0.25 * min(entry["fraction_unstable"] / settings.max_unstable, 1.0), 0.02)
    return 0.25 + 0.75 * (epoch + 1) / settings.max_epochs


def batches(rng: np.random.Generator, num_frames: int, num_batches: int, batch_size: int) -> jax.Array:
    """Indices of batches, drawn without replacement within an epoch."""
    needed = num_batches * batch_size
    epochs = [rng.permutation(num_frames) for _ in range(-(-needed // num_frames))]
    return jnp.asarray(np.concatenate(epochs)[:needed].reshape(num_batches, batch_size))


def _pretrain_optimizer(settings: ConfigDict) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(settings.clip_norm)
    if settings.schedule == "cosine":
        return optax.chain(clip, optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.num_steps)))
    if settings.schedule == "constant":
        return optax.chain(clip, optax.adam(settings.learning_rate))
    if settings.schedule == "plateau":
        plateau = optax.contrib.reduce_on_plateau(
            factor=settings.plateau_factor,
            patience=settings.plateau_patience,
            accumulation_size=settings.steps_per_validation,
        )
        return optax.chain(clip, optax.adam(settings.learning_rate), plateau)
    raise ValueError(f"config.pretrain.schedule has to be constant, cosine or plateau, got {settings.schedule!r}.")


def _combination(settings: ConfigDict) -> Callable[[Params, Params], Params]:
    if settings.observable_clip_norm:
        return refine.clipped_sum(settings.qm_weight, max_norm=settings.observable_clip_norm)
    return refine.weighted_sum(settings.qm_weight)


def _stable_optimizer(settings: ConfigDict) -> optax.GradientTransformation:
    optimizers = {"sgd": optax.sgd, "adam": optax.adam}
    if settings.optimizer not in optimizers:
        raise ValueError(f"config.stable.optimizer has to be sgd or adam, got {settings.optimizer!r}.")
    optimizer = optimizers[settings.optimizer](settings.learning_rate)
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), optimizer) if settings.clip_norm else optimizer


def _rate_schedule(settings: ConfigDict) -> optax.Schedule:
    if settings.rate_schedule == "constant":
        return optax.constant_schedule(1.0)
    if settings.rate_schedule == "cosine":
        return optax.cosine_decay_schedule(1.0, settings.max_epochs)
    raise ValueError(f"config.stable.rate_schedule has to be constant or cosine, got {settings.rate_schedule!r}.")
