"""A molecular liquid in a periodic cell: collisions say whether it is stable, and it is trained on its molecules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from ml_collections import ConfigDict

from experiments import architectures
from experiments.data import loaders
from experiments.systems import base
from experiments.systems.base import Data, Evaluated, Measure, Profile, System, mean_over_frames
from stablejax import metrics, neighborhoods, potential, stability, topology, units
from stablejax.neighbors import most_pairs
from stablejax.observables import structure, transport
from stablejax.problem import Observables, Problem, Subsample
from stablejax.space import Pairs
from stablejax.topology import Topology
from stablejax.types import Criterion, ObservableFn

FRAMES_FOR_BONDS = 100


def build(config: ConfigDict, make_model: Callable = architectures.make) -> System:
    """A liquid of one kind of molecule, judged by what comes too close and by its RDFs, refined by the local estimator.

    Args:
      config: of the experiment.
      make_model: `(config, data set, key)` -> architecture.
    """
    data, facts = _whole_molecules(config, base.load(config))
    if config.observable.others:
        raise ValueError("config.observable.others is for molecules, expected none for a liquid: leave it empty.")
    model = make_model(config, data.dataset, base.key_for(config, "model"))
    between = _between(facts)
    bound = potential.bind(model, facts.species, space=facts.space, offset=data.offset)
    listed = bound.with_lists(skin=config.md.skin_A, num_pairs=_capacity(config, data, bound))
    mean_length = structure.molecule_bond_lengths(facts.bonds, facts.molecule, space=facts.space)
    nearest = structure.molecule_distances(between, facts.molecule, space=facts.space)
    settings = config.stability
    problem = Problem(
        potential=listed,
        mass=jnp.asarray(facts.mass),
        kT=units.thermal_energy(config.md.temperature_K),
        criterion=base.with_other_criteria(
            config,
            facts,
            stability.intermolecular_distance(between, threshold=settings.train_threshold_A, space=facts.space),
        ),
        observables=_local_observables(config, data, mean_length, nearest),
        frames=data.labeled(data.split.train),
        energy_weight=config.pretrain.energy_weight,
        force_weight=config.pretrain.force_weight,
        neighborhoods=neighborhoods.nearest_molecules(
            facts.molecule, num_molecules=config.observable.molecules_per_neighborhood, space=facts.space
        ),
        subsample=_subsample(config, mean_length, nearest, float(facts.bond_length.mean())),
    )
    return System(
        data=data,
        problem=problem,
        thermostat=base.thermostat(config),
        execution=base.execution(config, listed),
        evaluation=_evaluated(config, data, facts),
        train_criterion_name=f"atoms of two molecules are nearer than {settings.train_threshold_A:g} Å",
        freeze_above=settings.train_threshold_A - settings.learn_threshold_A,
    )


def _whole_molecules(config: ConfigDict, data: Data) -> tuple[Data, Topology]:
    """The data with whole molecules, and the facts of the system."""
    dataset = data.dataset
    if dataset.cell is None:
        raise ValueError(f"{config.data.path} has no cell, expected a periodic system: use experiments.aspirin.")
    reference = data.reference_position
    facts = base.find_topology(data, position=reference[:: max(1, len(reference) // FRAMES_FOR_BONDS)])
    if dataset.is_wrapped:
        position = topology.make_whole(dataset.position, facts.bonds, facts.space)
        data = data._replace(dataset=dataset._replace(position=position, is_wrapped=False))
    loaders.check_bonds_kept(data.dataset, facts.bonds, threshold=config.stability.bond_threshold_A)
    return data, facts


def _capacity(config: ConfigDict, data: Data, bound: potential.Potential) -> int:
    assert bound.cutoff is not None
    reach = dict(cutoff=bound.cutoff, skin=config.md.skin_A, margin=config.md.spare_pairs)
    return most_pairs(data.dataset.position, **reach, space=bound.space)


def _between(facts: Topology) -> Pairs:
    """Pairs of atoms of different molecules."""
    pairs = topology.intermolecular_pairs(facts.species, facts.molecule)
    return Pairs(*(np.concatenate(atoms) for atoms in zip(*pairs.values(), strict=True)))


def _local_observables(config: ConfigDict, data: Data, mean_length: ObservableFn, nearest: ObservableFn) -> Observables:
    """What is trained on, [molecule], and its means over the reference."""
    settings = config.observable
    functions: dict[str, ObservableFn] = {"bond_length": mean_length}
    weights = {"bond_length": settings.length_weight}
    if settings.distance_weight:
        center = structure.bin_centers(settings.distance_stop_A, settings.distance_width_A)
        functions["distance"] = structure.density(nearest, center, smearing=settings.distance_width_A / 2)
        weights["distance"] = settings.distance_weight * settings.distance_width_A

    def fn(frame):
        return {name: one(frame) for name, one in functions.items()}

    def over_molecules(frame):
        return jax.tree.map(partial(jnp.mean, axis=0), fn(frame))

    return Observables(fn, mean_over_frames(over_molecules, data.reference_position), weights)


def _subsample(config: ConfigDict, mean_length: ObservableFn, nearest: ObservableFn, target: float) -> Subsample | None:
    """Molecules that are learned from: as many from each bin of what tells the unstable ones from the others (A.6).

    The deviation of their bonds from the mean; their smallest distance to another where that is learned.
    """
    settings = config.observable
    if not settings.num_bins:
        return None

    def value_fn(frame):
        return nearest(frame) if settings.distance_weight else jnp.abs(mean_length(frame) - target)

    return Subsample(value_fn, num_bins=settings.num_bins, per_bin=settings.per_bin)


def _evaluated(config: ConfigDict, data: Data, facts: Topology) -> Evaluated:
    rdfs, settings, space = _rdfs(config, facts), config.observable, facts.space
    lengths = structure.bond_lengths(facts.bonds, space=space)
    angles = structure.bond_angles(topology.angle_triples(facts.bonds), space=space)

    def rdf_fn(frame):
        return {name: fn(frame) for name, fn in rdfs.items()}

    def structure_fn(frame):
        return rdf_fn(frame) | {"bond_length": lengths(frame), "bond_angle": angles(frame)}

    center = structure.bin_centers(settings.stop_A, settings.width_A)
    criterion, name = _rdf_criterion(config, rdf_fn, mean_over_frames(rdf_fn, data.reference_position))
    return Evaluated(
        criterion=criterion,
        criterion_name=name,
        structure_fn=structure_fn,
        structure_reference=mean_over_frames(structure_fn, data.dataset.position),
        profiles={
            name: Profile(center, f"radial distribution function, {_kind(name)}", "r (Å)", "g(r)", (0.5, center[-1]))
            for name in rdfs
        },
        measures=_measures(rdfs),
        motion_fn=build_motion(config, facts.mass, facts.molecule),
    )


def _kind(name: str) -> str:
    return name.removeprefix("rdf_")


def _rdfs(config: ConfigDict, facts: Topology) -> dict[str, ObservableFn]:
    settings = config.observable
    return {
        f"rdf_{chemical_symbols[high]}{chemical_symbols[low]}": structure.radial_distribution(
            some, stop=settings.stop_A, width=settings.width_A, space=facts.space
        )
        for (low, high), some in topology.intermolecular_pairs(facts.species, facts.molecule).items()
    }


def _rdf_criterion(config: ConfigDict, rdf_fn: ObservableFn, reference) -> tuple[Criterion, str]:
    """RDFs over windows, and what that is called."""
    settings = config.stability
    criterion = stability.window_mean_error(
        rdf_fn,
        reference,
        bin_width=config.observable.width_A,
        steps_per_frame=base.whole(settings.look_fs / config.md.timestep_fs, "stability.look_fs"),
        frames_per_window=base.whole(settings.window_ps * 1000 / settings.look_fs, "stability.window_ps"),
        threshold=settings.evaluate_threshold,
    )
    name = (
        f"an RDF over {settings.window_ps:g} ps deviates by {settings.evaluate_threshold:g} Å from the reference "
        "(∫|Δg|dr)"
    )
    return criterion, name


def _measures(rdfs) -> tuple[Measure, ...]:
    measures = []
    for name in rdfs:
        metric = name.lower()
        peak = f"g(r) of {_kind(name)}, largest where the reference has none"
        measures.append(Measure(f"{metric}_mae", name, f"g(r) of {_kind(name)}, MAE", None, "{:.4f}"))
        measures.append(Measure(f"{metric}_spike", name, peak, None, "{:.4f}", error_fn=metrics.spurious_peak))
    return (*measures, base.LENGTH_MEASURE, base.ANGLE_MEASURE)


def build_motion(config: ConfigDict, mass: np.ndarray, molecule: np.ndarray) -> Callable:
    """Of a window of frames: the VACF of atoms; displacement and velocity correlation of molecules.

    Args:
      config: of the experiment.
      mass: amu.
      molecule: number of the molecule of each atom.
    """
    settings = config.evaluate
    vacf_lags = base.num_lags(settings.vacf_window_fs, config, "evaluate.vacf_window_fs")
    msd_lags = base.num_lags(1000 * settings.displacement_ps, config, "evaluate.displacement_ps")
    velocity_lags = base.num_lags(1000 * settings.green_kubo_ps, config, "evaluate.green_kubo_ps")
    centers = partial(transport.molecule_centers, mass=mass, molecule=molecule)
    molecule_mass = np.bincount(molecule, weights=mass)

    def motion_fn(frame):
        position, velocity = centers(frame.position), centers(frame.velocity)
        return {
            "vacf": transport.velocity_autocorrelation(frame.velocity, jnp.asarray(mass), num_lags=vacf_lags),
            "msd": transport.mean_squared_displacement(position, molecule_mass, num_lags=msd_lags),
            "velocity_correlation": transport.velocity_correlation(velocity, molecule_mass, num_lags=velocity_lags),
        }

    return motion_fn
