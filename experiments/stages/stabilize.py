"""The stage of StABlE training: the library's loop with the settings of a config, and a record of its course."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import disk, memory
from experiments.failures import TrainingFailures
from experiments.progress import Progress
from experiments.stages import causes
from experiments.systems import base
from experiments.systems.base import System
from stablejax import stable
from stablejax.failures import FEW_STEPS
from stablejax.guard import FAULTS, NOTHING, STILL, Guard
from stablejax.learn import LearnInfo, Learning, Noise, Optimization, static_batch
from stablejax.natural import TrustRegion
from stablejax.problem import Problem
from stablejax.simulate import SimulateInfo, Simulation
from stablejax.stable import Settings, StableState
from stablejax.types import Params
from stablejax.uncertainty import samples_needed

LEAST_ANCHORS = 16
"""Frames, however many atoms they have."""

Save = Callable[[StableState, list[dict], System], None]


def settings_of(config: ConfigDict, system: System) -> Settings:
    """The library's settings from those of a config.

    Args:
      config: of the experiment.
      system: provides the dynamics and the value of the criterion up to which frames are used.

    Raises:
      ValueError: an unknown optimizer or schedule.
    """
    stable_settings = config.stable
    ps_per_search = stable_settings.steps_per_epoch * system.timestep_fs / 1000
    simulation = Simulation(
        thermostat=system.thermostat,
        steps_per_epoch=stable_settings.steps_per_epoch,
        max_unstable=stable_settings.max_unstable,
        max_searches=max(1, math.ceil(stable_settings.max_simulation_ps / ps_per_search - 1e-9)),
        table_intervals=system.table_intervals,
        target_ratio=stable_settings.target_ratio or math.inf,
        temperature_ratio=stable_settings.temperature_ratio,
        restarts=stable_settings.restarts,
    )
    return Settings(
        simulation,
        _learning(stable_settings, system),
        stable_settings.num_cycles,
        config.seed,
        returns_best=stable_settings.returns_best,
        max_held_out_error=stable_settings.max_held_out_error or math.inf,
    )


def _learning(settings: ConfigDict, system: System) -> Learning:
    optimization = Optimization(
        optimizer=_optimizer(settings, system.problem.potential.num_atoms),
        qm_weight=settings.qm_weight,
        qm_batch_size=settings.qm_batch_size,
        observable_clip_norm=settings.observable_clip_norm or math.inf,
        max_updates=settings.max_updates,
        min_effective_fraction=settings.min_effective_fraction,
        buffer_epochs=settings.buffer_epochs,
    )
    return Learning(
        optimization=optimization,
        steps_per_frame=settings.steps_per_frame,
        min_unstable=settings.min_unstable,
        max_epochs=settings.max_epochs,
        rate_schedule=_rate_schedule(settings),
        plateau_factor=settings.plateau_factor,
        plateau_patience=settings.plateau_patience,
        min_rate_scale=settings.min_rate_scale,
        freeze_above=system.freeze_above,
        noise=Noise(settings.jackknife_blocks, settings.wanted_signal_to_noise, settings.max_rounds),
        guard=Guard(settings.max_force_error, settings.max_rollbacks, settings.rollback_rate_factor),
        cycle_factor=settings.cycle_factor,
    )


def start(
    settings: Settings,
    system: System,
    params: Params,
    *,
    num_replicas: int,
    training: stable.StableTraining | None = None,
) -> StableState:
    """The state at the start of StABlE training, from frames of the training and the validation set in turn.

    Nothing is trained on the latter, so that failures are found which training frames alone do not lead to.

    Args:
      settings: from `settings_of`.
      system: what is trained.
      params: pretrained.
      num_replicas: R.
      training: for the system as it is, where it has been built already.
    """
    training = training or stable.build(system.problem, settings, execution=system.execution)
    split, half = system.data.split, -(-num_replicas // 2)
    pairs = np.stack([np.resize(split.train, half), np.resize(split.validation, half)], axis=1)
    position = system.data.starts(pairs.ravel(), num_replicas)
    return training.init(base.key_for(settings.seed, "stable"), params, position)


def run_stable(
    settings: Settings,
    system: System,
    state: StableState,
    course: list[dict],
    save: Save,
    progress: Progress,
    *,
    max_minutes: float = 0.0,
    failures: TrainingFailures | None = None,
    training: stable.StableTraining | None = None,
) -> tuple[StableState, System]:
    """StABlE training from `state` and `course`.

    Args:
      settings: from `settings_of`.
      system: what is trained.
      state: from `start`, or a saved one.
      course: entries of the steps so far; it is appended to.
      save: called after every step with the state, the course and the system, whose neighbor lists may be longer.
      progress: updated after every step.
      max_minutes: of the stage, after which nothing more is learned; the last search still ends. 0: any.
      failures: keeps the last frames of replicas that fail. None: they are not kept.
      training: for the system as it is, where it has been built already.

    Returns:
      The state at the end, and the system with the neighbor lists that it needed.
    """
    training = training or stable.build(system.problem, settings, execution=system.execution)
    if int(state.phase) != stable.FINISHED:
        check_memory(system, settings, training, state)
    recorder = _Recorder(settings, system, state, course, save, progress, failures)

    def lengthen(problem: Problem) -> None:
        recorder.system = system._replace(problem=problem)
        progress.say("a neighbor list overflowed: lists are made longer and the step is repeated")

    def is_time_up() -> bool:
        is_up = 0 < 60 * max_minutes < progress.wall_s()
        if is_up:
            progress.say(f"the {max_minutes:g} minutes of StABlE training are over: nothing more is learned")
        return is_up

    state = stable.run(
        system.problem,
        settings,
        state,
        execution=system.execution,
        on_step=recorder,
        on_longer_lists=lengthen,
        is_time_up=is_time_up,
        training=training,
    )
    return state, recorder.system


def check_memory(system: System, settings: Settings, training: stable.StableTraining, state: StableState) -> int:
    """Compile both phases, and raise where one would not fit; returns their peak memory on each device, bytes.

    Args:
      system: what is trained.
      settings: from `settings_of`.
      training: from `stable.build`.
      state: from `start`, or a saved one.
    """
    fewer = "lower config.stable.num_replicas or use more devices"
    simulating = memory.check("a step of simulation", training.simulate, (state,), fewer)
    smaller = "lower config.stable.estimator_chunk or config.stable.qm_batch_size, or "
    frames = static_batch(system.problem, settings.learning, seed=settings.seed, cycle=0, epoch=0)
    learning = memory.check("a step of learning", training.learn, (state, frames), smaller + fewer, num_rounds=1)
    return max(simulating, learning)


class _Recorder:
    """Appends the statistics of each step to the course of training, saves, and reports progress."""

    def __init__(
        self,
        settings: Settings,
        system: System,
        state: StableState,
        course: list[dict],
        save: Save,
        progress: Progress,
        failures: TrainingFailures | None,
    ):
        self.system, self._failures = system, failures
        self._settings, self._ps_per_step = settings, system.timestep_fs / 1000
        self._course, self._save, self._progress = course, save, progress
        self._said: set[str] = set()
        self._cycle, self._epoch = int(state.cycle), int(state.learning.epoch)

    @property
    def _is_natural(self) -> bool:
        return isinstance(self._settings.learning.optimization.optimizer, TrustRegion)

    def __call__(self, state: StableState, info: SimulateInfo | LearnInfo) -> None:
        cycle, epoch = self._cycle, self._epoch
        self._cycle, self._epoch = int(state.cycle), int(state.learning.epoch)
        simulated_ps = self._course[-1]["simulated_ps"] if self._course else 0.0
        entry = course_entry(info, cycle, simulated_ps + float(info.num_steps) * self._ps_per_step)
        self._course.append(entry)
        num_cycles = self._settings.num_cycles
        done = cycle + 1 if self._cycle > cycle else cycle + _fraction_of_cycle(self._settings, entry, epoch)
        where = f"cycle {cycle + 1}/{num_cycles}" if cycle < num_cycles else "last search"
        self._progress.update(
            f"{where}, {_status(entry, epoch)}, {entry['simulated_ps']:.0f} ps simulated, "
            f"{100 * entry['fraction_unstable']:.0f} % unstable",
            min(done / num_cycles, 1.0),
            **entry,
        )
        if isinstance(info, SimulateInfo) and self._failures is not None:
            self._failures.add(self.system, state)
        if isinstance(info, LearnInfo):
            self._say_what_went_wrong(state, info)
        elif bool(info.gives_up):
            self._progress.say(f"{_why_it_ends(self._settings, info, self._ps_per_step)} after {cycle} cycles")
        elif float(info.fraction_unstable) == 1 and int(info.most_steps) <= FEW_STEPS:
            self._say_once(f"no replica was stable for more than {FEW_STEPS} steps; {_why(self.system, state, info)}")
        self._save(state, self._course, self.system)

    def _say_what_went_wrong(self, state: StableState, info: LearnInfo) -> None:
        if int(info.num_samples) == 0:
            self._say_once(f"no sample counts in an epoch of learning; {_why(self.system, state, info)}")
        if not bool(info.updates.used_observable):
            instead = "nothing is changed" if self._is_natural else "the step is that of the static data alone"
            self._say_once(f"fewer than 2 samples count, so {instead}")
        if int(info.fault) != NOTHING:
            self._progress.say(f"{FAULTS[int(info.fault)]}; {self._what_follows(info)}")
        if (kept := float(info.kept_fraction)) < 1:
            bound = 100 * (self._settings.max_held_out_error - 1)
            follows = f"{100 * kept:.0f} % of it is kept" if kept else "StABlE training ends with the best parameters"
            self._progress.say(
                f"what was learned raises the force error on validation frames by more than {bound:.3g} %; {follows}"
            )

    def _what_follows(self, info: LearnInfo) -> str:
        if bool(info.gives_up):
            rate = "max_change" if self._is_natural else "learning_rate"
            return (
                f"StABlE training ends with the best parameters, after {int(info.num_rollbacks)} returns to earlier "
                f"ones: change config.stable.{rate}"
            )
        if int(info.fault) == STILL:
            return "the learning phase ends"
        most = self._settings.learning.guard.max_rollbacks
        return f"back to the last good parameters with a smaller rate (return {int(info.num_rollbacks)} of {most})"

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._progress.say(message)


def _why_it_ends(settings: Settings, info: SimulateInfo, ps_per_step: float) -> str:
    simulation = settings.simulation
    if bool(info.reaches_target):
        return (
            f"the target is reached: replicas are stable {simulation.target_ratio:g} times as long as at first, so "
            "StABlE training ends"
        )
    assert simulation.max_searches is not None
    searched_ps = simulation.max_searches * simulation.steps_per_epoch * ps_per_step
    return (
        f"no more instability: fewer than {100 * simulation.max_unstable:.0f} % of the replicas failed within "
        f"{searched_ps:g} ps, so StABlE training ends"
    )


def course_entry(info: SimulateInfo | LearnInfo, cycle: int, simulated_ps: float) -> dict:
    """One point of the course of training, as JSON; a number that is not finite is None.

    Args:
      info: of the step.
      cycle: completed cycles.
      simulated_ps: of all replicas since the start.
    """
    entry = {
        "phase": "simulating",
        "cycle": cycle,
        "fraction_unstable": float(info.fraction_unstable),
        "num_quarantined": int(info.num_quarantined),
        "simulated_ps": simulated_ps,
    }
    if isinstance(info, SimulateInfo):
        return entry | {"stable_steps": float(info.stable_steps), "is_best": bool(info.is_best)}
    updates = info.updates
    return disk.finite(
        entry
        | _noise(info)
        | {
            "phase": "learning",
            "num_rounds": int(info.num_rounds),
            "num_samples": int(info.num_samples),
            "observable_loss": float(updates.observable_loss),
            "qm_loss": float(updates.qm_loss),
            "qm_force_mae_eV_per_A": float(updates.qm_errors.force_mae),
            "observable_gradient_norm": float(updates.observable_gradient_norm),
            "qm_gradient_norm": float(updates.qm_gradient_norm),
            "gradient_cosine": float(updates.gradient_cosine),
            "rate_scale": float(info.rate_scale),
            "num_updates": int(updates.num_updates),
            "used_observable": bool(updates.used_observable),
            "fault": FAULTS[int(info.fault)] if int(info.fault) != NOTHING else None,
            "num_rollbacks": int(info.num_rollbacks),
            "gives_up": bool(info.gives_up),
            "kept_fraction": float(info.kept_fraction),
            "effective_fraction": float(updates.effective_fraction),
            "force_change_eV_per_A": float(updates.force_change),
            "energy_change_eV": float(updates.energy_change),
        }
    )


def _why(system: System, state: StableState, info: SimulateInfo | LearnInfo) -> str:
    """Why all replicas of a step failed; what it started from is still in the state."""
    starts = state.simulation.checkpoint if isinstance(info, SimulateInfo) else state.simulation.rewound
    # A maximum over devices would cost learning one more message: there it is the mean over replicas.
    most = int(info.most_steps) if isinstance(info, SimulateInfo) else int(info.num_steps) // len(starts.step)
    lost = int(info.num_quarantined)
    return causes.sentence(system, system.problem.criterion, state.params, starts, num_lost=lost, most_steps=most)


def _noise(info: LearnInfo) -> dict:
    if np.isnan(info.signal_to_noise):
        return {}
    ratio = float(info.signal_to_noise)
    wanted = float(samples_needed(int(info.num_samples), ratio, wanted=1.0))
    return {"signal_to_noise": ratio, "samples_for_unit_signal_to_noise": wanted}


def _status(entry: dict, epoch: int) -> str:
    if entry["phase"] == "simulating":
        return "simulating"
    loss = entry["observable_loss"]
    return f"learning, epoch {epoch + 1}, observable loss {'unknown' if loss is None else f'{loss:.4f}'}"


def _fraction_of_cycle(settings: Settings, entry: dict, epoch: int) -> float:
    """Completed fraction of a cycle's time; finding instability takes about a quarter."""
    if entry["phase"] == "simulating":
        return max(0.25 * min(entry["fraction_unstable"] / settings.simulation.max_unstable, 1.0), 0.02)
    return 0.25 + 0.75 * (epoch + 1) / settings.learning.max_epochs


def _optimizer(settings: ConfigDict, num_atoms: int) -> optax.GradientTransformation | TrustRegion:
    optimizers = {"sgd": optax.sgd, "adam": optax.adam}
    if settings.optimizer == "natural":
        return TrustRegion(
            max_change=settings.max_change,
            max_qm_loss=settings.max_qm_loss,
            num_anchors=max(LEAST_ANCHORS, round(settings.anchor_atoms / num_atoms)),
            damping=settings.damping,
            num_iterations=settings.num_iterations,
        )
    if settings.optimizer not in optimizers:
        raise ValueError(f"config.stable.optimizer has to be sgd, adam or natural, got {settings.optimizer!r}.")
    optimizer = optimizers[settings.optimizer](settings.learning_rate)
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), optimizer) if settings.clip_norm else optimizer


def _rate_schedule(settings: ConfigDict) -> optax.Schedule:
    if settings.rate_schedule == "constant":
        return optax.constant_schedule(1.0)
    if settings.rate_schedule == "cosine":
        return optax.cosine_decay_schedule(1.0, settings.max_epochs)
    raise ValueError(f"config.stable.rate_schedule has to be constant or cosine, got {settings.rate_schedule!r}.")
