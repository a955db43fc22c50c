"""A molecule in open boundaries: stability by its bond lengths, training on its h(r)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import architectures
from experiments.data import loaders
from experiments.systems import base
from experiments.systems.base import Data, Evaluated, Measure, Profile, System, mean_over_frames
from stablejax import metrics, named, potential, stability, topology
from stablejax.observables import structure, transport
from stablejax.problem import Observables
from stablejax.space import all_pairs
from stablejax.topology import Links, Topology
from stablejax.types import FrameCriterion, ObservableFn

RAMACHANDRAN_BINS = 36
MOLECULE_MEASURES: tuple[Measure, ...] = (
    Measure("h_r_mae", "h_r", "h(r) MAE (1/Å)", "1/Å", "{:.5f}"),
    base.LENGTH_MEASURE,
    base.VARIANCE_MEASURE,
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


class Bins(NamedTuple):
    """Bins of a distribution of distances, from 0, Å."""

    stop: float
    width: float
    smearing: float  # width of the Gaussians

    @property
    def center(self) -> np.ndarray:
        """Bin centers, [bin] Å."""
        return structure.bin_centers(self.stop, self.width)


def build(config: ConfigDict, make_model: Callable = architectures.make) -> System:
    """A molecule in open boundaries, evaluated on its bond lengths and trained on its h(r).

    Args:
      config: of the experiment.
      make_model: `(config, data set, key)` -> architecture.
    """
    data = base.load(config)
    if data.dataset.cell is not None:
        raise ValueError(f"{config.data.path} is of a periodic system, expected a molecule: use experiments.water.")
    facts, settings = base.find_topology(data), config.stability
    loaders.check_bonds_kept(data.dataset, facts.bonds, threshold=settings.evaluate_threshold_A)
    links = topology.find_links(data.reference_position, facts.molecule)
    model = make_model(config, data.dataset, base.key_for(config.seed, "model"))
    observable, evaluate = config.observable, config.evaluate
    bins = Bins(observable.stop_A, observable.width_A, observable.smearing_A)
    criterion, criterion_name = _training_criterion(settings, data, facts, links)
    problem = base.make_problem(
        config,
        data,
        facts,
        potential=potential.bind(model, data.dataset.species, offset=data.offset),
        criterion=criterion,
        observables=_trained_observables(observable, data, facts, bins, criterion),
    )
    num_lags = base.num_lags(evaluate.vacf_window_fs, evaluate.frame_spacing_fs, "evaluate.vacf_window_fs")
    return base.make_system(
        config,
        data,
        model,
        problem,
        _evaluated(data, facts, links, bins, threshold=settings.evaluate_threshold_A, num_lags=num_lags),
        train_criterion_name=criterion_name,
        freeze_above=settings.learn_threshold_A - settings.train_threshold_A,
    )


def _criterion(facts: Topology, links: Links | None, threshold: float):
    bonded = stability.bond_length_deviation(facts.bonds, facts.bond_length, threshold=threshold)
    if links is None:
        return bonded
    return stability.any_of(bonded, stability.fragment_distance(links, threshold=threshold))


def _criterion_name(links: Links | None, threshold: float) -> str:
    parts = "" if links is None else f", or parts without a bond come {threshold:g} Å nearer or farther than they were"
    return f"a bond deviates by {threshold:g} Å from its mean length{parts}"


def _training_criterion(
    settings: ConfigDict, data: Data, facts: Topology, links: Links | None
) -> tuple[FrameCriterion, str]:
    """The criterion of bonds, and that of the distances of the reference where it has a margin; and its name."""
    threshold, margin = settings.train_threshold_A, settings.range_margin_A
    criterion, name = _criterion(facts, links, threshold), _criterion_name(links, threshold)
    if not margin:
        return criterion, name
    ranges = topology.distance_ranges(data.reference_position, facts.species, facts.bonds)
    beyond = stability.distance_range(ranges, margin=margin)
    name += f", or a distance is {margin:g} Å beyond those of the reference"
    return stability.any_of(criterion, beyond), name


def _evaluated(
    data: Data, facts: Topology, links: Links | None, bins: Bins, *, threshold: float, num_lags: int
) -> Evaluated:
    center = bins.center
    functions = {
        "h_r": structure.interatomic_distances(all_pairs(len(facts.species)), center, smearing=bins.smearing),
        "bond_length": structure.bond_lengths(facts.bonds),
        "bond_variance": base.squared_deviations(facts),
    }
    measures = MOLECULE_MEASURES
    if len(triples := topology.angle_triples(facts.bonds)):
        functions["bond_angle"] = structure.bond_angles(triples)
    else:  # A diatomic molecule has none.
        measures = tuple(one for one in measures if one is not base.ANGLE_MEASURE)
    phi, psi = topology.backbone_dihedrals(facts.species, facts.bonds)
    if len(phi):
        functions["ramachandran"] = structure.ramachandran(phi, psi, num_bins=RAMACHANDRAN_BINS)
        measures = (*measures, RAMACHANDRAN_MEASURE)

    def structure_fn(frame):
        return {name: fn(frame) for name, fn in functions.items()}

    reference = mean_over_frames(structure_fn, data.dataset.position)
    is_seen = reference["h_r"] > 1e-3 * reference["h_r"].max()
    shown = (0.5, float(center[is_seen].max()) + 0.5)
    mass, torsions = jnp.asarray(facts.mass), topology.torsions(facts.bonds, len(facts.species))

    def motion_fn(frame):
        return {
            "vacf": transport.velocity_autocorrelation(frame.velocity, mass, num_lags=num_lags),
            "torsion_transitions": transport.torsion_transitions(frame.position, torsions),
        }

    return Evaluated(
        criterion=_criterion(facts, links, threshold),
        criterion_name=_criterion_name(links, threshold),
        structure_fn=structure_fn,
        structure_reference=reference,
        profiles={"h_r": Profile(center, "distribution of interatomic distances", "r (Å)", "h(r) (1/Å)", shown)},
        measures=measures,
        motion_fn=motion_fn,
    )


def _distance_distributions(
    facts: Topology, bins: Bins, by_element: bool, by_separation: bool
) -> dict[str, ObservableFn]:
    """h(r) of every kind of pair."""
    return {
        name: structure.interatomic_distances(some, bins.center, smearing=bins.smearing)
        for name, some in _kinds_of_pairs(facts, by_element, by_separation).items()
    }


def _trained_observables(
    settings: ConfigDict, data: Data, facts: Topology, bins: Bins, criterion: FrameCriterion
) -> Observables:
    """Distributions of distances, variances of bond lengths, the violation of the criterion, and others."""
    others = base.by_name(settings.others, "observable.others")
    functions, weights = {}, {}
    if settings.weight:
        functions = _distance_distributions(facts, bins, settings.by_element, settings.by_separation)
        # The integral over r, or the mean over the bins in units of their fluctuations.
        weight = settings.weight * (1 if settings.in_fluctuations else settings.width_A)
        weights = dict.fromkeys(functions, weight / len(functions))
    if settings.bond_weight:
        lengths, mean = structure.bond_lengths(facts.bonds), facts.bond_length
        variance = mean_over_frames(lambda frame: (lengths(frame) - mean) ** 2, data.reference_position)
        functions["bond_variance"] = structure.bond_variances(facts.bonds, mean, variance)
        weights["bond_variance"] = settings.bond_weight / (1 if settings.in_fluctuations else len(mean))
    if settings.violation_weight:
        functions["violation"] = stability.soft_violation(criterion, width=settings.violation_width_A)
        weights["violation"] = settings.violation_weight
    functions |= {name: named.make_observable(name, facts) for name in others}
    if not functions:
        raise ValueError("config.observable has no weight above 0, so there is nothing to train on: set one.")
    return base.observables(
        functions, weights | others, data.reference_position, in_fluctuations=settings.in_fluctuations
    )


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
