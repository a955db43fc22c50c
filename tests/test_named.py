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
