"""Stability criteria against values known by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import stability, topology
from stablejax.space import OPEN, Pairs, all_pairs, periodic
from stablejax.types import Frame

TRIANGLE = jnp.array([[0.0, 0, 0], [3.0, 0, 0], [0, 4.0, 0]])  # sides 3, 4, 5
CELL = periodic(12.0 * np.eye(3))


def test_bond_criterion_is_positive_beyond_the_threshold_on_either_side():
    criterion = stability.bond_length_deviation(
        Pairs(np.array([0, 0]), np.array([1, 2])), np.array([3.0, 4.0]), threshold=0.5
    )
    assert float(criterion(Frame(TRIANGLE))) == pytest.approx(-0.5)
    assert float(criterion(Frame(TRIANGLE.at[1, 0].set(3.6)))) == pytest.approx(0.1, abs=1e-5)
    assert float(criterion(Frame(TRIANGLE.at[2, 1].set(3.3)))) == pytest.approx(0.2, abs=1e-5)
    both = stability.any_of(criterion, lambda frame: frame.position[0, 0] + 0.05)
    assert float(both(Frame(TRIANGLE))) == pytest.approx(0.05)


def test_nearest_atoms_of_different_molecules_are_found_through_the_walls():
    molecule = np.array([0, 0, 1])
    pairs = topology.intermolecular_pairs(np.array([8, 1, 1]), molecule)
    assert set(pairs) == {(1, 1), (1, 8)}
    position = jnp.array([[0.5, 0, 0], [1.4, 0, 0], [11.0, 0, 0]])
    for space, nearest in ((CELL, 1.5), (OPEN, 10.5)):
        criterion = stability.intermolecular_distance(pairs[1, 8], threshold=1.2, space=space)
        assert float(criterion(Frame(position))) == pytest.approx(1.2 - nearest, abs=1e-5)


def window_criterion(**settings):
    return stability.window_mean_error(
        lambda frame: {"a": frame.position[0, :2], "b": frame.position[0, 2:]},
        {"a": np.zeros(2, np.float32), "b": np.ones(1, np.float32)},
        bin_width=0.5,
        threshold=3.0,
        **settings,
    )


def test_window_mean_error_is_that_of_the_worst_curve_over_the_last_whole_window():
    criterion = window_criterion(steps_per_frame=2, frames_per_window=3)
    state, values = criterion.init(Frame(jnp.zeros((1, 3)))), []
    frames = np.array([[100.0, 0, 0]] + [[step, 0.0, 1.0 - step] for step in range(2, 19)], np.float32)
    for frame in frames:
        state, value = jax.jit(criterion.step)(state, Frame(frame[None]))
        values.append(float(value))
    # Evaluated at steps 2, 4, 6, then 8, 10, 12, then 14, 16, 18: means 4, 10 and 16.
    expected = [-3.0] * 5 + [0.5 * 4 - 3] * 6 + [0.5 * 10 - 3] * 6 + [0.5 * 16 - 3]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 3"):
        window_criterion(steps_per_frame=0, frames_per_window=3)


def test_criteria_with_and_without_a_state_go_together():
    both = stability.any_of(
        window_criterion(steps_per_frame=1, frames_per_window=2), lambda frame: frame.position[0, 0] - 50
    )
    state = both.init(Frame(jnp.zeros((1, 3))))
    state, first = both.step(state, Frame(jnp.array([[20.0, 0, 1]])))
    state, second = both.step(state, Frame(jnp.array([[20.0, 0, 1]])))
    state, third = both.step(state, Frame(jnp.array([[60.0, 0, 1]])))
    assert [float(first), float(second), float(third)] == pytest.approx([-3, 7, 10])


def test_wrapped_frames_of_whole_molecules_are_stable():
    """Bonds are those of the nearest images: a molecule on the wall of the cell is no broken one."""
    position, bonds = jnp.array([[11.7, 0.2, 0], [0.3, 0.2, 0]]), Pairs(np.array([0]), np.array([1]))
    for space, is_stable in ((CELL, True), (OPEN, False)):
        criterion = stability.bond_length_deviation(bonds, np.array([0.6]), threshold=0.25, space=space)
        assert (float(criterion(Frame(position))) <= 0) == is_stable


def test_thresholds_beyond_the_reach_of_the_cell_are_refused():
    """A bond that is stretched beyond it would fold back and look short."""
    pair = Pairs(np.array([0]), np.array([1]))
    small = periodic(4.0 * np.eye(3))
    with pytest.raises(ValueError, match="`bond_length_deviation`: expected distances of at most 2.000 Å, .*, got 2.1"):
        stability.bond_length_deviation(pair, np.array([1.6]), threshold=0.5, space=small)
    with pytest.raises(ValueError, match="`intermolecular_distance`: expected distances of at most 2.000 Å"):
        stability.intermolecular_distance(pair, threshold=2.5, space=small)
    stability.bond_length_deviation(pair, np.array([1.5]), threshold=0.5, space=small)


def test_criteria_of_velocity_force_and_energy():
    frame = Frame(
        position=jnp.zeros((2, 3)),
        velocity=jnp.array([[1.0, 0, 0], [0, 2.0, 0]]),
        force=jnp.array([[3.0, 4.0, 0], [0, 0, 1.0]]),
        energy=jnp.float32(-7.0),
    )
    hot = stability.kinetic_energy_per_dof(np.array([2.0, 1.0]), threshold=0.5, constrained_dof=3)
    assert float(hot(frame)) == pytest.approx((2.0 * 1 + 1.0 * 4) / 3 - 0.5)
    assert float(stability.largest_force(threshold=4.5)(frame)) == pytest.approx(0.5)
    assert float(stability.potential_energy(threshold=-8.0)(frame)) == pytest.approx(1.0)
    for criterion, field in ((hot, "velocity"), (stability.largest_force(threshold=1.0), "force")):
        with pytest.raises(ValueError, match=f"expected frames with `{field}`, got none"):
            criterion(Frame(frame.position))


def test_distances_beyond_those_of_the_reference_violate_on_either_side():
    ranges = topology.Ranges(all_pairs(3), np.array([2.5, 3.5, 4.0]), np.array([3.2, np.inf, 5.5]))
    criterion = stability.distance_range(ranges, margin=0.25)
    for second, third, expected in ((3.0, 4.0, -0.2), (3.6, 4.0, 0.4), (2.0, 4.0, 0.5), (3.0, 3.2, 0.3)):
        frame = Frame(jnp.array([[0.0, 0, 0], [second, 0, 0], [0, third, 0]]))
        assert float(criterion(frame)) == pytest.approx(expected - 0.25, abs=1e-5), (second, third)
    far = stability.distance_excess(ranges)(Frame(jnp.array([[0.0, 0, 0], [3.0, 0, 0], [0, 90.0, 0]])))
    assert float(far[1]) < 0, "a contact has no upper bound"


def test_excess_in_a_cell_is_that_of_the_nearest_image():
    ranges = topology.Ranges(all_pairs(2), np.array([2.0]), np.array([3.0]))
    position = jnp.array([[0.5, 0, 0], [11.0, 0, 0]])
    for space, expected in ((CELL, 0.5), (OPEN, 7.5)):
        assert float(stability.distance_excess(ranges, space=space)(Frame(position))[0]) == pytest.approx(expected)


def test_ranges_beyond_the_reach_of_the_cell_are_refused():
    ranges = topology.Ranges(all_pairs(2), np.array([2.0]), np.array([5.9]))
    with pytest.raises(ValueError, match="`distance_range`"):
        stability.distance_range(ranges, margin=0.25, space=CELL)
    stability.distance_range(ranges._replace(longest=np.array([np.inf])), margin=0.25, space=CELL)


def test_soft_violation_is_the_fraction_of_violating_frames_for_a_narrow_width():
    values = jnp.linspace(-1, 1, 201)
    soft = stability.soft_violation(lambda frame: frame.position, width=0.05)
    found = np.asarray(soft(Frame(values)))
    assert found[100] == pytest.approx(0.5)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.asarray(values) / 0.05)), rtol=1e-4)
    assert found.mean() == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match="expected a positive width, got 0.0"):
        stability.soft_violation(lambda frame: frame.position, width=0.0)
