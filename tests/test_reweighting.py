"""Weights of samples: perturbation, temperature, effective size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import boltzmann_value_and_grad, expectation
from stablejax.reweighting import (
    effective_sample_size,
    mixture_energy,
    perturbation_weights,
    sample_energies,
    temperature_weights,
)

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


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_samples_without_a_finite_energy_weigh_nothing_and_spoil_no_other(broken, where):
    energies = [np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1])]
    expected = np.asarray(perturbation_weights(*energies, kT=KT))
    spoiled = [np.append(one, broken if which == where else 0.0) for which, one in enumerate(energies)]
    weight = perturbation_weights(*spoiled, kT=KT)
    np.testing.assert_allclose(weight, [*expected, 0.0], rtol=1e-6)
    assert float(expected.max()) == 1.0


def test_where_nothing_is_finite_nothing_is_worth_anything():
    weight = perturbation_weights(jnp.full(3, jnp.nan), jnp.zeros(3), kT=KT)
    np.testing.assert_array_equal(weight, 0)
    assert float(effective_sample_size(weight)) == 0.0


def test_samples_of_one_temperature_give_the_means_of_another():
    """⟨x²⟩ = kT/k: from 0.7 to 0.5, and the other way where hardly a sample is worth anything."""
    samples = samples_at(1.3, (200_000,))
    weight = temperature_weights(harmonic(1.3, samples), sampled_kT=KT, kT=0.5)
    mean = expectation(harmonic, jnp.square, kT=0.5)(1.3, samples, weight=weight)
    assert float(mean) == pytest.approx(0.5 / 1.3, rel=0.01)
    share = float(effective_sample_size(weight)) / len(samples)
    ratio = 0.5 / KT
    assert share == pytest.approx(np.sqrt(2 * ratio - ratio**2) / ratio * ratio / 1, rel=0.2)
    far = temperature_weights(harmonic(1.3, samples), sampled_kT=KT, kT=KT / 50)
    assert float(effective_sample_size(far)) < 0.25 * len(samples)


def mixture(constants, counts, num_masked=0):
    """Samples of harmonic wells, the energies of all in all of them, and which count."""
    samples = jnp.concatenate(
        [samples_at(k, (n,), seed) for seed, (k, n) in enumerate(zip(constants, counts, strict=True))]
    )
    mask = jnp.arange(len(samples) + num_masked) < len(samples)
    samples = jnp.concatenate([samples, jnp.full(num_masked, jnp.nan)])
    energy = 0.5 * jnp.array(constants)[:, None] * samples**2
    return samples, energy, mask


def test_energy_of_a_mixture_is_that_of_its_density():
    """The samples' own free energies give the normalized densities of the wells, whose offsets do not matter."""
    constants, counts = (1.0, 3.0), (40_000, 20_000)
    samples, energy, mask = mixture(constants, counts, num_masked=5)
    energy = energy.at[1].add(100.0)
    actual = mixture_energy(energy, jnp.array(counts), mask, kT=KT)
    densities = [n * jnp.sqrt(k) * jnp.exp(-harmonic(k, samples) / KT) for k, n in zip(constants, counts, strict=True)]
    difference = np.asarray(actual + KT * jnp.log(sum(densities)))[:-5]
    assert difference.std() < 0.01 and np.all(np.isinf(actual[-5:]))


def test_mean_over_a_mixture_is_that_of_another_well():
    samples, energy, mask = mixture((1.0, 3.0), (20_000, 20_000))
    sampled = mixture_energy(energy, jnp.array([20_000, 20_000]), mask, kT=KT)
    weight = perturbation_weights(harmonic(1.7, samples), sampled, kT=KT)
    mean = expectation(harmonic, jnp.square, kT=KT)(1.7, samples, weight=weight)
    assert float(mean) == pytest.approx(KT / 1.7, rel=0.03)
    # Each well alone leaves fewer samples than both together.
    alone = [
        effective_sample_size(perturbation_weights(harmonic(1.7, samples), energy[k], kT=KT), mask=half)
        for k, half in enumerate((jnp.arange(40_000) < 20_000, jnp.arange(40_000) >= 20_000))
    ]
    assert effective_sample_size(weight) > sum(alone)


def test_one_state_is_its_own_energy_and_a_state_without_samples_does_not_matter():
    samples, energy, mask = mixture((1.0, 3.0), (500, 0))
    alone = mixture_energy(energy[:1], jnp.array([500]), mask, kT=KT)
    np.testing.assert_allclose(alone - alone[0], energy[0] - energy[0, 0], atol=1e-5)
    both = mixture_energy(energy, jnp.array([500, 0]), mask, kT=KT)
    np.testing.assert_allclose(both - both[0], alone - alone[0], atol=1e-5)
    nothing = mixture_energy(energy, jnp.array([0, 0]), jnp.zeros_like(mask), kT=KT)
    assert np.all(np.isinf(nothing))
