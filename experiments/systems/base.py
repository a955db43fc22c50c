"""What the stages need to know about a system, and the parts that molecules and liquids share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from experiments import memory
from experiments.data import loaders
from stablejax import losses, metrics, named, parallel, stability, topology, units
from stablejax.integrators import Integrator, langevin, nose_hoover
from stablejax.observables import structure
from stablejax.parallel import Execution
from stablejax.potential import Potential
from stablejax.problem import Observables, Problem
from stablejax.space import Space
from stablejax.topology import FRAME_BATCH
from stablejax.types import Array, Criterion, Frame, ObservableFn


class Profile(NamedTuple):
    """A structural curve, drawn before and after training with the reference."""

    x: np.ndarray  # [bin]
    title: str
    xlabel: str
    ylabel: str
    xlim: tuple[float, float]


class Measure(NamedTuple):
    """A figure of the structure: its error against the reference, times `factor`."""

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

VARIANCE_MEASURE = Measure(
    "bond_variance_ratio",
    "bond_variance",
    "variance of bond lengths, over the reference's",
    None,
    "{:.2f}",
    error_fn=metrics.mean_ratio,
)


class Evaluated(NamedTuple):
    """How simulations of a system are evaluated."""

    criterion: Criterion
    criterion_name: str
    structure_fn: ObservableFn  # dict of the observables that are reported
    structure_reference: dict[str, np.ndarray]  # means over all frames of the data set
    profiles: dict[str, Profile]  # by name of the structure
    measures: tuple[Measure, ...]
    motion_fn: Callable[[Frame], dict[str, Array]]  # of a window of frames, curves [lag]


class System(NamedTuple):
    """A data set as a problem for StABlE training, and what else the stages need."""

    data: Data
    model: nn.Module
    problem: Problem
    thermostat: Callable[..., Integrator]  # (potential, mass, *, kT)
    timestep_fs: float
    table_intervals: int  # of the tables that replace radial networks in dynamics; 0: exact networks
    execution: Execution
    evaluation: Evaluated
    train_criterion_name: str
    freeze_above: float  # value of the training criterion, in the learning phase

    def with_potential(self, potential: Potential) -> System:
        """The same system with another form of its potential."""
        return self._replace(problem=self.problem._replace(potential=potential))

    @property
    def num_pairs(self) -> int | None:
        """Capacity of the neighbor lists; None without lists."""
        lists = self.problem.potential.lists
        return None if lists is None else lists.num_pairs

    def with_num_pairs(self, num_pairs: int | None) -> System:
        """The same system with another capacity of its neighbor lists, if it has any."""
        potential = self.problem.potential
        if potential.skin is None or num_pairs in (None, self.num_pairs):
            return self
        return self.with_potential(potential.with_lists(skin=potential.skin, num_pairs=num_pairs))


class Data(NamedTuple):
    """A data set, and the use of its frames."""

    dataset: loaders.Dataset  # energies relative to `offset`
    split: loaders.Split
    reference: np.ndarray  # frames that the references of criteria and trained observables are means over
    offset: float  # eV, the mean energy of the training frames

    @property
    def space(self) -> Space:
        """Boundaries of the system."""
        return self.dataset.space

    @property
    def reference_position(self) -> np.ndarray:
        """Positions of the reference frames, [frame, atom, 3] Å."""
        return self.dataset.position[self.reference]

    @property
    def mean_force(self) -> float:
        """Mean absolute component of the forces on test frames, eV/Å."""
        return float(np.abs(self.dataset.force[self.split.test]).mean())

    def labeled(self, index: np.ndarray) -> losses.Labeled:
        """Frames with their labels, for losses."""
        arrays = (self.dataset.position, self.dataset.energy, self.dataset.force)
        return losses.Labeled(*(jnp.asarray(array[index], jnp.float32) for array in arrays))

    def starts(self, index: np.ndarray, num: int) -> jax.Array:
        """`num` positions from the frames of `index`, repeated cyclically."""
        return jnp.asarray(self.dataset.position[np.resize(index, num)])


def load(config: ConfigDict) -> Data:
    """The data set of the config, its energies relative to the mean of the training set, and the use of its frames."""
    data = config.data
    dataset = loaders.load(
        data.path,
        energy_unit=data.energy_unit,
        length_unit=data.length_unit,
        keys=loaders.Keys(energy=data.energy_key, force=data.force_key, mass=data.mass_key),
        max_bytes=data.max_gigabytes * 1e9,
    )
    counts = dict(num_train=data.num_train, num_validation=data.num_validation, num_test=data.num_test)
    split = loaders.split(dataset, **counts, seed=config.seed)
    reference = loaders.reference_frames(dataset, split, num=data.num_reference, seed=config.seed)
    # Float32 does not resolve energies of thousands of eV: the offset is subtracted in float64.
    offset = float(dataset.energy[split.train].mean())
    return Data(dataset._replace(energy=dataset.energy - offset), split, reference, offset)


def make_problem(
    config: ConfigDict,
    data: Data,
    facts: topology.Topology,
    *,
    potential: Potential,
    criterion: Criterion,
    observables: Observables,
) -> Problem:
    """The problem with what every system takes from its config: temperature, weights of labels, further criteria.

    Args:
      config: of the experiment.
      data: its training frames are the labeled ones.
      facts: of the system.
      potential: in eV, relative to the data's offset.
      criterion: of training.
      observables: that are trained on.
    """
    thresholds = by_name(config.stability.others, "stability.others")
    others = [named.make_criterion(name, facts, threshold=value) for name, value in thresholds.items()]
    return Problem(
        potential=potential,
        mass=jnp.asarray(facts.mass),
        kT=units.thermal_energy(config.md.temperature_K),
        criterion=stability.any_of(criterion, *others) if others else criterion,
        observables=observables,
        frames=data.labeled(data.split.train),
        energy_weight=config.pretrain.energy_weight,
        force_weight=config.pretrain.force_weight,
        held_out=data.labeled(data.split.validation),
    )


def make_system(
    config: ConfigDict,
    data: Data,
    model: nn.Module,
    problem: Problem,
    evaluation: Evaluated,
    *,
    train_criterion_name: str,
    freeze_above: float,
) -> System:
    """The problem with the dynamics of its config.

    Args:
      config: of the experiment.
      data: of the system.
      model: of the potential.
      problem: from `make_problem`.
      evaluation: how simulations are evaluated.
      train_criterion_name: for the report.
      freeze_above: value of the training criterion, in its unit.
    """
    md, num_replicas = config.md, max(config.stable.num_replicas, config.evaluate.num_replicas)
    return System(
        data=data,
        model=model,
        problem=problem,
        thermostat=thermostat(md.thermostat, timestep_fs=md.timestep_fs, damping_time_fs=md.damping_time_fs),
        timestep_fs=md.timestep_fs,
        table_intervals=md.table_intervals,
        execution=execution(
            problem.potential,
            form=problem.potential.fast(md.table_intervals),
            num_replicas=num_replicas,
            replica_batch=md.replica_batch,
            estimator_chunk=config.stable.estimator_chunk,
        ),
        evaluation=evaluation,
        train_criterion_name=train_criterion_name,
        freeze_above=freeze_above,
    )


def key_for(seed: int, name: str) -> jax.Array:
    """The PRNG key of one purpose.

    Args:
      seed: of the experiment.
      name: of the purpose.
    """
    purposes = ("model", "stable", "evaluate")
    return jax.random.fold_in(jax.random.key(seed), purposes.index(name))


def thermostat(name: str, *, timestep_fs: float, damping_time_fs: float) -> Callable[..., Integrator]:
    """`(potential, mass, *, kT) -> Integrator`.

    Args:
      name: langevin or nose_hoover.
      timestep_fs: of the integrator.
      damping_time_fs: 1/friction, or the period of the chain.

    Raises:
      ValueError: there is none of that name.
    """
    timestep, damping_time = timestep_fs * units.FEMTOSECOND, damping_time_fs * units.FEMTOSECOND
    known = {
        "langevin": partial(langevin, timestep=timestep, friction=1 / damping_time),
        "nose_hoover": partial(nose_hoover, timestep=timestep, damping_time=damping_time),
    }
    if name not in known:
        raise ValueError(f"config.md.thermostat has to be one of {', '.join(known)}, got {name!r}.")
    return known[name]


def execution(
    potential: Potential, *, form: Potential, num_replicas: int, replica_batch: int = 0, estimator_chunk: int = 0
) -> Execution:
    """Replicas sharded over all devices, in batches of a suitable size.

    Args:
      potential: its energies are differentiated by the estimator.
      form: of the potential, that is simulated.
      num_replicas: largest number that is simulated.
      replica_batch: replicas in a batch on a device; 0: chosen from the memory.
      estimator_chunk: samples whose energies are differentiated together; 0: chosen from the memory.
    """
    per_device = num_replicas // jax.device_count()
    batch = replica_batch or memory.replica_batch(form, per_device)
    return Execution(
        mesh=parallel.replica_mesh(),
        batch_size=None if batch >= per_device > 1 else batch,  # None: all of them
        chunk_size=estimator_chunk or memory.estimator_chunk(potential),
        donates=True,
    )


def mean_over_frames(fn: Callable, position: np.ndarray, weight: Array | None = None) -> Any:
    """Mean of an observable over frames.

    Args:
      fn: observable of a frame.
      position: [frame, atom, 3] Å.
      weight: [frame], on any scale. None: all the same.
    """

    @jax.jit
    def means(frames, weight):
        values = jax.lax.map(lambda x: fn(Frame(x)), frames, batch_size=FRAME_BATCH)
        return jax.tree.map(partial(jnp.average, axis=0, weights=weight), values)

    return jax.tree.map(np.asarray, means(position, weight))


def observables(
    functions: dict[str, ObservableFn],
    weights: dict[str, float],
    position: np.ndarray,
    *,
    in_fluctuations: bool,
    num_axes: int = 0,
) -> Observables:
    """What is trained on, with its means over the reference.

    Args:
      functions: observables of a frame, by name.
      weights: of each; where they fluctuate, relative ones.
      position: of the reference, [frame, atom, 3] Å.
      in_fluctuations: every component is measured in units of its standard deviation over the reference.
      num_axes: leading ones that the observables are means over, too: of molecules.
    """

    def fn(frame):
        return {name: one(frame) for name, one in functions.items()}

    def moments(frame):
        first = fn(frame)
        both = first, jax.tree.map(jnp.square, first)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=tuple(range(num_axes))) if num_axes else leaf, both)

    mean, mean_square = mean_over_frames(moments, position)
    if not in_fluctuations:
        return Observables(fn, mean, weights)
    variance = jax.tree.map(lambda a, b: np.maximum(b - a**2, 0), mean, mean_square)
    units = losses.fluctuation_weights(variance)
    return Observables(fn, mean, {name: weight * units[name] for name, weight in weights.items()})


def find_topology(data: Data, *, position: np.ndarray | None = None) -> topology.Topology:
    """Bonds and molecules of the reference.

    Args:
      data: of the system.
      position: frames that they are determined from. None: all of the reference.
    """
    from ase.data import atomic_masses, covalent_radii

    species, mass = data.dataset.species, data.dataset.mass
    return topology.find_topology(
        data.reference_position if position is None else position,
        species,
        mass=atomic_masses[species].astype(np.float32) if mass is None else mass.astype(np.float32),
        covalent_radius=covalent_radii[species],
        space=data.space,
    )


def squared_deviations(facts: topology.Topology) -> ObservableFn:
    """(r − its mean in the reference)² of each bond, Å², whose mean is a variance: how stiff bonds are.

    Args:
      facts: of the system.
    """
    lengths = structure.bond_lengths(facts.bonds, space=facts.space)
    return lambda frame: (lengths(frame) - facts.bond_length) ** 2


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


def num_lags(longest_fs: float, spacing_fs: float, name: str) -> int:
    """Lags from 0 to the longest, one for each frame.

    Args:
      longest_fs: lag.
      spacing_fs: between frames.
      name: of the setting, for the message.
    """
    return whole(longest_fs / spacing_fs, name) + 1


def whole(value: float, name: str) -> int:
    """The ratio of two settings, which has to be an integer.

    Raises:
      ValueError: it is not an integer, at least 1.
    """
    if value < 1 or abs(value - round(value)) > 1e-6:
        raise ValueError(
            f"config.{name} has to be an integer multiple of the unit it is counted in, got {value:g} times that."
        )
    return round(value)
