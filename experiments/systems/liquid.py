"""A molecular liquid in a periodic cell: stability by intermolecular distances, training on its molecules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from ase.symbols import Symbols
from ml_collections import ConfigDict

from experiments import architectures
from experiments.data import loaders
from experiments.systems import base
from experiments.systems.base import Data, Evaluated, Measure, Profile, System, mean_over_frames
from stablejax import metrics, neighborhoods, potential, stability, topology
from stablejax.neighbors import most_pairs
from stablejax.observables import structure, transport
from stablejax.problem import Observables, Problem, Subsample
from stablejax.space import Pairs
from stablejax.topology import Topology
from stablejax.types import FrameCriterion, ObservableFn

FRAMES_FOR_BONDS = 100


class Window(NamedTuple):
    """Window over which RDFs have to stay near the reference."""

    ps: float
    steps_per_frame: int
    frames_per_window: int
    threshold: float  # ∫|Δg|dr, Å


class Lags(NamedTuple):
    """Numbers of lags of dynamical curves, in frames, lag 0 included."""

    vacf: int
    displacement: int
    velocity: int  # of molecules


def build(config: ConfigDict, make_model: Callable = architectures.make) -> System:
    """A liquid of one kind of molecule: trained on close contacts, evaluated on RDFs, with the localized estimator.

    Args:
      config: of the experiment.
      make_model: `(config, data set, key)` -> architecture.
    """
    data = base.load(config)
    if data.dataset.cell is None:
        raise ValueError(f"{config.data.path} has no cell, expected a periodic system: use experiments.aspirin.")
    if config.observable.others:
        raise ValueError("config.observable.others is for molecules, expected none for a liquid: leave it empty.")
    data, facts = _whole_molecules(data, threshold=config.stability.bond_threshold_A)
    model = make_model(config, data.dataset, base.key_for(config.seed, "model"))
    problem = _problem(config, data, facts, potential.bind(model, facts.species, space=facts.space, offset=data.offset))
    threshold, observable = config.stability.train_threshold_A, config.observable
    margin = config.stability.range_margin_A
    evaluation = _evaluated(
        data,
        facts,
        _rdfs(facts, stop=observable.stop_A, width=observable.width_A),
        structure.bin_centers(observable.stop_A, observable.width_A),
        width=observable.width_A,
        window=_window_of(config),
        motion_fn=build_motion(lags_of(config), facts.mass, facts.molecule),
    )
    return base.make_system(
        config,
        data,
        model,
        problem,
        evaluation,
        train_criterion_name=f"atoms of two molecules are nearer than {threshold:g} Å"
        + (f", or a distance is {margin:g} Å beyond those of the reference" if margin else ""),
        freeze_above=threshold - config.stability.learn_threshold_A,
    )


def _problem(config: ConfigDict, data: Data, facts: Topology, bound: potential.Potential) -> Problem:
    """The problem over neighbor lists, with the neighborhoods of molecules."""
    observable, skin = config.observable, config.md.skin_A
    mean_length = structure.molecule_bond_lengths(facts.bonds, facts.molecule, space=facts.space)
    nearest = structure.molecule_distances(_between(facts), facts.molecule, space=facts.space)
    criterion, violation_fn = _violations(config.stability, data, facts, nearest)
    problem = base.make_problem(
        config,
        data,
        facts,
        potential=bound.with_lists(skin=skin, num_pairs=_capacity(data, bound, skin, config.md.spare_pairs)),
        criterion=criterion,
        observables=_local_observables(observable, data, mean_length, nearest, violation_fn),
    )
    # The value that marks unstable molecules: what is learned of them.
    value_fn = _deviation(mean_length, float(facts.bond_length.mean()))
    value_fn = nearest if observable.distance_weight else value_fn
    value_fn = violation_fn if observable.violation_weight else value_fn
    return problem._replace(
        neighborhoods=neighborhoods.nearest_molecules(
            facts.molecule, num_molecules=observable.molecules_per_neighborhood, space=facts.space
        ),
        # At most `per_bin` molecules from each bin of that value (A.6).
        subsample=Subsample(value_fn, observable.num_bins, observable.per_bin) if observable.num_bins else None,
    )


def _violations(
    settings: ConfigDict, data: Data, facts: Topology, nearest: ObservableFn
) -> tuple[FrameCriterion, ObservableFn]:
    """The criterion of training, and how far each molecule violates it, [molecule] Å."""
    threshold, margin = settings.train_threshold_A, settings.range_margin_A
    contact = stability.intermolecular_distance(_between(facts), threshold=threshold, space=facts.space)
    if not margin:
        return contact, lambda frame: threshold - nearest(frame)
    ranges = topology.distance_ranges(data.reference_position, facts.species, facts.bonds, space=facts.space)
    excess = stability.distance_excess(ranges, space=facts.space)
    of_molecule = structure.largest_by_molecule(excess, ranges.pairs, facts.molecule)
    criterion = stability.any_of(contact, stability.distance_range(ranges, margin=margin, space=facts.space))
    return criterion, lambda frame: jnp.maximum(threshold - nearest(frame), of_molecule(frame) - margin)


def _whole_molecules(data: Data, *, threshold: float) -> tuple[Data, Topology]:
    """The data with whole molecules, and the topology of the system."""
    dataset, reference = data.dataset, data.reference_position
    facts = base.find_topology(data, position=reference[:: max(1, len(reference) // FRAMES_FOR_BONDS)])
    _check_one_kind(facts)
    if dataset.is_wrapped:
        position = topology.make_whole(dataset.position, facts.bonds, facts.space)
        data = data._replace(dataset=dataset._replace(position=position, is_wrapped=False))
    loaders.check_bonds_kept(data.dataset, facts.bonds, threshold=threshold)
    return data, facts


def _check_one_kind(facts: Topology) -> None:
    """Refuse ions, single atoms and mixtures, which criteria and observables of one kind would pass over."""
    formulas = [
        Symbols(facts.species[facts.molecule == one]).get_chemical_formula() for one in range(facts.num_molecules)
    ]
    kinds = Counter(formulas).most_common()
    usual = kinds[0][0]
    if len(kinds) == 1 and facts.num_molecules < len(facts.species):
        return
    atom = int(np.argmax([formulas[one] != usual for one in facts.molecule]))
    shown = ", ".join(f"{count} × {kind}" for kind, count in kinds[:6]) + (", …" if len(kinds) > 6 else "")
    raise ValueError(
        f"expected a liquid of one kind of molecule, got {shown}: atom {atom} is of {formulas[facts.molecule[atom]]}, "
        f"and what happens to it no criterion or observable of {usual} would notice; remove such ions and molecules "
        "from the data."
    )


def _capacity(data: Data, bound: potential.Potential, skin: float, margin: float) -> int:
    assert bound.cutoff is not None
    return most_pairs(data.dataset.position, cutoff=bound.cutoff, skin=skin, margin=margin, space=bound.space)


def _between(facts: Topology) -> Pairs:
    """Pairs of atoms of different molecules."""
    pairs = topology.intermolecular_pairs(facts.species, facts.molecule)
    if not pairs:
        raise ValueError(
            "expected a liquid of several molecules, got one molecule in its cell: use experiments.molecule."
        )
    return Pairs(*(np.concatenate(atoms) for atoms in zip(*pairs.values(), strict=True)))


def _local_observables(
    settings: ConfigDict, data: Data, mean_length: ObservableFn, nearest: ObservableFn, violation_fn: ObservableFn
) -> Observables:
    """The observables of training, [molecule], and their means over the reference."""
    functions: dict[str, ObservableFn] = {"bond_length": mean_length}
    weights = {"bond_length": settings.length_weight}
    if settings.distance_weight:
        width = settings.distance_width_A
        center = structure.bin_centers(settings.distance_stop_A, width)
        functions["distance"] = structure.density(nearest, center, smearing=width / 2)
        weights["distance"] = settings.distance_weight * (1 if settings.in_fluctuations else width)
    if settings.violation_weight:
        functions["violation"] = stability.soft_violation(violation_fn, width=settings.violation_width_A)
        weights["violation"] = settings.violation_weight
    return base.observables(
        functions, weights, data.reference_position, in_fluctuations=settings.in_fluctuations, num_axes=1
    )


def _deviation(mean_length: ObservableFn, target: float) -> ObservableFn:
    """Deviation of the mean bond length of each molecule from the target, [molecule]."""
    return lambda frame: jnp.abs(mean_length(frame) - target)


def _evaluated(
    data: Data,
    facts: Topology,
    rdfs: dict[str, ObservableFn],
    center: np.ndarray,
    *,
    width: float,
    window: Window,
    motion_fn: Callable,
) -> Evaluated:
    lengths = structure.bond_lengths(facts.bonds, space=facts.space)
    triples = topology.angle_triples(facts.bonds)
    internal = {"bond_length": lengths, "bond_variance": base.squared_deviations(facts)}
    if len(triples):  # Diatomic molecules have none.
        internal["bond_angle"] = structure.bond_angles(triples, space=facts.space)

    def rdf_fn(frame):
        return {name: fn(frame) for name, fn in rdfs.items()}

    def structure_fn(frame):
        return rdf_fn(frame) | {name: fn(frame) for name, fn in internal.items()}

    criterion = stability.window_mean_error(
        rdf_fn,
        mean_over_frames(rdf_fn, data.reference_position),
        bin_width=width,
        steps_per_frame=window.steps_per_frame,
        frames_per_window=window.frames_per_window,
        threshold=window.threshold,
    )
    return Evaluated(
        criterion=criterion,
        criterion_name=(
            f"an RDF over {window.ps:g} ps deviates by {window.threshold:g} Å from the reference (∫|Δg|dr)"
        ),
        structure_fn=structure_fn,
        structure_reference=mean_over_frames(structure_fn, data.dataset.position),
        profiles={
            name: Profile(center, f"radial distribution function, {_kind(name)}", "r (Å)", "g(r)", (0.5, center[-1]))
            for name in rdfs
        },
        measures=_measures(rdfs, has_angles=len(triples) > 0),
        motion_fn=motion_fn,
    )


def _kind(name: str) -> str:
    return name.removeprefix("rdf_")


def _rdfs(facts: Topology, *, stop: float, width: float) -> dict[str, ObservableFn]:
    return {
        f"rdf_{chemical_symbols[high]}{chemical_symbols[low]}": structure.radial_distribution(
            some, stop=stop, width=width, space=facts.space
        )
        for (low, high), some in topology.intermolecular_pairs(facts.species, facts.molecule).items()
    }


def _window_of(config: ConfigDict) -> Window:
    settings = config.stability
    return Window(
        ps=settings.window_ps,
        steps_per_frame=base.whole(settings.look_fs / config.md.timestep_fs, "stability.look_fs"),
        frames_per_window=base.whole(settings.window_ps * 1000 / settings.look_fs, "stability.window_ps"),
        threshold=settings.evaluate_threshold,
    )


def _measures(rdfs, *, has_angles: bool) -> tuple[Measure, ...]:
    measures = []
    for name in rdfs:
        metric = name.lower()
        peak = f"g(r) of {_kind(name)}, spurious peak where the reference has none"
        measures.append(Measure(f"{metric}_mae", name, f"g(r) of {_kind(name)}, MAE", None, "{:.4f}"))
        measures.append(Measure(f"{metric}_spike", name, peak, None, "{:.4f}", error_fn=metrics.spurious_peak))
    return (*measures, base.LENGTH_MEASURE, base.VARIANCE_MEASURE, *([base.ANGLE_MEASURE] if has_angles else []))


def lags_of(config: ConfigDict) -> Lags:
    """Lags of the evaluation's dynamical curves.

    Raises:
      ValueError: one is not a multiple of the spacing of frames.
    """
    settings = config.evaluate
    spacing_fs = settings.frame_spacing_fs
    return Lags(
        vacf=base.num_lags(settings.vacf_window_fs, spacing_fs, "evaluate.vacf_window_fs"),
        displacement=base.num_lags(1000 * settings.displacement_ps, spacing_fs, "evaluate.displacement_ps"),
        velocity=base.num_lags(1000 * settings.green_kubo_ps, spacing_fs, "evaluate.green_kubo_ps"),
    )


def build_motion(lags: Lags, mass: np.ndarray, molecule: np.ndarray) -> Callable:
    """Curves of a window of frames: the VACF of atoms; displacement and velocity correlation of molecules.

    Args:
      lags: of each curve.
      mass: amu.
      molecule: number of the molecule of each atom.
    """
    centers = partial(transport.molecule_centers, mass=mass, molecule=molecule)
    molecule_mass = np.bincount(molecule, weights=mass)

    def motion_fn(frame):
        position, velocity = centers(frame.position), centers(frame.velocity)
        return {
            "vacf": transport.velocity_autocorrelation(frame.velocity, jnp.asarray(mass), num_lags=lags.vacf),
            "msd": transport.mean_squared_displacement(position, molecule_mass, num_lags=lags.displacement),
            "velocity_correlation": transport.velocity_correlation(velocity, molecule_mass, num_lags=lags.velocity),
        }

    return motion_fn
