"""Statistical errors and correlation times against what is known of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import boltzmann_value_and_grad, uncertainty

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
