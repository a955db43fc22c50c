"""A molecular liquid in a periodic cell: collisions say whether it is stable, and it is trained on its molecules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_masses, chemical_symbols, covalent_radii
from jax import lax
from ml_collections import ConfigDict

from experiments import architectures, systems
from experiments.data import loaders
from experiments.systems import Measure, Profile, System, mean_over_frames
from stablejax import neighborhoods, potential, stability
from stablejax.boltzmann import localized, neighborhood_energies
from stablejax.geometry import Pairs, most_pairs, neighbor_lists
from stablejax.observables import structure, transport
from stablejax.types import Criterion

FRAMES_FOR_BONDS = 100


def build(config: ConfigDict, make_model: Callable = architectures.make) -> System:
    """A liquid of one kind of molecule, judged by what comes too close and by its RDFs, refined by the local estimator.

    Args:
      config: of the experiment.
      make_model: `(config, data set, key)` -> architecture.
    """
    dataset, split = systems.load(config)
    cell = dataset.cell
    if cell is None:
        raise ValueError(f"{config.data.path} has no cell, expected a periodic system: use experiments.aspirin.")
    shown = dataset.position[:: max(1, len(dataset.position) // FRAMES_FOR_BONDS)]
    bonds, length = stability.find_bonds(shown, covalent_radii[dataset.species], cell=cell)
    dataset = loaders.make_whole(dataset, bonds)
    loaders.check_bonds_kept(dataset, bonds, threshold=config.stability.bond_threshold_A)
    model = make_model(config, dataset, systems.key_for(config, "model"))
    mass = jnp.asarray(atomic_masses[dataset.species], jnp.float32)
    molecule = structure.find_molecules(bonds, len(dataset.species))
    pairs = structure.intermolecular_pairs(dataset.species, molecule)
    settings = config.observable
    rdfs = {
        f"rdf_{chemical_symbols[high]}{chemical_symbols[low]}": structure.radial_distribution(
            some, stop=settings.stop_A, width=settings.width_A, cell=cell
        )
        for (low, high), some in pairs.items()
    }
    lengths, angles = structure.bond_lengths(bonds), structure.bond_angles(structure.angle_triples(bonds))

    def rdf_fn(position):
        return {name: fn(position) for name, fn in rdfs.items()}

    def structure_fn(position):
        return rdf_fn(position) | {"bond_length": lengths(position), "bond_angle": angles(position)}

    structure_reference = mean_over_frames(structure_fn, dataset.position)
    between = Pairs(*(np.concatenate(atoms) for atoms in zip(*pairs.values(), strict=True)))
    train_criterion, evaluate_criterion, names = _criteria(
        config, between, cell, rdf_fn, {name: structure_reference[name] for name in rdfs}
    )
    mean_length = structure.molecule_bond_lengths(bonds, molecule)
    nearest = structure.molecule_distances(between, molecule, cell=cell)
    observable_fn, weight = _local_observables(config, mean_length, nearest)
    reference = mean_over_frames(lambda x: jax.tree.map(partial(jnp.mean, axis=0), observable_fn(x)), dataset.position)
    reach: dict[str, Any] = dict(cutoff=model.cutoff, skin=config.md.skin_A, cell=cell)
    whole, whole_form = systems.whole_model(config, model, dataset)
    fixed: dict[str, Any] = dict(
        dataset=dataset,
        split=split,
        mass=mass,
        train_criterion=train_criterion,
        evaluate_criterion=evaluate_criterion,
        freeze_above=config.stability.train_threshold_A - config.stability.learn_threshold_A,
        criterion_name=names[1],
        train_criterion_name=names[0],
        subsample=_subsample(config, mean_length, nearest, float(length.mean())),
        observable_fn=observable_fn,
        reference=reference,
        observable_weight=weight,
        structure_fn=structure_fn,
        structure_reference=structure_reference,
        profiles={
            name: Profile(
                structure.bin_centers(settings.stop_A, settings.width_A),
                f"radial distribution function, {name.removeprefix('rdf_')}",
                "r (Å)",
                "g(r)",
                (0.5, settings.stop_A),
            )
            for name in rdfs
        },
        measures=_measures(rdfs),
        motion_fn=build_motion(config, mass, molecule),
    )

    def with_lists(num_pairs: int) -> System:
        lists = neighbor_lists(len(mass), **reach, num_pairs=num_pairs)
        bound, md_form = potential.over_near_pairs(whole, lists), potential.listed_form(whole_form, lists)
        integrator, num_removed = systems.integrator(config, md_form, mass, is_periodic=True)
        return System(
            **fixed,
            potential=bound,
            md_form=md_form,
            qm_loss=systems.qm_loss(config, bound),
            map_replicas=systems.map_replicas(config, md_form, bound, len(mass)),
            integrator=integrator,
            num_removed=num_removed,
            energies=_local_energies(config, bound, molecule, cell),
            with_more_pairs=partial(with_lists, min(2 * num_pairs, len(mass) * (len(mass) - 1) // 2)),
        )

    return with_lists(most_pairs(dataset.position, **reach, margin=config.md.spare_pairs))


def _criteria(config, between: Pairs, cell, rdf_fn, rdf_reference) -> tuple[Criterion, Criterion, tuple[str, str]]:
    """Of training: distances between molecules. Of the evaluation: RDFs over windows. And what they are called."""
    settings = config.stability
    near = stability.intermolecular_distance(between, threshold=settings.train_threshold_A, cell=cell)
    frames_per_window = systems.whole(settings.window_ps * 1000 / settings.look_fs, "stability.window_ps")
    far = stability.window_mean_error(
        rdf_fn,
        rdf_reference,
        bin_width=config.observable.width_A,
        steps_per_frame=systems.whole(settings.look_fs / config.md.timestep_fs, "stability.look_fs"),
        frames_per_window=frames_per_window,
        threshold=settings.evaluate_threshold,
    )
    names = (
        f"atoms of two molecules are nearer than {settings.train_threshold_A:g} Å",
        f"an RDF over {settings.window_ps:g} ps is {settings.evaluate_threshold:g} Å off the reference (∫|Δg|dr)",
    )
    return near, far, names


def _local_observables(config, mean_length, nearest) -> tuple[Callable, dict[str, float]]:
    """What is trained on, [molecule] of a position, and the weight of each in the loss."""
    settings = config.observable
    functions: dict[str, Callable] = {"bond_length": mean_length}
    weights = {"bond_length": settings.length_weight}
    if settings.distance_weight:
        center = structure.bin_centers(settings.distance_stop_A, settings.distance_width_A)
        functions["distance"] = structure.density(nearest, center, smearing=settings.distance_width_A / 2)
        weights["distance"] = settings.distance_weight * settings.distance_width_A
    return lambda position: {name: fn(position) for name, fn in functions.items()}, weights


def _local_energies(config, bound: potential.Potential, molecule, cell):
    """Energies of the neighborhoods of the molecules (Equation 8)."""
    member_fn = neighborhoods.nearest_molecules(
        molecule, num_molecules=config.observable.molecules_per_neighborhood, cell=cell
    )
    return localized(
        lambda params, position: neighborhood_energies(bound.atom_energies(params, position), member_fn(position))
    )


def _subsample(config, mean_length, nearest, target: float) -> Callable | None:
    """Molecules that are learned from: as many from each bin of what tells the unstable ones from the others (A.6).

    The deviation of their bonds from the mean; their smallest distance to another where that is learned.
    """
    settings = config.observable
    if not settings.num_bins:
        return None

    def value_fn(position):
        return nearest(position) if settings.distance_weight else jnp.abs(mean_length(position) - target)

    def subsample(position, mask):
        # A frozen replica's frames are masked.
        value = jax.vmap(value_fn)(position)
        everywhere = jnp.broadcast_to(mask[:, None], value.shape)
        key = jax.random.fold_in(jax.random.key(0), lax.bitcast_convert_type(jnp.sum(position), jnp.uint32))
        chosen, _ = neighborhoods.balanced_subsample(
            key, value, everywhere, num_bins=settings.num_bins, per_bin=settings.per_bin
        )
        return chosen

    return subsample


def _measures(rdfs) -> tuple[Measure, ...]:
    measures = []
    for name in rdfs:
        kind, metric = name.removeprefix("rdf_"), name.lower()
        spike = f"g(r) of {kind}, largest where the reference has none"
        measures.append(Measure(f"{metric}_mae", name, f"g(r) of {kind}, MAE", None, "{:.4f}"))
        measures.append(Measure(f"{metric}_spike", name, spike, None, "{:.4f}", error_fn=systems.largest_where_none))
    return (*measures, systems.LENGTH_MEASURE, systems.ANGLE_MEASURE)


def build_motion(config, mass, molecule) -> Callable:
    """Of a window of frames: the VACF of atoms; displacement and velocity correlation of molecules."""
    settings = config.evaluate
    vacf_lags = systems.num_lags(settings.vacf_window_fs, config, "evaluate.vacf_window_fs")
    msd_lags = systems.num_lags(1000 * settings.displacement_ps, config, "evaluate.displacement_ps")
    velocity_lags = systems.num_lags(1000 * settings.green_kubo_ps, config, "evaluate.green_kubo_ps")
    centers = partial(transport.molecule_centers, mass=mass, molecule=molecule)
    molecule_mass = np.bincount(molecule, weights=mass)

    def motion_fn(frame):
        position, velocity = centers(frame.position), centers(frame.velocity)
        return {
            "vacf": transport.velocity_autocorrelation(frame.velocity, mass, num_lags=vacf_lags),
            "msd": transport.mean_squared_displacement(position, molecule_mass, num_lags=msd_lags),
            "velocity_correlation": transport.velocity_correlation(velocity, molecule_mass, num_lags=velocity_lags),
        }

    return motion_fn
