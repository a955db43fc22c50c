"""What can be named in a config: every entry of the tables is made and evaluated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import named, stability, topology
from stablejax.space import OPEN, periodic
from stablejax.types import Frame

WATER = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
POSITION = np.concatenate([WATER + 1.0, WATER + [5.0, 1.0, 1.0]])


def facts(space=OPEN):
    mass, radius = np.tile([15.999, 1.008, 1.008], 2), np.tile([0.66, 0.31, 0.31], 2)
    species = np.tile([8, 1, 1], 2)
    return topology.find_topology(POSITION[None], species, mass=mass, covalent_radius=radius, space=space)


def frame(stretch=0.0):
    position = jnp.asarray(POSITION, jnp.float32).at[1].add(stretch * jnp.array([1.0, 0.5, 0.0]))
    zero = jnp.zeros((6, 3))
    return Frame(position, velocity=zero.at[0, 0].set(stretch), force=zero.at[2, 1].set(stretch), energy=10 * stretch)


@pytest.mark.parametrize("name", named.OBSERVABLES)
def test_observables_by_name_feel_a_stretched_bond_and_the_space(name):
    for space in (OPEN, periodic(14.0 * np.eye(3))):
        observable = jax.jit(named.make_observable(name, facts(space)))
        assert np.abs(observable(frame(0.3)) - observable(frame())).max() > 1e-3


def test_observables_and_criteria_by_name_are_those_of_the_library():
    """By hand, of molecules that the walls of the cell cut."""
    space = periodic(14.0 * np.eye(3))
    wrapped = Frame(jnp.asarray(space.wrap(POSITION - [1.5, 1.3, 0.0]), jnp.float32))
    assert np.abs(wrapped.position - POSITION).max() > 10
    arms = WATER[1:] - WATER[0]
    lengths = np.linalg.norm(arms, axis=1)
    every = np.linalg.norm(POSITION[:, None] - POSITION, axis=-1)[np.triu_indices(6, 1)]
    center = np.arange(0.05, 6.0, 0.1)[:, None]
    expected = {
        "bond_lengths": np.tile(lengths, 2),
        "bond_angles": np.full(2, np.arccos(arms[0] @ arms[1] / lengths.prod())),
        "molecule_bond_lengths": np.full(2, lengths.mean()),
        "interatomic_distances": np.exp(-(((center - every) / 0.05) ** 2) / 2).mean(axis=1) / np.sqrt(2 * np.pi) / 0.05,
    }
    assert expected.keys() == named.OBSERVABLES.keys()
    for name, value in expected.items():
        found = jax.jit(named.make_observable(name, facts(space)))(wrapped)
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-4, err_msg=name)
    nearest = np.linalg.norm(POSITION[:3, None] - POSITION[3:], axis=-1).min()
    for name, value in (("bond_length_deviation", -0.5), ("intermolecular_distance", 0.5 - nearest)):
        criterion = named.make_criterion(name, facts(space), threshold=0.5)
        assert float(jax.jit(criterion)(wrapped)) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("name", named.CRITERIA)
def test_criteria_by_name_are_positive_beyond_their_threshold(name):
    criterion = named.make_criterion(name, facts(), threshold=0.5)
    value = lambda stretch: float(stability.any_of(criterion)(frame(jnp.float32(stretch))))  # noqa: E731
    if name == "intermolecular_distance":
        far = float(named.make_criterion(name, facts(), threshold=0.5)(frame()))
        assert far < 0 < float(named.make_criterion(name, facts(), threshold=0.5 - far + 0.1)(frame()))
        return
    assert value(0.0) < 0 < value(1.0)


def test_names_that_are_not_known_get_the_nearest():
    with pytest.raises(ValueError, match="got 'bond_angle': did you mean bond_angles?"):
        named.make_observable("bond_angle", facts())
    with pytest.raises(ValueError, match="expected one of bond_length_deviation, .*, got 'entropy': choose"):
        named.make_criterion("entropy", facts(), threshold=1.0)
