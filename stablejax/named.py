"""Observables, criteria and models by name, for configs, from a system's topology or data. One line adds another."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import linen as nn

from stablejax import stability, topology
from stablejax.models import gemnet, nequip, schnet
from stablejax.models.protocol import ModelData
from stablejax.observables import structure
from stablejax.space import Pairs, all_pairs
from stablejax.topology import Topology
from stablejax.types import Criterion, ObservableFn

OBSERVABLES: dict[str, Callable[[Topology], ObservableFn]] = {
    "bond_lengths": lambda facts: structure.bond_lengths(facts.bonds, space=facts.space),
    "bond_angles": lambda facts: structure.bond_angles(topology.angle_triples(facts.bonds), space=facts.space),
    "molecule_bond_lengths": lambda facts: structure.molecule_bond_lengths(
        facts.bonds, facts.molecule, space=facts.space
    ),
    "interatomic_distances": lambda facts: structure.interatomic_distances(
        all_pairs(len(facts.species)),
        structure.bin_centers(min(6.0, float(facts.space.reach)), 0.1),
        smearing=0.05,
        space=facts.space,
    ),
}
"""name -> topology -> observable of a frame."""

CRITERIA: dict[str, Callable[[Topology, float], Criterion]] = {
    "bond_length_deviation": lambda facts, threshold: stability.bond_length_deviation(
        facts.bonds, facts.bond_length, threshold=threshold, space=facts.space
    ),
    "intermolecular_distance": lambda facts, threshold: stability.intermolecular_distance(
        _between(facts), threshold=threshold, space=facts.space
    ),
    # Of all 3N degrees of freedom: under a Nosé–Hoover chain, which constrains some, it is slightly too low.
    "kinetic_energy_per_dof": lambda facts, threshold: stability.kinetic_energy_per_dof(
        facts.mass, threshold=threshold, constrained_dof=0
    ),
    "largest_force": lambda _, threshold: stability.largest_force(threshold=threshold),
    "potential_energy": lambda _, threshold: stability.potential_energy(threshold=threshold),
}
"""name -> (topology, threshold in the criterion's unit) -> criterion."""

MODELS: dict[str, Callable[..., nn.Module]] = {
    "schnet": schnet.from_sizes,
    "nequip": nequip.from_sizes,
    "gemnet": gemnet.from_sizes,
}
"""name -> (data, sizes by keyword) -> model; see `models.protocol.Model`."""


def make_observable(name: str, facts: Topology) -> ObservableFn:
    """The observable of that name.

    Args:
      name: one of `OBSERVABLES`.
      facts: of the system.

    Raises:
      ValueError: there is none of that name.
    """
    return _of_name("make_observable", name, OBSERVABLES)(facts)


def make_criterion(name: str, facts: Topology, *, threshold: float) -> Criterion:
    """The criterion of that name, unstable above the threshold.

    Args:
      name: one of `CRITERIA`.
      facts: of the system.
      threshold: in the criterion's unit; see `stability`.

    Raises:
      ValueError: there is none of that name.
    """
    return _of_name("make_criterion", name, CRITERIA)(facts, threshold)


def make_model(name: str, data: ModelData, sizes: Mapping[str, int | float]) -> nn.Module:
    """The model of that name and sizes, for data.

    Args:
      name: one of `MODELS`.
      data: that it is made for.
      sizes: by the keywords of its entry.

    Raises:
      ValueError: there is none of that name, or it has other sizes.
    """
    make = _of_name("make_model", name, MODELS)
    keywords = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if set(sizes) != set(keywords):
        raise ValueError(
            f"`make_model`: expected {_listed(keywords)} for {name}, got {_listed(sizes)}: give each of these sizes."
        )
    return make(data, **sizes)


def _of_name(caller: str, name: str, known: dict[str, Any]) -> Any:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {near[0]}?" if near else "choose one of these."
    raise ValueError(f"`{caller}`: expected one of {_listed(known)}, got {name!r}: {advice}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _between(facts: Topology) -> Pairs:
    pairs = all_pairs(len(facts.species))
    is_between = facts.molecule[pairs.first] != facts.molecule[pairs.second]
    if not is_between.any():
        raise ValueError(
            "`make_criterion`: expected more than one molecule for `intermolecular_distance`, got one: use "
            "`bond_length_deviation`."
        )
    return Pairs(pairs.first[is_between], pairs.second[is_between])
