"""A molecule in open boundaries: bond lengths say whether it is stable, and its h(r) is what it is trained on."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import architectures
from experiments.data import loaders
from experiments.systems import base
from experiments.systems.base import Data, Evaluated, Measure, Profile, System, mean_over_frames
from stablejax import metrics, potential, stability, topology, units
from stablejax.observables import structure, transport
from stablejax.problem import Observables, Problem
from stablejax.space import all_pairs
from stablejax.topology import Topology

RAMACHANDRAN_BINS = 36
MOLECULE_MEASURES: tuple[Measure, ...] = (
    Measure("h_r_mae", "h_r", "h(r) MAE (1/Å)", "1/Å", "{:.5f}"),
    base.LENGTH_MEASURE,
    base.ANGLE_MEASURE,
)
RAMACHANDRAN_MEASURE = Measure(
    "ramachandran_distance",
    "ramachandran",
    "Ramachandran map, total-variation distance from the reference",
    None,
    "{:.2f}",
    error_fn=metrics.total_variation_distance,
)


def build(config: ConfigDict, make_model: Callable = architectures.make) -> System:
    """A molecule in open boundaries, judged by its bond lengths and trained on its h(r).

    Args:
      config: of the experiment.
      make_model: `(config, data set, key)` -> architecture.
    """
    data = base.load(config)
    if data.dataset.cell is not None:
        raise ValueError(f"{config.data.path} is of a periodic system, expected a molecule: use experiments.water.")
    facts, settings = base.find_topology(data), config.stability
    loaders.check_bonds_kept(data.dataset, facts.bonds, threshold=settings.evaluate_threshold_A)
    model = make_model(config, data.dataset, base.key_for(config, "model"))
    bound = potential.bind(model, data.dataset.species, offset=data.offset)
    problem = Problem(
        potential=bound,
        mass=jnp.asarray(facts.mass),
        kT=units.thermal_energy(config.md.temperature_K),
        criterion=base.with_other_criteria(config, facts, _criterion(facts, settings.train_threshold_A)),
        observables=_trained_observables(config, data, facts),
        frames=data.labeled(data.split.train),
        energy_weight=config.pretrain.energy_weight,
        force_weight=config.pretrain.force_weight,
    )
    return System(
        data=data,
        problem=problem,
        thermostat=base.thermostat(config),
        execution=base.execution(config, bound),
        evaluation=_evaluated(config, data, facts),
        train_criterion_name=_criterion_name(settings.train_threshold_A),
        freeze_above=settings.learn_threshold_A - settings.train_threshold_A,
    )


def _criterion(facts: Topology, threshold: float):
    return stability.bond_length_deviation(facts.bonds, facts.bond_length, threshold=threshold)


def _criterion_name(threshold: float) -> str:
    return f"a bond deviates by {threshold:g} Å from its mean length"


def _evaluated(config: ConfigDict, data: Data, facts: Topology) -> Evaluated:
    center = structure.bin_centers(config.observable.stop_A, config.observable.width_A)
    functions = {
        "h_r": structure.interatomic_distances(
            all_pairs(len(facts.species)), center, smearing=config.observable.smearing_A
        ),
        "bond_length": structure.bond_lengths(facts.bonds),
        "bond_angle": structure.bond_angles(topology.angle_triples(facts.bonds)),
    }
    measures = MOLECULE_MEASURES
    phi, psi = topology.backbone_dihedrals(facts.species, facts.bonds)
    if len(phi):
        functions["ramachandran"] = structure.ramachandran(phi, psi, num_bins=RAMACHANDRAN_BINS)
        measures = (*measures, RAMACHANDRAN_MEASURE)

    def structure_fn(frame):
        return {name: fn(frame) for name, fn in functions.items()}

    reference = mean_over_frames(structure_fn, data.dataset.position)
    is_seen = reference["h_r"] > 1e-3 * reference["h_r"].max()
    shown = (0.5, float(center[is_seen].max()) + 0.5)
    num_lags = base.num_lags(config.evaluate.vacf_window_fs, config, "evaluate.vacf_window_fs")
    mass = jnp.asarray(facts.mass)

    def motion_fn(frame):
        return {"vacf": transport.velocity_autocorrelation(frame.velocity, mass, num_lags=num_lags)}

    return Evaluated(
        criterion=_criterion(facts, config.stability.evaluate_threshold_A),
        criterion_name=_criterion_name(config.stability.evaluate_threshold_A),
        structure_fn=structure_fn,
        structure_reference=reference,
        profiles={"h_r": Profile(center, "distribution of interatomic distances", "r (Å)", "h(r) (1/Å)", shown)},
        measures=measures,
        motion_fn=motion_fn,
    )


def _trained_observables(config: ConfigDict, data: Data, facts: Topology) -> Observables:
    """h(r) of every kind of pair and variances of bond lengths, with their means over the reference."""
    settings = config.observable
    center = structure.bin_centers(settings.stop_A, settings.width_A)
    functions = {
        name: structure.interatomic_distances(some, center, smearing=settings.smearing_A)
        for name, some in _kinds_of_pairs(facts, settings.by_element, settings.by_separation).items()
    }
    weights = dict.fromkeys(functions, settings.weight * settings.width_A / len(functions))
    if settings.bond_weight:
        lengths, mean = structure.bond_lengths(facts.bonds), facts.bond_length
        variance = mean_over_frames(lambda frame: (lengths(frame) - mean) ** 2, data.reference_position)
        functions["bond_variance"] = structure.bond_variances(facts.bonds, mean, variance)
        weights["bond_variance"] = settings.bond_weight / len(mean)
    others, their_weights = base.other_observables(config, facts)
    functions, weights = functions | others, weights | their_weights

    def fn(frame):
        return {name: one(frame) for name, one in functions.items()}

    return Observables(fn, mean_over_frames(fn, data.reference_position), weights)


def _kinds_of_pairs(facts: Topology, by_element: bool, by_separation: bool):
    num_atoms = len(facts.species)
    pairs = {"all": all_pairs(num_atoms)}
    if by_element:
        pairs = {f"{low}-{high}": some for (low, high), some in topology.pairs_by_element(facts.species).items()}
    if by_separation:
        pairs = {
            f"{name}, {number}": some
            for name, together in pairs.items()
            for number, some in topology.pairs_by_separation(together, facts.bonds, num_atoms).items()
        }
    return pairs
