"""A molecule in open boundaries: bond lengths say whether it is stable, and its h(r) is what it is trained on."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from ase.data import atomic_masses, covalent_radii
from ml_collections import ConfigDict

from experiments import architectures, systems
from experiments.data import loaders
from experiments.systems import Measure, Profile, System, mean_over_frames
from stablejax import stability
from stablejax.geometry import all_pairs
from stablejax.observables import structure, transport

RAMACHANDRAN_BINS = 36
MOLECULE_MEASURES: tuple[Measure, ...] = (
    Measure("h_r_mae", "h_r", "h(r) MAE (1/Å)", "1/Å", "{:.5f}"),
    systems.LENGTH_MEASURE,
    systems.ANGLE_MEASURE,
)
RAMACHANDRAN_MEASURE = Measure(
    "ramachandran_distance",
    "ramachandran",
    "Ramachandran map, fraction of residues elsewhere than in the reference",
    None,
    "{:.2f}",
    RAMACHANDRAN_BINS**2 / 2,
)


def build(config: ConfigDict, make_model: Callable = architectures.make) -> System:
    """A molecule in open boundaries, judged by its bond lengths and trained on its h(r).

    Args:
      config: of the experiment.
      make_model: `(config, data set, key)` -> architecture.
    """
    dataset, split = systems.load(config)
    if dataset.cell is not None:
        raise ValueError(f"{config.data.path} is of a periodic system, expected a molecule: use experiments.water.")
    bonds, length = stability.find_bonds(dataset.position, covalent_radii[dataset.species])
    threshold = config.stability.evaluate_threshold_A
    loaders.check_bonds_kept(dataset, bonds, threshold=threshold)

    center = structure.bin_centers(config.observable.stop_A, config.observable.width_A)
    pairs, smearing = all_pairs(len(dataset.species)), config.observable.smearing_A
    distances = structure.interatomic_distances(pairs, center, smearing=smearing)
    angles = structure.bond_angles(structure.angle_triples(bonds))
    lengths = structure.bond_lengths(bonds)

    structure_fns = {"h_r": distances, "bond_length": lengths, "bond_angle": angles}
    measures = MOLECULE_MEASURES
    phi, psi = structure.backbone_dihedrals(dataset.species, bonds)
    if len(phi):
        structure_fns["ramachandran"] = structure.ramachandran(phi, psi, num_bins=RAMACHANDRAN_BINS)
        measures = (*measures, RAMACHANDRAN_MEASURE)

    def structure_fn(position):
        return {name: fn(position) for name, fn in structure_fns.items()}

    structure_reference = mean_over_frames(structure_fn, dataset.position)
    is_seen = structure_reference["h_r"] > 1e-3 * structure_reference["h_r"].max()
    shown = (0.5, float(center[is_seen].max()) + 0.5)
    observable_fn, observable_weight = _trained_observables(config, dataset, bonds, length)

    model = make_model(config, dataset, systems.key_for(config, "model"))
    bound, md_form = systems.whole_model(config, model, dataset)
    mass = jnp.asarray(atomic_masses[dataset.species], jnp.float32)
    integrator, num_removed = systems.integrator(config, md_form, mass, is_periodic=False)
    num_lags = systems.num_lags(config.evaluate.vacf_window_fs, config, "evaluate.vacf_window_fs")

    def motion_fn(frame):
        return {"vacf": transport.velocity_autocorrelation(frame.velocity, mass, num_lags=num_lags)}

    return System(
        dataset=dataset,
        split=split,
        potential=bound,
        md_form=md_form,
        mass=mass,
        qm_loss=systems.qm_loss(config, bound),
        map_replicas=systems.map_replicas(config, md_form, bound, len(mass)),
        integrator=integrator,
        num_removed=num_removed,
        train_criterion=stability.bond_length_deviation(bonds, length, threshold=config.stability.train_threshold_A),
        evaluate_criterion=stability.bond_length_deviation(bonds, length, threshold=threshold),
        freeze_above=config.stability.learn_threshold_A - config.stability.train_threshold_A,
        criterion_name=f"a bond is {threshold:g} Å off its mean length",
        train_criterion_name=f"a bond is {config.stability.train_threshold_A:g} Å off its mean length",
        energies=bound.energy,
        subsample=None,
        observable_fn=observable_fn,
        reference=mean_over_frames(observable_fn, dataset.position),
        observable_weight=observable_weight,
        structure_fn=structure_fn,
        structure_reference=structure_reference,
        profiles={"h_r": Profile(center, "distribution of interatomic distances", "r (Å)", "h(r) (1/Å)", shown)},
        measures=measures,
        motion_fn=motion_fn,
        with_more_pairs=None,
    )


def _trained_observables(config: ConfigDict, dataset: loaders.Dataset, bonds, length) -> tuple[Callable, dict]:
    """What is trained on, a dict of a position, and the weight of each in the loss."""
    settings = config.observable
    center = structure.bin_centers(settings.stop_A, settings.width_A)
    pairs = {"all": all_pairs(len(dataset.species))}
    if settings.by_element:
        pairs = {f"{low}-{high}": some for (low, high), some in structure.pairs_by_element(dataset.species).items()}
    if settings.by_separation:
        pairs = {
            f"{name}, {number}": some
            for name, together in pairs.items()
            for number, some in structure.pairs_by_separation(together, bonds, len(dataset.species)).items()
        }
    functions = {
        name: structure.interatomic_distances(some, center, smearing=settings.smearing_A)
        for name, some in pairs.items()
    }
    weights = dict.fromkeys(functions, settings.weight * settings.width_A / len(functions))
    if settings.bond_weight:
        lengths = structure.bond_lengths(bonds)
        variance = mean_over_frames(lambda x: (lengths(x) - length) ** 2, dataset.position)
        functions["bond_variance"] = structure.bond_variances(bonds, length, variance)
        weights["bond_variance"] = settings.bond_weight / len(length)
    return lambda position: {name: fn(position) for name, fn in functions.items()}, weights
