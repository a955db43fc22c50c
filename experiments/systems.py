"""What the pipeline needs to know of a system, and what `molecules` and `liquids` put it together from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict

from experiments import memory
from experiments.data import loaders
from experiments.progress import Progress
from stablejax import losses, parallel, potential, units
from stablejax.covariance import Localized
from stablejax.dynamics import Integrator, langevin, nose_hoover
from stablejax.potential import MDForm, Potential
from stablejax.types import Criterion

FRAME_BATCH = 100
"""Frames of a data set that are worked on together, which bounds memory."""


class Profile(NamedTuple):
    """A curve of the structure, drawn before and after beside the reference."""

    x: np.ndarray  # [bin]
    title: str
    xlabel: str
    ylabel: str
    xlim: tuple[float, float]


def mean_absolute_error(found: np.ndarray, reference: np.ndarray) -> float:
    """Mean over all entries."""
    return float(np.abs(found - reference).mean())


def largest_where_none(found: np.ndarray, reference: np.ndarray) -> float:
    """Largest value where the reference is 0 in all of its frames: a spike at short distance, for a distribution."""
    return float(np.max(found, where=reference == 0, initial=0.0))


class Measure(NamedTuple):
    """A figure of the structure: how far it is from the reference, times `factor`."""

    metric: str
    name: str  # of the structure
    label: str
    unit: str | None
    form: str
    factor: float = 1.0
    error_fn: Callable[[np.ndarray, np.ndarray], float] = mean_absolute_error  # (structure, reference)


LENGTH_MEASURE = Measure("bond_length_mae_A", "bond_length", "mean bond lengths, MAE (Å)", "Å", "{:.4f}")
ANGLE_MEASURE = Measure(
    "bond_angle_mae_degree", "bond_angle", "mean bond angles, MAE (degrees)", "degree", "{:.2f}", 180 / np.pi
)


class System(NamedTuple):
    """All that the pipeline needs to know of a system."""

    dataset: loaders.Dataset
    split: loaders.Split
    potential: Potential
    md_form: MDForm
    mass: jax.Array  # [atom] amu
    qm_loss: Callable  # (params, Labeled) -> (L_QM, LabelErrors)
    map_replicas: Callable[..., Callable]  # see `parallel.map_replicas`
    integrator: Integrator
    num_removed: int  # degrees of freedom that the integrator holds at rest
    train_criterion: Criterion
    evaluate_criterion: Criterion
    freeze_above: float  # beyond the training criterion, in the learning phase
    criterion_name: str  # of the evaluation
    train_criterion_name: str
    energies: Callable | Localized  # (params, position) -> what the estimator differentiates
    subsample: Callable | None  # localized: (positions [sample, atom, 3], mask) -> mask [sample, neighborhood]
    observable_fn: Callable  # of a position, what is trained on
    reference: Any  # its mean over the reference
    observable_weight: Any
    structure_fn: Callable  # of a position, dict of what is reported
    structure_reference: dict[str, np.ndarray]
    profiles: dict[str, Profile]  # by name of the structure
    measures: tuple[Measure, ...]
    motion_fn: Callable  # of a window of frames, dict of curves [lag]
    with_more_pairs: Callable[[], System] | None  # the same with longer neighbor lists


def load(config: ConfigDict) -> tuple[loaders.Dataset, loaders.Split]:
    """The data set of the config, its energies relative to the training set, and which frames are for what."""
    data = config.data
    dataset = loaders.load(data.path, energy_unit=data.energy_unit, length_unit=data.length_unit)
    split = loaders.split(
        dataset, num_train=data.num_train, num_validation=data.num_validation, num_test=data.num_test, seed=config.seed
    )
    # Thousands of eV would not fit into float32: the offset is taken off before.
    return dataset._replace(energy=dataset.energy - dataset.energy[split.train].mean()), split


def qm_loss(config: ConfigDict, bound: Potential) -> Callable:
    """L_QM with the weights of the config."""
    weights = dict(energy_weight=config.pretrain.energy_weight, force_weight=config.pretrain.force_weight)
    return losses.energy_and_force_loss(bound.energy, **weights)


def whole_model(config: ConfigDict, model: nn.Module, dataset: loaders.Dataset) -> tuple[Potential, MDForm]:
    """The model bound to the system, over all pairs, and the form that is simulated."""
    bound = potential.bind(model, dataset.species, cell=dataset.cell)
    num_intervals = config.md.table_intervals
    if not num_intervals or not hasattr(model, "energies_from_filters"):
        return bound, potential.exact_form(bound)
    return bound, potential.tabulated_form(model, dataset.species, num_intervals=num_intervals, cell=dataset.cell)


def key_for(config: ConfigDict, name: str) -> jax.Array:
    """The PRNG key of one purpose."""
    purposes = ("model", "stable", "evaluate")
    return jax.random.fold_in(jax.random.key(config.seed), purposes.index(name))


def labeled(system: System, index: np.ndarray) -> losses.Labeled:
    """Frames of the data set as what losses take."""
    arrays = (system.dataset.position, system.dataset.energy, system.dataset.force)
    return losses.Labeled(*(jnp.asarray(array[index], jnp.float32) for array in arrays))


def start_positions(system: System, index: np.ndarray, num: int) -> jax.Array:
    """`num` positions from the frames of `index`, each as often as any other, give or take one."""
    return jnp.asarray(system.dataset.position[np.resize(index, num)])


def integrator(config: ConfigDict, md_form: MDForm, mass: jax.Array, *, is_periodic: bool) -> tuple[Integrator, int]:
    """Of the config's thermostat, and the degrees of freedom that it holds at rest."""
    md = config.md
    common = dict(
        kT=units.thermal_energy(md.temperature_K), timestep=md.timestep_fs * units.FEMTOSECOND, lists=md_form.lists
    )
    damping_time = md.damping_time_fs * units.FEMTOSECOND
    if md.thermostat == "langevin":
        return langevin(md_form.energy, mass, friction=1 / damping_time, **common), 0
    if md.thermostat == "nose_hoover":
        num_removed = 3 if is_periodic else 6
        return nose_hoover(
            md_form.energy, mass, damping_time=damping_time, num_removed=num_removed, **common
        ), num_removed
    raise ValueError(f"config.md.thermostat has to be langevin or nose_hoover, got {md.thermostat!r}.")


def map_replicas(config: ConfigDict, md_form: MDForm, bound: Potential, num_atoms: int) -> Callable[..., Callable]:
    """Replicas shared between all devices, as many side by side as suits them."""
    batch_size = _replica_batch(config, md_form, bound, num_atoms)
    return partial(parallel.map_replicas, batch_size=batch_size, mesh=parallel.replica_mesh())


def _replica_batch(config: ConfigDict, md_form: MDForm, bound: Potential, num_atoms: int) -> int | None:
    """Replicas side by side on a device; None: all of them."""
    per_device = max(config.stable.num_replicas, config.evaluate.num_replicas) // jax.device_count()
    batch = config.md.replica_batch or memory.replica_batch(md_form, bound, num_atoms, per_device)
    return None if batch >= per_device > 1 else batch


def mean_over_frames(fn: Callable, position: np.ndarray) -> Any:
    """Of a function of a position."""
    means = jax.jit(lambda frames: jax.tree.map(partial(jnp.mean, axis=0), lax.map(fn, frames, batch_size=FRAME_BATCH)))
    return jax.tree.map(np.asarray, means(position))


def lengthen_lists(system: System, progress: Progress) -> System:
    """The system with more places in its neighbor lists; the step that was short of them has to be repeated."""
    assert system.with_more_pairs is not None
    progress.say("a neighbor list is too short for the next step: lists are made longer and the step is repeated")
    return system.with_more_pairs()


def num_lags(longest_fs: float, config: ConfigDict, name: str) -> int:
    """Lags from 0 to the longest, one for each frame of the evaluation."""
    spacing_fs = config.evaluate.frame_spacing_fs
    whole(spacing_fs / config.md.timestep_fs, "evaluate.frame_spacing_fs")
    return whole(longest_fs / spacing_fs, name) + 1


def whole(value: float, name: str) -> int:
    """The value of a setting that counts steps of another.

    Raises:
      ValueError: it is not a whole number, at least 1.
    """
    if value < 1 or abs(value - round(value)) > 1e-6:
        raise ValueError(f"config.{name} has to be a whole number of the steps it counts, got {value:g} of them.")
    return round(value)
