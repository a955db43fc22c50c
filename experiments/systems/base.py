"""What the stages need to know of a system, and what molecules and liquids put it together from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import memory
from experiments.data import loaders
from stablejax import losses, metrics, named, parallel, stability, topology, units
from stablejax.integrators import Integrator, langevin, nose_hoover
from stablejax.parallel import Execution
from stablejax.potential import Potential
from stablejax.problem import Problem
from stablejax.space import Space
from stablejax.types import Array, Criterion, Frame, ObservableFn

FRAME_BATCH = 100
"""Frames of a data set that are worked on together, which bounds memory."""


class Profile(NamedTuple):
    """A curve of the structure, drawn before and after beside the reference."""

    x: np.ndarray  # [bin]
    title: str
    xlabel: str
    ylabel: str
    xlim: tuple[float, float]


class Measure(NamedTuple):
    """A figure of the structure: how far it is from the reference, times `factor`."""

    metric: str
    name: str  # of the structure
    label: str
    unit: str | None
    form: str
    factor: float = 1.0
    error_fn: Callable[[np.ndarray, np.ndarray], float] = metrics.mean_absolute_error  # (structure, reference)


LENGTH_MEASURE = Measure("bond_length_mae_A", "bond_length", "mean bond lengths, MAE (Å)", "Å", "{:.4f}")
ANGLE_MEASURE = Measure(
    "bond_angle_mae_degree", "bond_angle", "mean bond angles, MAE (degrees)", "degree", "{:.2f}", 180 / np.pi
)


class Evaluated(NamedTuple):
    """How simulations of a system are judged."""

    criterion: Criterion
    criterion_name: str
    structure_fn: ObservableFn  # dict of what is reported
    structure_reference: dict[str, np.ndarray]  # means over all frames of the data set
    profiles: dict[str, Profile]  # by name of the structure
    measures: tuple[Measure, ...]
    motion_fn: Callable[[Frame], dict[str, Array]]  # of a window of frames, curves [lag]


class System(NamedTuple):
    """A data set as a problem for StABlE training, and what else the stages need."""

    data: Data
    problem: Problem
    thermostat: Callable[..., Integrator]  # (potential, mass, *, kT)
    execution: Execution
    evaluation: Evaluated
    train_criterion_name: str
    freeze_above: float  # beyond the training criterion, in the learning phase


class Data(NamedTuple):
    """A data set, and which frames are for what."""

    dataset: loaders.Dataset  # energies relative to `offset`
    split: loaders.Split
    reference: np.ndarray  # frames that the references of criteria and trained observables are means over
    offset: float  # eV, the mean energy of the training frames

    @property
    def space(self) -> Space:
        """Where the atoms are."""
        return self.dataset.space

    @property
    def reference_position(self) -> np.ndarray:
        """[frame, atom, 3] Å."""
        return self.dataset.position[self.reference]

    def labeled(self, index: np.ndarray) -> losses.Labeled:
        """Frames as what losses take."""
        arrays = (self.dataset.position, self.dataset.energy, self.dataset.force)
        return losses.Labeled(*(jnp.asarray(array[index], jnp.float32) for array in arrays))

    def starts(self, index: np.ndarray, num: int) -> jax.Array:
        """`num` positions from the frames of `index`, in turn."""
        return jnp.asarray(self.dataset.position[np.resize(index, num)])


def load(config: ConfigDict) -> Data:
    """The data set of the config, its energies relative to the training set, and which frames are for what."""
    data = config.data
    dataset = loaders.load(data.path, energy_unit=data.energy_unit, length_unit=data.length_unit)
    counts = dict(num_train=data.num_train, num_validation=data.num_validation, num_test=data.num_test)
    split = loaders.split(dataset, **counts, seed=config.seed)
    reference = loaders.reference_frames(dataset, split, num=data.num_reference, seed=config.seed)
    # Thousands of eV would not fit into float32: the offset is taken off before.
    offset = float(dataset.energy[split.train].mean())
    return Data(dataset._replace(energy=dataset.energy - offset), split, reference, offset)


def simulated_form(config: ConfigDict, potential: Potential) -> Potential:
    """The form that dynamics runs."""
    return potential.fast(config.md.table_intervals) if config.md.table_intervals else potential


def key_for(config: ConfigDict, name: str) -> jax.Array:
    """The PRNG key of one purpose."""
    purposes = ("model", "stable", "evaluate")
    return jax.random.fold_in(jax.random.key(config.seed), purposes.index(name))


def thermostat(config: ConfigDict) -> Callable[..., Integrator]:
    """`(potential, mass, *, kT) -> Integrator` of the config.

    Raises:
      ValueError: there is none of that name.
    """
    md = config.md
    timestep, damping_time = md.timestep_fs * units.FEMTOSECOND, md.damping_time_fs * units.FEMTOSECOND
    known = {
        "langevin": partial(langevin, timestep=timestep, friction=1 / damping_time),
        "nose_hoover": partial(nose_hoover, timestep=timestep, damping_time=damping_time),
    }
    if md.thermostat not in known:
        raise ValueError(f"config.md.thermostat has to be one of {', '.join(known)}, got {md.thermostat!r}.")
    return known[md.thermostat]


def execution(config: ConfigDict, potential: Potential) -> Execution:
    """Replicas shared between all devices, as many side by side as suits them."""
    form = simulated_form(config, potential)
    return Execution(
        mesh=parallel.replica_mesh(),
        batch_size=_replica_batch(config, form),
        chunk_size=config.stable.estimator_chunk or memory.estimator_chunk(potential),
        donates=True,
    )


def _replica_batch(config: ConfigDict, form: Potential) -> int | None:
    """Replicas side by side on a device; None: all of them."""
    per_device = max(config.stable.num_replicas, config.evaluate.num_replicas) // jax.device_count()
    batch = config.md.replica_batch or memory.replica_batch(form, per_device)
    return None if batch >= per_device > 1 else batch


def mean_over_frames(fn: Callable, position: np.ndarray) -> Any:
    """Of an observable."""

    @jax.jit
    def means(frames):
        values = jax.lax.map(lambda x: fn(Frame(x)), frames, batch_size=FRAME_BATCH)
        return jax.tree.map(partial(jnp.mean, axis=0), values)

    return jax.tree.map(np.asarray, means(position))


def find_topology(data: Data, *, position: np.ndarray | None = None) -> topology.Topology:
    """Bonds and molecules of the reference.

    Args:
      data: of the system.
      position: frames to find them in. None: all of the reference.
    """
    from ase.data import atomic_masses, covalent_radii

    species = data.dataset.species
    return topology.find_topology(
        data.reference_position if position is None else position,
        species,
        mass=atomic_masses[species].astype(np.float32),
        covalent_radius=covalent_radii[species],
        space=data.space,
    )


def other_observables(config: ConfigDict, facts: topology.Topology) -> tuple[dict[str, ObservableFn], dict[str, float]]:
    """Those that the config names beside the system's own, and the weight of each."""
    weights = by_name(config.observable.others, "observable.others")
    return {name: named.make_observable(name, facts) for name in weights}, weights


def with_other_criteria(config: ConfigDict, facts: topology.Topology, criterion: Criterion) -> Criterion:
    """The criterion, or any of those that the config names beside it."""
    thresholds = by_name(config.stability.others, "stability.others")
    others = [named.make_criterion(name, facts, threshold=value) for name, value in thresholds.items()]
    return stability.any_of(criterion, *others) if others else criterion


def by_name(text: str, field: str) -> dict[str, float]:
    """Numbers by name from `name=number, name=number`.

    Args:
      text: of the field.
      field: of the config, for the message.

    Raises:
      ValueError: the text is of another form.
    """
    found = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = (part.strip() for part in entry.partition("="))
        try:
            found[name] = float(number)
        except ValueError:
            raise ValueError(f"config.{field} has to be name=number, …, got {entry!r}.") from None
    return found


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
