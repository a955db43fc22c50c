"""Weights of samples: perturbation, effective size, balanced choice."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import boltzmann_value_and_grad, expectation
from stablejax.reweighting import balanced_subsample, effective_sample_size, perturbation_weights, sample_energies

KT = 0.7


def harmonic(k, x):
    return 0.5 * k * x**2


def loss(mean):
    return (mean - 0.3) ** 2


def samples_at(k, shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape) * jnp.sqrt(KT / k)


def reweighted(sampled_at, chunk_size=None):
    energies = sample_energies(harmonic, chunk_size=chunk_size)
    transform = boltzmann_value_and_grad(loss, harmonic, jnp.square, kT=KT, chunk_size=chunk_size)

    def at(k, samples):
        weight = perturbation_weights(energies(k, samples), energies(sampled_at, samples), kT=KT)
        return transform(k, samples, weight=weight), effective_sample_size(weight)

    return at


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_at_zero_displacement_it_is_the_estimator(chunk_size):
    samples = samples_at(1.3, (50,))
    expected = boltzmann_value_and_grad(loss, harmonic, jnp.square, kT=KT)(1.3, samples)
    actual, effective = reweighted(1.3, chunk_size)(1.3, samples)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert effective == pytest.approx(50)


def test_displaced_mean_and_derivative_are_those_of_the_other_potential():
    sampled_at, k, shape = 1.3, 1.6, (2000, 400)
    samples = samples_at(sampled_at, shape)

    def mean_and_derivative(x):
        weight = perturbation_weights(harmonic(k, x), harmonic(sampled_at, x), kT=KT)
        mean = expectation(harmonic, jnp.square, kT=KT)
        return mean(k, x, weight=weight), jax.grad(mean)(k, x, weight=weight)

    mean, derivative = (np.asarray(values, float) for values in jax.vmap(mean_and_derivative)(samples))
    error = np.array([mean.std(), derivative.std()]) / np.sqrt(shape[0])
    # Self-normalized weights are biased to O(1/N), here within the errors of 2,000 estimates.
    assert abs(mean.mean() - KT / k) < 4 * error[0]
    assert abs(derivative.mean() + KT / k**2) < 4 * error[1]
    assert abs(KT / sampled_at - KT / k) > 100 * error[0]


def test_effective_sample_size():
    assert effective_sample_size(jnp.full(8, 3.0)) == pytest.approx(8)
    assert effective_sample_size(jnp.array([1.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_sample_size(jnp.ones(8), jnp.arange(8) < 3) == pytest.approx(3)
    # Weights exp(−Δk x²/2kT) of Gaussian samples: N_eff/N = E[w]²/E[w²] in closed form.
    x = samples_at(1.0, (400_000,), seed=1)
    ratio = effective_sample_size(perturbation_weights(harmonic(1.5, x), harmonic(1.0, x), kT=KT)) / len(x)
    assert ratio == pytest.approx(np.sqrt(1 + 2 * 0.5) / (1 + 0.5), rel=0.01)


def test_weights_do_not_overflow():
    weight = perturbation_weights(jnp.array([-1e4, 0.0]), jnp.zeros(2), kT=KT)
    np.testing.assert_array_equal(weight, [1.0, 0.0])


def test_balanced_subsample_takes_as_many_of_each_bin():
    value = jnp.concatenate([jax.random.uniform(jax.random.key(0), (900,)), jnp.array([1.5, 1.6, 2.5, jnp.nan, -1.0])])
    index, mask = balanced_subsample(jax.random.key(1), value, jnp.array([0.0, 1.0, 2.0, 3.0]), num_per_bin=2)
    chosen = np.asarray(value)[np.asarray(index)]
    np.testing.assert_array_equal(mask, [True, True, True, True, True, False])
    assert len(set(np.asarray(index)[np.asarray(mask)].tolist())) == 5
    assert (chosen[:2] < 1).all() and sorted(chosen[2:4].tolist()) == pytest.approx([1.5, 1.6]) and chosen[4] == 2.5
    # Every member of a bin is as likely as any other.
    keys = jax.random.split(jax.random.key(2), 4000)
    first = jax.vmap(lambda key: balanced_subsample(key, value[895:902], jnp.array([0.0, 1.0]), num_per_bin=2)[0])(keys)
    counts = np.bincount(np.asarray(first).ravel(), minlength=7)
    assert counts[5:].sum() == 0
    assert np.all(np.abs(counts[:5] / 4000 - 0.4) < 4 * np.sqrt(0.4 * 0.6 / 4000))


def test_a_value_on_an_edge_is_in_the_upper_bin_only():
    value, edges = jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0, 2.0])
    index, mask = balanced_subsample(jax.random.key(0), value, edges, num_per_bin=1)
    assert mask.tolist() == [False, True]
    assert int(index[1]) == 0


def test_balanced_subsample_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="at least 2 `edges` and 1 <= num_per_bin <= 3 samples, got 2 edges"):
        balanced_subsample(jax.random.key(0), jnp.ones(3), jnp.array([0.0, 1.0]), num_per_bin=4)
