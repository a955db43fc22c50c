"""Distances, images of any cell, and how far they reach."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax.neighbors import neighbor_lists
from stablejax.space import OPEN, all_pairs, pad_pairs, periodic, safe_norm


def test_safe_norm_has_no_nan_gradient_at_zero():
    assert float(safe_norm(jnp.array([3.0, 4.0, 0]))) == 5.0
    np.testing.assert_array_equal(jax.grad(safe_norm)(jnp.zeros(3)), 0)
    np.testing.assert_allclose(jax.grad(safe_norm)(jnp.array([3.0, 4.0, 0])), [0.6, 0.8, 0])


def test_all_pairs_are_each_once():
    pairs = all_pairs(4)
    assert set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == {
        (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)
    }  # fmt: skip
    with pytest.raises(ValueError, match="at least 2, got 1"):
        all_pairs(1)


def test_pairs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="21 pairs do not fit into `num_pairs` = 20"):
        pad_pairs(all_pairs(7), 20, num_atoms=7)


def rhombohedral(length, degrees):
    """Three vectors of one length with one angle between any two."""
    cosine = np.cos(np.deg2rad(degrees))
    return length * np.linalg.cholesky(np.full((3, 3), cosine) + (1 - cosine) * np.eye(3))


CELLS = {
    "orthorhombic": np.diag([9.0, 10.0, 11.0]),
    "rhombohedral-60": rhombohedral(10.0, 60.0),
    "rhombohedral-100": rhombohedral(10.0, 100.0),
    "rhombohedral-35": rhombohedral(10.0, 35.0),
    "hexagonal": np.array([[9.0, 0, 0], [-4.5, 4.5 * 3**0.5, 0], [0, 0, 12.0]]),
    "skewed": np.array([[9.0, 0, 0], [7.5, 9.0, 0], [-6.0, 13.0, 11.0]]),
    "far-skewed": np.array([[9.0, 0, 0], [40.0, 10.0, 0], [-33.0, 27.0, 11.0]]),
}
every_cell = pytest.mark.parametrize("name", CELLS)


def vectors_near(space, radius, num=4000):
    """Vectors of all directions and lengths up to a radius, each moved by a lattice vector."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(num, 3))
    length = radius * rng.uniform(size=(num, 1)) ** (1 / 3)
    vector = direction / np.linalg.norm(direction, axis=1, keepdims=True) * length
    return vector, vector + rng.integers(-2, 3, (num, 3)) @ space.cell


@every_cell
def test_nearest_image_is_that_of_ase_up_to_the_reach(name, x64):
    from ase.geometry import find_mic

    space = periodic(CELLS[name])
    vector, moved = vectors_near(space, 0.999 * space.reach)
    found = np.asarray(space.nearest_image(jnp.asarray(moved)))
    np.testing.assert_allclose(found, vector, atol=1e-9)
    np.testing.assert_allclose(found, find_mic(moved, CELLS[name])[0], atol=1e-9)


@every_cell
def test_no_vector_within_the_reach_has_two_images_and_one_beyond_it_is_found_wrong(name, x64):
    """The reach is not claimed too long, and not far too short."""
    space = periodic(CELLS[name])
    images = np.array([np.array(n) @ space.reduced for n in np.ndindex(3, 3, 3)]) - np.ones(3) @ space.reduced
    shortest = np.sort(np.linalg.norm(images, axis=1))[1]
    assert space.reach <= shortest / 2 + 1e-9
    assert space.reach > 0.8 * shortest / 2
    normal = np.linalg.inv(space.reduced).T[np.argmax(np.linalg.norm(np.linalg.inv(space.reduced), axis=0))]
    beyond = 1.001 * space.reach * normal / np.linalg.norm(normal)
    assert np.linalg.norm(space.nearest_image(jnp.asarray(beyond[None]))[0] - beyond) > 0.1


@every_cell
def test_a_reduced_lattice_is_the_same_lattice(name):
    space = periodic(CELLS[name])
    change = space.reduced @ np.linalg.inv(space.cell)
    np.testing.assert_allclose(change, np.round(change), atol=1e-9)
    assert abs(np.linalg.det(change)) == pytest.approx(1)
    assert np.linalg.norm(space.reduced, axis=1).max() <= np.linalg.norm(space.cell, axis=1).max() + 1e-9


@every_cell
def test_neighbor_lists_have_every_pair_within_cutoff_and_skin(name):
    """Counted over the images of all lattice vectors about."""
    space = periodic(CELLS[name])
    skin = 0.3
    cutoff = 0.999 * space.reach - skin
    position = np.random.default_rng(1).uniform(size=(40, 3)) @ space.cell
    shifts = np.array([np.array(n) - 3 for n in np.ndindex(7, 7, 7)]) @ space.reduced
    pairs = all_pairs(40)
    vector = position[pairs.second] - position[pairs.first]
    vector -= np.round(vector @ np.linalg.inv(space.reduced)) @ space.reduced
    distance = np.linalg.norm(vector[:, None] + shifts, axis=-1).min(axis=1)
    lists = neighbor_lists(40, cutoff=cutoff, skin=skin, num_pairs=len(distance), space=space)
    found = lists.init(jnp.asarray(position, jnp.float32)).pairs
    is_pair = np.asarray(found.first) < 40
    expected = {(i, j) for i, j, r in zip(*pairs, distance, strict=True) if r < cutoff + skin - 1e-4}
    assert len(expected) > 30
    assert expected <= set(zip(found.first[is_pair].tolist(), found.second[is_pair].tolist(), strict=True))
    with pytest.raises(ValueError, match="`neighbor_lists`: expected distances of at most"):
        neighbor_lists(40, cutoff=cutoff + 0.1 * space.reach, skin=skin, num_pairs=10, space=space)


def test_nearest_images_take_no_products_of_matrices():
    """Accelerators round the factors of these: an image would be some 0.01 Å off."""
    vector, space = jnp.ones((5, 3)), periodic(CELLS["skewed"])
    assert "dot_general" not in str(jax.make_jaxpr(space.nearest_image)(vector))


@every_cell
def test_wrapped_positions_are_in_the_cell_and_differ_by_lattice_vectors(name):
    space = periodic(CELLS[name])
    position = np.random.default_rng(2).normal(size=(5, 30, 3)) * 40
    wrapped = space.wrap(position)
    fraction = wrapped @ np.linalg.inv(space.cell)
    assert fraction.min() >= -1e-9 and fraction.max() <= 1 + 1e-9
    moved = (wrapped - position) @ np.linalg.inv(space.cell)
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-9)
    assert np.abs(np.round(moved)).max() > 1


@every_cell
@pytest.mark.parametrize("xnp", [np, jnp])
def test_a_wrapped_walk_is_unwrapped_in_time(name, xnp):
    space = periodic(CELLS[name])
    step = np.random.default_rng(3).normal(size=(400, 6, 3))
    step *= 0.9 * space.reach / np.linalg.norm(step, axis=-1).max()
    walk = space.wrap(np.zeros((1, 6, 3)) + 1.0) + np.cumsum(step, axis=0)
    wrapped = space.wrap(walk)
    assert np.abs(wrapped - walk).max() > 10
    found = np.asarray(space.unwrap(xnp.asarray(wrapped)))
    np.testing.assert_allclose(found - found[0], walk - walk[0], atol=1e-8 if xnp is np else 1e-3)
    np.testing.assert_array_equal(OPEN.unwrap(wrapped), wrapped)


def test_a_cell_may_be_traced_and_gives_the_virial():
    """An ideal crystal of springs: dU/dε of a uniform strain is Σ r · dU/dr, and many cells run side by side."""
    position, pairs = jnp.array([[0.5, 0, 0], [8.0, 0, 0]]), all_pairs(2)

    def energy(length):
        space = periodic(jnp.eye(3) * length)
        return 0.5 * jnp.sum((space.distances(position * length / 9.0, pairs) - 1.0) ** 2)

    assert float(energy(9.0)) == pytest.approx(0.125)  # 1.5 Å apart through the wall
    assert 9.0 * float(jax.grad(energy)(9.0)) == pytest.approx(1.5 * 0.5, rel=1e-5)
    lengths = jnp.array([8.0, 9.0, 10.0])
    np.testing.assert_allclose(jax.jit(jax.vmap(energy))(lengths), [energy(x) for x in lengths.tolist()], rtol=1e-5)


def test_a_box_reaches_exactly_half_of_its_edge():
    """1/(1/L) may round to a little less than L."""
    for edge in np.arange(6.0, 40.0, 0.1):
        periodic(edge * np.eye(3)).check_reach("half", edge / 2)


def test_volume_and_reach_of_a_box_and_of_the_open():
    space = periodic(np.diag([3.0, 4.0, 5.0]))
    assert (float(space.volume), float(space.reach)) == (pytest.approx(60.0), 1.5)
    assert (OPEN.volume, OPEN.reach) == (np.inf, np.inf)
    OPEN.check_reach("anything", 1e9)


def test_cells_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"three lattice vectors in rows, \[3, 3\], got shape \(3,\)"):
        periodic(np.ones(3))
    with pytest.raises(ValueError, match="lattice vectors that span a volume"):
        periodic(np.ones((3, 3)))
    with pytest.raises(ValueError, match="`rdf`: expected distances of at most 1.500 Å, .*, got 2 Å"):
        periodic(np.diag([3.0, 4.0, 5.0])).check_reach("rdf", 2.0)
