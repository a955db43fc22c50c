"""The three long stages of an experiment: pretraining, evaluation of stability, StABlE training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from experiments.progress import Progress
from experiments.systems import System
from stablejax import boltzmann, dynamics, losses, pretrain, stable, units
from stablejax.observables import transport
from stablejax.types import Params

REPLICATED, SHARDED = PartitionSpec(), PartitionSpec(dynamics.REPLICA_AXIS)
EVALUATION_FRAMES = 100
"""Labelled frames whose errors are computed together."""


class Evaluation(NamedTuple):
    """What simulation with one set of parameters gave. Observables are of stable frames only."""

    first_passage_ps: np.ndarray  # [replica]; the horizon where stable
    is_unstable: np.ndarray  # [replica]
    is_finite: np.ndarray  # [replica] False: stopped before a state that was not finite
    num_frames: np.ndarray  # [] stable frames
    temperature_K: np.ndarray  # [] mean kinetic temperature
    structure: dict[str, np.ndarray]  # means over the stable frames
    vacf: np.ndarray  # [replica, lag]; NaN for a replica without one whole window
    energy_mae: np.ndarray  # [] eV, held-out frames
    force_mae: np.ndarray  # [] eV/Å


def key_for(config: ConfigDict, name: str) -> jax.Array:
    """The PRNG key of one purpose."""
    purposes = ("model", "stable", "evaluate")
    return jax.random.fold_in(jax.random.key(config.seed), purposes.index(name))


def qm_loss(config: ConfigDict, system: System) -> Callable:
    """The energy-and-force loss of the config."""
    weights = dict(energy_weight=config.pretrain.energy_weight, force_weight=config.pretrain.force_weight)
    return losses.energy_and_force_loss(system.potential.energy, **weights)


def labelled(system: System, index: np.ndarray) -> losses.Labelled:
    """Frames of the data set as what losses take."""
    arrays = (system.dataset.position, system.dataset.energy, system.dataset.force)
    return losses.Labelled(*(jnp.asarray(array[index], jnp.float32) for array in arrays))


def label_errors(config: ConfigDict, system: System, params: Params, index: np.ndarray) -> losses.LabelErrors:
    """Mean absolute errors on frames, a part at a time."""
    loss_fn = jax.jit(qm_loss(config, system))
    parts = [index[start : start + EVALUATION_FRAMES] for start in range(0, len(index), EVALUATION_FRAMES)]
    errors = [loss_fn(params, labelled(system, part))[1] for part in parts]
    sizes = np.array([len(part) for part in parts])
    return jax.tree.map(lambda *values: float(np.average(values, weights=sizes)), *errors)


def run_pretraining(config: ConfigDict, system: System, progress: Progress) -> Params:
    """Parameters with the lowest validation loss."""
    settings = config.pretrain
    mesh = dynamics.replica_mesh()
    if settings.batch_size % mesh.size:
        raise ValueError(
            f"config.pretrain.batch_size = {settings.batch_size} cannot be shared evenly by {mesh.size} devices: "
            "choose a multiple, or set config.host_devices."
        )
    loss_fn = qm_loss(config, system)
    init, step = pretrain.pretraining(
        loss_fn, _pretrain_optimizer(settings), average_decay=settings.average_decay, axis_name=dynamics.REPLICA_AXIS
    )

    def run(state, frames, index):
        return jax.lax.scan(lambda s, batch: step(s, jax.tree.map(lambda leaf: leaf[batch], frames)), state, index)

    batches = PartitionSpec(None, dynamics.REPLICA_AXIS)
    run = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=(REPLICATED, REPLICATED, batches), out_specs=REPLICATED, check_vma=False)
    )
    validate = jax.jit(loss_fn)
    train, validation = labelled(system, system.split.train), labelled(system, system.split.validation)
    state = init(system.potential.init(key_for(config, "model")))
    rng = np.random.default_rng([config.seed, 0])
    best_loss, best_params = np.inf, state.average_params
    for done in range(0, settings.num_steps, settings.steps_per_validation):
        num_steps = min(settings.steps_per_validation, settings.num_steps - done)
        state, info = run(state, train, _batches(rng, len(train.energy), num_steps, settings.batch_size))
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


class Looks(NamedTuple):
    """Compiled once for an experiment: start the replicas of an evaluation, and run them for a chunk."""

    start: Callable[[Params], dynamics.Replica]
    look: Callable  # (prepared, replicas) -> (replicas, frames that count, their totals, is a whole window, its VACF)
    prepare: Callable


def build_evaluation(config: ConfigDict, system: System) -> Looks:
    """Starts, velocities and noise depend on the config only, so they are the same for any parameters."""
    settings = config.evaluate
    steps_per_frame = _whole(settings.frame_spacing_fs / config.md.timestep_fs, "evaluate.frame_spacing_fs")
    frames_per_chunk = _whole(settings.chunk_ps * 1000 / settings.frame_spacing_fs, "evaluate.chunk_ps")
    mass = _mass(system)

    def look(prepared, replica):
        replica, trajectory = dynamics.sample(
            system.integrator,
            system.evaluate_criterion,
            prepared,
            replica,
            num_frames=frames_per_chunk,
            steps_per_frame=steps_per_frame,
        )
        frame, is_valid = trajectory
        temperature = dynamics.kinetic_temperature(frame.velocity, mass, num_removed=system.num_removed)
        seen = jax.vmap(system.structure_fn)(frame.position) | {"temperature": temperature}
        total = jax.tree.map(lambda x: jnp.tensordot(is_valid.astype(x.dtype), x, axes=1), seen)
        vacf = transport.velocity_autocorrelation(frame.velocity, mass, num_lags=_num_lags(config))
        return replica, jnp.sum(is_valid), total, jnp.all(is_valid), vacf

    map_replicas = _mapper(config)
    start = map_replicas(lambda prepared, one: dynamics.init_replica(system.integrator, one[0], prepared, one[1]))
    position = jnp.asarray(system.dataset.position[_starts(system.split.test, settings.num_replicas)])
    keys = jax.random.split(key_for(config, "evaluate"), settings.num_replicas)
    return Looks(
        start=jax.jit(lambda prepared: start(prepared, (keys, position))),
        look=jax.jit(map_replicas(look)),
        prepare=jax.jit(system.md_form.prepare),
    )


def run_evaluation(config: ConfigDict, system: System, looks: Looks, params: Params, progress: Progress) -> Evaluation:
    """First passage from held-out starts, and observables of the frames before it."""
    settings = config.evaluate
    num_chunks = _whole(settings.horizon_ps / settings.chunk_ps, "evaluate.horizon_ps")
    num_replicas, num_lags = settings.num_replicas, _num_lags(config)
    prepared = looks.prepare(params)
    replicas = looks.start(prepared)
    count, total, windows, vacf = 0, None, np.zeros(num_replicas), np.zeros((num_replicas, num_lags))
    for chunk in range(num_chunks):
        replicas, valid, part, is_whole, part_vacf = looks.look(prepared, replicas)
        count += int(valid.sum())
        summed = jax.tree.map(lambda x: np.asarray(x, np.float64).sum(axis=0), part)
        total = summed if total is None else jax.tree.map(np.add, total, summed)
        is_whole = np.asarray(is_whole)
        windows += is_whole
        vacf[is_whole] += np.asarray(part_vacf)[is_whole]
        fraction = float(replicas.is_frozen.mean())
        simulated_ps = float(replicas.step.sum()) * config.md.timestep_fs / 1000
        progress.update(
            f"{(chunk + 1) * settings.chunk_ps:g}/{settings.horizon_ps:g} ps, {100 * fraction:.0f} % unstable",
            (chunk + 1) / num_chunks,
            simulated_ps=simulated_ps,
            fraction_unstable=fraction,
        )
        if fraction == 1:
            break
    if count == 0:
        raise ValueError(
            f"no replica was stable until its first frame at {settings.frame_spacing_fs:g} fs, so there is nothing to "
            "average: the potential is too poor to simulate; raise config.pretrain.num_steps."
        )
    mean = {name: value / count for name, value in total.items()}
    errors = label_errors(config, system, params, system.split.test)
    with np.errstate(invalid="ignore"):
        vacf = vacf / windows[:, None]
    return Evaluation(
        first_passage_ps=np.asarray(replicas.step) * config.md.timestep_fs / 1000,
        is_unstable=np.asarray(replicas.is_unstable),
        is_finite=np.asarray(replicas.is_finite),
        num_frames=np.asarray(count),
        temperature_K=np.asarray(mean.pop("temperature") / units.BOLTZMANN_EV_PER_K),
        structure=mean,
        vacf=vacf,
        energy_mae=np.asarray(errors.energy_mae),
        force_mae=np.asarray(errors.force_mae),
    )


def reference_vacf(config: ConfigDict, system: System) -> np.ndarray | None:
    """[window, lag] VACF of the reference in windows like the evaluation's; None without consecutive velocities."""
    dataset, settings = system.dataset, config.evaluate
    if dataset.velocity is None or dataset.trajectory is None or dataset.frame_spacing_fs != settings.frame_spacing_fs:
        return None
    size = round(settings.chunk_ps * 1000 / settings.frame_spacing_fs)
    num_lags = _num_lags(config)
    runs = [dataset.velocity[dataset.trajectory == run] for run in np.unique(dataset.trajectory)]
    windows = [run[start : start + size] for run in runs for start in range(0, len(run) - size + 1, size)]
    fn = jax.jit(lambda velocity: transport.velocity_autocorrelation(velocity, _mass(system), num_lags=num_lags))
    return np.stack([np.asarray(fn(window)) for window in windows])


def build_stable_training(config: ConfigDict, system: System) -> stable.StableTraining:
    """Algorithm 1 with the settings of the config, its replicas and samples shared between all devices."""
    settings = config.stable
    observable_grad = boltzmann.boltzmann_grad(
        losses.observable_loss(system.reference, system.observable_weight),
        system.potential.energy,
        system.observable_fn,
        kT=units.thermal_energy(config.md.temperature_K),
        chunk_size=settings.estimator_chunk,
        axis_name=dynamics.REPLICA_AXIS,
    )
    return stable.stable_training(
        prepare=system.md_form.prepare,
        integrator=system.integrator,
        criterion=system.train_criterion,
        observable_grad=jax.shard_map(
            observable_grad,
            mesh=dynamics.replica_mesh(),
            in_specs=(REPLICATED, SHARDED, SHARDED),
            out_specs=REPLICATED,
            check_vma=False,
        ),
        qm_loss=qm_loss(config, system),
        combine=stable.weighted_sum(settings.qm_weight),
        optimizer=_stable_optimizer(settings),
        plateau=optax.contrib.reduce_on_plateau(factor=settings.plateau_factor, patience=settings.plateau_patience),
        rate_schedule=_rate_schedule(settings),
        min_rate_scale=settings.min_rate_scale,
        max_epochs=settings.max_epochs,
        steps_per_epoch=settings.steps_per_epoch,
        steps_per_frame=settings.steps_per_frame,
        max_unstable=settings.max_unstable,
        min_unstable=settings.min_unstable,
        freeze_above=system.freeze_above,
        map_replicas=_mapper(config),
    )


def init_stable(config: ConfigDict, system: System, params: Params) -> stable.StableState:
    """The state at the start of StABlE training, from frames of the training set."""
    position = jnp.asarray(system.dataset.position[_starts(system.split.train, config.stable.num_replicas)])
    return jax.jit(build_stable_training(config, system).init)(key_for(config, "stable"), params, position)


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
    training = build_stable_training(config, system)
    simulate, learn = jax.jit(training.simulate), jax.jit(training.learn)
    ps_per_step = config.md.timestep_fs / 1000
    most_calls = settings.max_simulation_ps / (settings.steps_per_epoch * ps_per_step)
    num_train = len(system.split.train)
    simulated_ps = tracker[-1]["simulated_ps"] if tracker else 0.0
    calls = 0
    while int(state.cycle) < settings.num_cycles:
        cycle, epoch = int(state.cycle), int(state.epoch)
        if int(state.phase) == stable.SIMULATE:
            state, info = simulate(state)
            calls = 0 if bool(info.starts_learning) else calls + 1
            what, extra = "simulating", {}
        else:
            rng = np.random.default_rng([config.seed, 1, cycle, epoch])
            batch = rng.permutation(num_train)[: settings.qm_batch_size]
            state, info = learn(state, labelled(system, system.split.train[batch]))
            what = f"learning, epoch {epoch + 1}, observable loss {float(info.observable_loss):.4f}"
            names = ("observable_loss", "qm_loss", "observable_gradient_norm", "qm_gradient_norm", "rate_scale")
            extra = {name: float(getattr(info, name)) for name in names}
            extra |= {
                "num_samples": int(info.num_samples),
                "qm_force_mae_eV_per_A": float(info.qm_errors.force_mae),
                "was_updated": bool(info.was_updated),
            }
        simulated_ps += float(info.num_steps) * ps_per_step
        entry = {
            "phase": what.split(",")[0],
            "cycle": cycle,
            "fraction_unstable": float(info.fraction_unstable),
            "num_quarantined": int(info.num_quarantined),
            "simulated_ps": simulated_ps,
        } | extra
        tracker.append(entry)
        save(state, tracker)
        # Finding instability takes about a quarter of a cycle's time.
        found = min(entry["fraction_unstable"] / settings.max_unstable, 1.0)
        within = 0.25 + 0.75 * (epoch + 1) / settings.max_epochs if extra else 0.25 * found
        done = max(cycle + within if int(state.cycle) == cycle else cycle + 1, 0.02) / settings.num_cycles
        progress.update(
            f"cycle {cycle + 1}/{settings.num_cycles}, {what}, {simulated_ps:.0f} ps simulated, "
            f"{100 * entry['fraction_unstable']:.0f} % unstable",
            done,
            **entry,
        )
        if calls > most_calls:
            progress.say(
                f"no more instability: under {100 * settings.max_unstable:.0f} % of the replicas failed within "
                f"{settings.max_simulation_ps:g} ps, so StABlE training ends after {cycle} cycles"
            )
            break
    return state


def _num_lags(config: ConfigDict) -> int:
    settings = config.evaluate
    return _whole(settings.vacf_window_fs / settings.frame_spacing_fs, "evaluate.vacf_window_fs") + 1


def _mapper(config: ConfigDict) -> Callable[[Callable], Callable]:
    batch_size = config.md.replica_batch or None
    return partial(dynamics.map_replicas, batch_size=batch_size, mesh=dynamics.replica_mesh())


def _mass(system: System):
    from ase.data import atomic_masses

    return jnp.asarray(atomic_masses[system.dataset.species], jnp.float32)


def _starts(index: np.ndarray, num: int) -> np.ndarray:
    """`num` frames of `index`, each as often as any other, give or take one."""
    return np.resize(index, num)


def _batches(rng: np.random.Generator, num_frames: int, num_batches: int, batch_size: int) -> jax.Array:
    """Indices of batches, drawn without replacement within an epoch."""
    needed = num_batches * batch_size
    epochs = [rng.permutation(num_frames) for _ in range(-(-needed // num_frames))]
    return jnp.asarray(np.concatenate(epochs)[:needed].reshape(num_batches, batch_size))


def _whole(value: float, name: str) -> int:
    if value < 1 or abs(value - round(value)) > 1e-6:
        raise ValueError(f"config.{name} has to be a whole number of the steps it counts, got {value:g} of them.")
    return round(value)


def _pretrain_optimizer(settings: ConfigDict) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(settings.clip_norm)
    if settings.schedule == "cosine":
        return optax.chain(clip, optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.num_steps)))
    if settings.schedule == "plateau":
        plateau = optax.contrib.reduce_on_plateau(
            factor=settings.plateau_factor,
            patience=settings.plateau_patience,
            accumulation_size=settings.steps_per_validation,
        )
        return optax.chain(clip, optax.adam(settings.learning_rate), plateau)
    raise ValueError(f"config.pretrain.schedule has to be cosine or plateau, got {settings.schedule!r}.")


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
