"""Statistical errors and correlation times against what is known of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import boltzmann_value_and_grad, localized, uncertainty

KT = 0.7


def autoregressive(key, memory, shape):
    """Process x' = φ x + noise, for which C(t) = φᵗ."""
    noise = jax.random.normal(key, shape[::-1])
    start = noise[0] / jnp.sqrt(1 - memory**2)
    step = lambda x, n: (memory * x + n, memory * x + n)  # noqa: E731
    return jax.lax.scan(step, start, noise)[1].T


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_autocorrelation_of_an_autoregressive_process(memory):
    series = autoregressive(jax.random.key(0), memory, (40, 5000))
    found = uncertainty.autocorrelation(series)
    exact = memory / (1 - memory)
    assert found.time == pytest.approx(exact, rel=0.05, abs=0.02)
    assert found.inefficiency == pytest.approx(1 + 2 * exact, rel=0.05)
    assert found.num_effective == pytest.approx(200_000 / (1 + 2 * exact), rel=0.05)


def test_autocorrelation_finds_trajectories_that_do_not_agree():
    series = jax.random.normal(jax.random.key(1), (8, 1000))
    apart = series + jnp.arange(8)[:, None]
    assert uncertainty.autocorrelation(series).inefficiency < 1.2
    assert uncertainty.autocorrelation(apart).inefficiency > 100


def test_autocorrelation_of_a_constant_is_none():
    assert uncertainty.autocorrelation(jnp.ones((2, 10))).time == 0


def test_autocorrelation_refuses_one_row_without_its_axis():
    with pytest.raises(ValueError, match=r"\[trajectory, time\] with at least 4 times, got \(10,\)"):
        uncertainty.autocorrelation(jnp.ones(10))


def gradient(params, samples, **counts):
    energy = lambda p, x: 0.5 * p["k"] * (x - p["center"]) ** 2  # noqa: E731
    transform = boltzmann_value_and_grad(lambda m: (m - 0.9) ** 2, energy, jnp.square, kT=KT)
    return transform(params, samples, **counts)


def test_standard_error_is_the_spread_of_repeated_estimates():
    params = {"k": jnp.float32(1.3), "center": jnp.float32(0.2)}
    samples = params["center"] + jax.random.normal(jax.random.key(2), (400, 320)) * jnp.sqrt(KT / 1.3)
    trust = uncertainty.jackknife_gradient(gradient, num_blocks=16)
    block = jnp.arange(320) // 20
    result = jax.jit(jax.vmap(lambda x: trust(params, x, block=block)))(samples)
    for name in params:
        spread = np.asarray(result.gradient[name]).std(ddof=1)
        assert np.asarray(result.standard_error[name]).mean() == pytest.approx(spread, rel=0.1)
    exact = jax.grad(lambda p: (KT / p["k"] + p["center"] ** 2 - 0.9) ** 2)(params)
    norm = np.sqrt(sum(float(leaf) ** 2 for leaf in exact.values()))
    noise = np.sqrt(sum(np.asarray(leaf).var(ddof=1) for leaf in result.gradient.values()))
    assert np.median(result.signal_to_noise) == pytest.approx(norm / noise, rel=0.2)


def test_trust_keeps_the_gradient_and_leaves_out_the_mask():
    params = {"k": jnp.float32(1.3), "center": jnp.float32(0.2)}
    samples = jax.random.normal(jax.random.key(3), (64,))
    block, mask = jnp.arange(64) % 8, jnp.arange(64) < 56
    trust = uncertainty.jackknife_gradient(gradient, num_blocks=8)
    result = trust(params, samples.at[56:].set(jnp.nan), block=block, mask=mask)
    value, expected = gradient(params, samples[:56])
    np.testing.assert_allclose(result.value, value, rtol=1e-5)
    np.testing.assert_allclose(result.gradient["k"], expected["k"], rtol=1e-5)
    assert np.isfinite(result.standard_error["k"]) and result.standard_error["k"] > 0
    with pytest.raises(ValueError, match="at least 2 blocks, got 1"):
        uncertainty.jackknife_gradient(gradient, num_blocks=1)


def test_cosine_and_samples_needed():
    first, second = (
        {"a": jnp.array([1.0, 0.0]), "b": jnp.float32(1.0)},
        {"a": jnp.array([0.0, 2.0]), "b": jnp.float32(2.0)},
    )
    assert uncertainty.cosine(first, second) == pytest.approx(0.5)
    assert uncertainty.cosine(first, jax.tree.map(jnp.negative, first)) == pytest.approx(-1.0)
    assert uncertainty.cosine(first, jax.tree.map(jnp.zeros_like, first)) == 0
    assert uncertainty.samples_needed(100, jnp.float32(0.5), wanted=2.0) == pytest.approx(1600)
    assert uncertainty.samples_needed(100, jnp.float32(5.0), wanted=2.0) == pytest.approx(100)


def test_autocorrelation_of_a_short_series_by_hand():
    """C(t) over N − t pairs, nothing wrapped around the end: of 3, 1, −2, −2 about their mean of 0."""
    series = jnp.array([[3.0, 1.0, -2.0, -2.0, 1.0, -1.0]])
    x = np.asarray(series[0]) - np.mean(series)
    correlation = np.array([np.mean(x[: 6 - t] * x[t:]) for t in range(6)])
    correlation = correlation / correlation[0]
    pairs = correlation.reshape(-1, 2).sum(axis=1)
    end = int(np.argmax(pairs <= 0)) if (pairs <= 0).any() else len(pairs)
    expected = max(pairs[:end].sum() - 1, 0)
    assert float(uncertainty.autocorrelation(series).time) == pytest.approx(expected, rel=1e-4)
    assert expected > 0


def test_jackknife_of_a_mean_is_the_standard_error_of_its_blocks():
    """Of a linear statistic: √((B − 1)/B Σ (leave-one-out − mean)²) is s/√B of the block means."""
    samples = jax.random.normal(jax.random.key(4), (40,))

    def mean_as_gradient(params, x, mask):
        return jnp.float32(0), jnp.sum(jnp.where(mask, x, 0)) / jnp.sum(mask)

    block = jnp.arange(40) % 8
    found = uncertainty.jackknife_gradient(mean_as_gradient, num_blocks=8)(1.0, samples, block=block)
    means = np.array([np.mean(np.asarray(samples)[np.arange(40) % 8 == b]) for b in range(8)])
    assert float(found.standard_error) == pytest.approx(means.std(ddof=1) / np.sqrt(8), rel=1e-4)


@pytest.mark.parametrize("num", [6, 8])
def test_jackknife_takes_masks_of_neighborhoods(num):
    """Also where the number of samples is that of neighborhoods, so that a wrong shape would fit."""
    samples = jax.random.normal(jax.random.key(5), (8, num)) * jnp.sqrt(KT / 1.3)
    mask = np.random.default_rng(0).random((8, num)) < 0.7
    fit = boltzmann_value_and_grad(lambda m: (m - 0.2) ** 2, localized(lambda k, x: 0.5 * k * x**2), jnp.square, kT=KT)
    block = np.arange(8) % 4
    found = jax.jit(uncertainty.jackknife_gradient(fit, num_blocks=4))(1.3, samples, block=block, mask=mask)
    left_out = np.array([float(fit(1.3, samples, mask=mask & (block != b)[:, None])[1]) for b in range(4)])
    expected = np.sqrt(3 / 4 * np.sum((left_out - left_out.mean()) ** 2))
    assert float(found.standard_error) == pytest.approx(expected, rel=1e-3)
    assert float(found.gradient) == pytest.approx(float(fit(1.3, samples, mask=mask)[1]), rel=1e-5)
