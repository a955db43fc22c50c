"""What an experiment is about: a data set, a potential, criteria and observables, put together from a config."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_masses, covalent_radii
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict

from experiments import memory
from experiments.data import loaders
from stablejax import dynamics, losses, potential, stability, units
from stablejax.dynamics import Integrator, langevin, nose_hoover
from stablejax.geometry import all_pairs
from stablejax.observables import structure
from stablejax.potential import MDForm, Potential
from stablejax.types import Criterion

FRAME_BATCH = 100
"""Frames of a data set that are worked on together, which bounds memory."""


class System(NamedTuple):
    """All that the pipeline needs to know of a system."""

    dataset: loaders.Dataset
    split: loaders.Split
    potential: Potential
    md_form: MDForm
    mass: jax.Array  # [atom] amu
    qm_loss: Callable  # (params, Labelled) -> (L_QM, LabelErrors)
    map_replicas: Callable[..., Callable]  # see `dynamics.map_replicas`
    integrator: Integrator
    num_removed: int  # degrees of freedom that the integrator holds at rest
    train_criterion: Criterion
    evaluate_criterion: Criterion
    freeze_above: float  # beyond the training criterion, in the learning phase
    criterion_name: str
    observable_fn: Callable  # of a position, what is trained on
    reference: Any  # its mean over the reference
    observable_weight: Any
    structure_fn: Callable  # of a position, dict of what is reported
    structure_reference: dict[str, np.ndarray]
    distance_centre: np.ndarray  # of the bins of h(r), Å


def molecule(config: ConfigDict, model: nn.Module) -> System:
    """A molecule in open boundaries, judged by its bond lengths and trained on its h(r)."""
    data = config.data
    dataset = loaders.load(data.path, energy_unit=data.energy_unit, length_unit=data.length_unit)
    split = loaders.split(
        dataset, num_train=data.num_train, num_validation=data.num_validation, num_test=data.num_test, seed=config.seed
    )
    # Thousands of eV would not fit into float32: the offset is taken off before.
    dataset = dataset._replace(energy=dataset.energy - dataset.energy[split.train].mean())

    bonds, length = stability.find_bonds(dataset.position, covalent_radii[dataset.species])
    threshold = config.stability.evaluate_threshold_A
    loaders.check_bonds_kept(dataset, bonds, threshold=threshold)

    centre = structure.bin_centres(config.observable.stop_A, config.observable.width_A)
    pairs, smearing = all_pairs(len(dataset.species)), config.observable.smearing_A
    distances = structure.interatomic_distances(pairs, centre, smearing=smearing)
    angles = structure.bond_angles(structure.angle_triples(bonds))
    lengths = structure.bond_lengths(bonds)

    def structure_fn(position):
        return {"h_r": distances(position), "bond_length": lengths(position), "bond_angle": angles(position)}

    structure_reference = _mean_over_frames(structure_fn, dataset.position)
    observable_fn, observable_weight = _trained_observables(config, dataset, bonds, length)

    bound = potential.bind(model, dataset.species)
    num_intervals = config.md.table_intervals
    md_form = (
        potential.tabulated_form(model, dataset.species, num_intervals=num_intervals)
        if num_intervals
        else potential.exact_form(bound)
    )
    mass = jnp.asarray(atomic_masses[dataset.species], jnp.float32)
    integrator, num_removed = _integrator(config, md_form, mass)
    loss_weights = dict(energy_weight=config.pretrain.energy_weight, force_weight=config.pretrain.force_weight)
    return System(
        dataset=dataset,
        split=split,
        potential=bound,
        md_form=md_form,
        mass=mass,
        qm_loss=losses.energy_and_force_loss(bound.energy, **loss_weights),
        map_replicas=partial(
            dynamics.map_replicas,
            batch_size=_replica_batch(config, md_form, bound, len(mass)),
            mesh=dynamics.replica_mesh(),
        ),
        integrator=integrator,
        num_removed=num_removed,
        train_criterion=stability.bond_length_deviation(bonds, length, threshold=config.stability.train_threshold_A),
        evaluate_criterion=stability.bond_length_deviation(bonds, length, threshold=threshold),
        freeze_above=config.stability.learn_threshold_A - config.stability.train_threshold_A,
        criterion_name=f"a bond is {threshold:g} Å off its mean length",
        observable_fn=observable_fn,
        reference=_mean_over_frames(observable_fn, dataset.position),
        observable_weight=observable_weight,
        structure_fn=structure_fn,
        structure_reference=structure_reference,
        distance_centre=centre,
    )


def _trained_observables(config: ConfigDict, dataset: loaders.Dataset, bonds, length) -> tuple[Callable, dict]:
    """What is trained on, a dict of a position, and the weight of each in the loss."""
    settings = config.observable
    centre = structure.bin_centres(settings.stop_A, settings.width_A)
    pairs = {"all": all_pairs(len(dataset.species))}
    if settings.by_element:
        pairs = {f"{low}-{high}": some for (low, high), some in structure.pairs_by_element(dataset.species).items()}
    functions = {
        name: structure.interatomic_distances(some, centre, smearing=settings.smearing_A)
        for name, some in pairs.items()
    }
    weights = dict.fromkeys(functions, settings.weight * settings.width_A / len(functions))
    if settings.bond_weight:
        lengths = structure.bond_lengths(bonds)
        variance = _mean_over_frames(lambda x: (lengths(x) - length) ** 2, dataset.position)
        functions["bond_variance"] = structure.bond_variances(bonds, length, variance)
        weights["bond_variance"] = settings.bond_weight / len(length)
    return lambda position: {name: fn(position) for name, fn in functions.items()}, weights


def key_for(config: ConfigDict, name: str) -> jax.Array:
    """The PRNG key of one purpose."""
    purposes = ("model", "stable", "evaluate")
    return jax.random.fold_in(jax.random.key(config.seed), purposes.index(name))


def labelled(system: System, index: np.ndarray) -> losses.Labelled:
    """Frames of the data set as what losses take."""
    arrays = (system.dataset.position, system.dataset.energy, system.dataset.force)
    return losses.Labelled(*(jnp.asarray(array[index], jnp.float32) for array in arrays))


def start_positions(system: System, index: np.ndarray, num: int) -> jax.Array:
    """`num` positions from the frames of `index`, each as often as any other, give or take one."""
    return jnp.asarray(system.dataset.position[np.resize(index, num)])


def _integrator(config: ConfigDict, md_form: MDForm, mass: jax.Array) -> tuple[Integrator, int]:
    md = config.md
    common = dict(kT=units.thermal_energy(md.temperature_K), timestep=md.timestep_fs * units.FEMTOSECOND)
    damping_time = md.damping_time_fs * units.FEMTOSECOND
    if md.thermostat == "langevin":
        return langevin(md_form.energy, mass, friction=1 / damping_time, **common), 0
    if md.thermostat == "nose_hoover":
        return nose_hoover(md_form.energy, mass, damping_time=damping_time, **common), 6
    raise ValueError(f"config.md.thermostat has to be langevin or nose_hoover, got {md.thermostat!r}.")


def _replica_batch(config: ConfigDict, md_form: MDForm, bound: Potential, num_atoms: int) -> int | None:
    """Replicas side by side on a device; None: all of them."""
    per_device = max(config.stable.num_replicas, config.evaluate.num_replicas) // jax.device_count()
    batch = config.md.replica_batch or memory.replica_batch(md_form, bound, num_atoms, per_device)
    return None if batch >= per_device > 1 else batch


def _mean_over_frames(fn: Callable, position: np.ndarray) -> Any:
    means = jax.jit(lambda frames: jax.tree.map(partial(jnp.mean, axis=0), lax.map(fn, frames, batch_size=FRAME_BATCH)))
    return jax.tree.map(np.asarray, means(position))
