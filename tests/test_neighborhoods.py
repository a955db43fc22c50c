"""Neighborhoods of molecules, the balanced subsample, and the localized estimator over them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import bind, boltzmann_value_and_grad, localized, neighborhoods, topology
from stablejax.models.schnet import SchNet
from stablejax.neighborhoods import neighborhood_energies
from stablejax.observables import structure
from stablejax.space import OPEN, Pairs, periodic
from stablejax.types import Frame

MOLECULE = np.array([0, 0, 1, 1, 2, 2])
LINE = jnp.array([[0.0, 0, 0], [1, 0, 0], [4, 0, 0], [5, 0, 0], [11, 0, 0], [11.5, 0, 0]])


def test_neighborhood_is_a_molecule_and_those_nearest_to_it_through_the_walls():
    alone = neighborhoods.nearest_molecules(MOLECULE, num_molecules=1)(Frame(LINE))
    np.testing.assert_array_equal(alone, [[0, 1], [2, 3], [4, 5]])
    for space, nearest in ((OPEN, [1, 0, 1]), (periodic(12.0 * np.eye(3)), [2, 0, 0])):
        member = neighborhoods.nearest_molecules(MOLECULE, num_molecules=2, space=space)(Frame(LINE))
        np.testing.assert_array_equal(member[:, :2], alone)
        np.testing.assert_array_equal(member[:, 2:], np.asarray(alone)[nearest])


def test_molecules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="all molecules must have the same number of atoms, got 1 to 2"):
        neighborhoods.nearest_molecules(np.array([0, 0, 1]), num_molecules=1)
    with pytest.raises(ValueError, match="`num_molecules` must be 1 to 3, got 4"):
        neighborhoods.nearest_molecules(MOLECULE, num_molecules=4)


def test_rare_neighborhoods_are_kept_and_common_ones_thinned_out():
    rng = np.random.default_rng(0)
    value = rng.random((50, 20))
    value[3, 4], value[7, 8] = 9.5, 10.0
    mask = np.ones((50, 20), bool)
    mask[10:20] = False
    value[10, 0] = 1e6  # does not count, so it does not set the bins
    chosen, weight = neighborhoods.balanced_subsample(jax.random.key(0), value, mask, num_bins=20, per_bin=5)
    assert bool(chosen[3, 4]) and bool(chosen[7, 8])
    assert not chosen[10:20].any()
    bins = np.minimum((value / 10 * 20 - 1e-9).astype(int), 19)
    counts = np.bincount(bins[np.asarray(chosen)], minlength=20)
    np.testing.assert_array_equal(counts, np.minimum(np.bincount(bins[mask], minlength=20), 5))
    assert float(weight.sum()) == pytest.approx(mask.sum())
    assert float(weight[3, 4]) == 1 and float(weight.max()) > 50
    spoiled, _ = neighborhoods.balanced_subsample(
        jax.random.key(0), np.where(value == value[0, 0], np.nan, value), mask, num_bins=20, per_bin=5
    )
    assert not bool(spoiled[0, 0]) and bool(spoiled[3, 4]) and bool(spoiled[7, 8])
    other, _ = neighborhoods.balanced_subsample(jax.random.key(1), value, mask, num_bins=20, per_bin=5)
    assert (np.asarray(other) != np.asarray(chosen)).any()


def test_weights_of_the_subsample_give_the_mean_of_all():
    value = np.random.default_rng(0).exponential(size=(100, 64)) ** 2
    mask = np.ones(value.shape, bool)
    means = []
    for key in jax.random.split(jax.random.key(0), 200):
        chosen, weight = neighborhoods.balanced_subsample(key, value, mask, num_bins=30, per_bin=5)
        assert 0.005 < chosen.mean() < 0.1
        means.append(float((weight * value).sum() / weight.sum()))
    assert np.mean(means) == pytest.approx(value.mean(), abs=3 * np.std(means) / np.sqrt(200))
    unweighted = value[np.asarray(chosen)].mean()
    assert abs(unweighted - value.mean()) > 10 * np.std(means)  # the control


def water(num_frames):
    rng = np.random.default_rng(0)
    molecule = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    rotation = np.linalg.qr(rng.normal(size=(num_frames, 8, 3, 3)))[0]
    corner = 3.1 * np.argwhere(np.ones((2, 2, 2)))[:, None]
    position = (corner + molecule @ rotation).reshape(num_frames, 24, 3) + 0.03 * rng.normal(size=(num_frames, 24, 3))
    return np.tile([8, 1, 1], 8), jnp.asarray(position, jnp.float32)


def test_bond_lengths_and_distances_of_each_molecule():
    species, (position,) = water(1)
    molecule = np.repeat(np.arange(8), 3)
    oxygen = np.arange(0, 24, 3)
    bonds = Pairs(np.repeat(oxygen, 2), np.array([oxygen + 1, oxygen + 2]).T.reshape(-1))
    x = np.asarray(position, float).reshape(8, 3, 3)
    lengths = np.linalg.norm(x[:, 1:] - x[:, :1], axis=-1).mean(axis=1)
    np.testing.assert_allclose(structure.molecule_bond_lengths(bonds, molecule)(Frame(position)), lengths, rtol=1e-5)
    pairs = topology.intermolecular_pairs(species, molecule)
    between = Pairs(*(np.concatenate(atoms) for atoms in zip(*pairs.values(), strict=True)))
    separate = np.linalg.norm(x.reshape(8, 3, 1, 1, 3) - x.reshape(1, 1, 8, 3, 3), axis=-1).min(axis=(1, 3))
    np.fill_diagonal(separate, np.inf)
    np.testing.assert_allclose(
        structure.molecule_distances(between, molecule)(Frame(position)), separate.min(axis=1), rtol=1e-5
    )


@pytest.mark.parametrize("num_molecules", [1, 3])
def test_local_gradient_is_the_covariance_over_all_neighborhoods(num_molecules, x64):
    """Equation 8 written out, over a subset of the neighborhoods of all samples."""
    species, position = water(6)
    position = position.astype(jnp.float64)
    frames = Frame(position)
    molecule, kT = np.repeat(np.arange(8), 3), 0.03
    system = bind(SchNet(num_features=8, num_filters=8, num_blocks=1), species)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), system.init(jax.random.key(0)))
    member_fn = neighborhoods.nearest_molecules(molecule, num_molecules=num_molecules)

    def energies(params, frame):
        return neighborhood_energies(system.atom_energies(params, frame.position), member_fn(frame))

    oxygen = np.arange(0, 24, 3)
    lengths = structure.molecule_bond_lengths(
        Pairs(np.repeat(oxygen, 2), np.array([oxygen + 1, oxygen + 2]).T.reshape(-1)), molecule
    )
    mask = jnp.asarray(np.random.default_rng(1).random((6, 8)) < 0.6)
    fn = boltzmann_value_and_grad(lambda mean: (mean - 1.0) ** 2, localized(energies), lengths, kT=kT, chunk_size=4)
    loss, gradient = fn(params, frames, mask=mask)

    g = jax.vmap(lengths)(frames)[mask]
    weight = 2 * (g.mean() - 1.0) * (g - g.mean()) / (len(g) - 1) / -kT
    expected = jax.grad(lambda p: jnp.vdot(weight, jax.vmap(energies, (None, 0))(p, frames)[mask]))(params)
    assert float(loss) == pytest.approx(float((g.mean() - 1.0) ** 2))
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-4
