"""The estimator against closed forms, quadrature and itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import boltzmann_grad, expectation

KT = 0.7


def harmonic(k, x):
    return 0.5 * k * x**2


def harmonic_samples(seed, shape, k):
    return jax.random.normal(jax.random.key(seed), shape) * jnp.sqrt(KT / k)


@pytest.mark.parametrize(
    ("observable", "exact"),
    [
        (lambda x: x**2, lambda k: -KT / k**2),  # E[x²] = kT/k
        (lambda x: x**4, lambda k: -6 * KT**2 / k**3),  # E[x⁴] = 3 (kT/k)²
    ],
    ids=["x2", "x4"],
)
def test_harmonic_well(observable, exact):
    k, num_estimates = 1.3, 2000
    samples = harmonic_samples(0, (num_estimates, 100), k)
    grads = np.asarray(jax.vmap(jax.grad(expectation(harmonic, observable, kT=KT)), (None, 0))(k, samples), float)
    z_score = (grads.mean() - exact(k)) / (grads.std(ddof=1) / np.sqrt(num_estimates))
    assert abs(z_score) < 3


def test_unbiased_at_four_samples_and_the_biased_form_is_found():
    k, num_estimates = 1.3, 200_000
    samples = harmonic_samples(1, (num_estimates, 4), k)
    grads = np.asarray(jax.vmap(jax.grad(expectation(harmonic, jnp.square, kT=KT)), (None, 0))(k, samples), float)
    exact, error = -KT / k**2, grads.std(ddof=1) / np.sqrt(num_estimates)
    assert abs(grads.mean() - exact) < 3 * error
    assert abs(0.75 * grads.mean() - exact) > 10 * error  # with 1/N in place of 1/(N − 1)


def test_error_shrinks_as_one_over_root_n():
    k = 1.3
    grad = jax.vmap(jax.grad(expectation(harmonic, jnp.square, kT=KT)), (None, 0))
    spread = [np.asarray(grad(k, harmonic_samples(2, (4000, n), k))).std() for n in (50, 800)]
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.1)


def test_double_well_by_quadrature():
    params = {"depth": jnp.float32(1.5), "tilt": jnp.float32(0.2)}

    def energy(p, x):
        return p["depth"] * (x**2 - 1) ** 2 + p["tilt"] * x

    def observable(x):
        return {"mean": x, "right": jax.nn.sigmoid(4 * x)}

    grid = jnp.linspace(-3, 3, 20001)

    def exact_mean(p):
        weight = jax.nn.softmax(-jax.vmap(energy, (None, 0))(p, grid) / KT)
        return jax.tree.map(lambda g: jnp.sum(weight * g), jax.vmap(observable)(grid))

    weight = jax.nn.softmax(-jax.vmap(energy, (None, 0))(params, grid) / KT)
    shape = (400, 500)
    samples = jax.random.choice(jax.random.key(3), grid, shape, p=weight)
    estimates = jax.vmap(jax.jacrev(expectation(energy, observable, kT=KT)), (None, 0))(params, samples)
    exact = jax.jacrev(exact_mean)(params)

    def z_score(estimate, expected):
        estimate = np.asarray(estimate, float)
        return (estimate.mean() - float(expected)) / (estimate.std(ddof=1) / np.sqrt(shape[0]))

    scores = jax.tree.leaves(jax.tree.map(z_score, estimates, exact))
    assert len(scores) == 4
    assert max(abs(score) for score in scores) < 3.5


def vector_problem(num=30):
    params = {"k": jnp.array([1.0, 2.0, 0.5]), "c": jnp.float32(0.3)}

    def energy(p, x):
        return jnp.sum(p["k"] * x**2) + p["c"] * jnp.sin(x[0] * x[1])

    def observable(x):
        return {"square": x**2, "sine": jnp.sin(x)[:2]}

    return params, energy, observable, jax.random.normal(jax.random.key(4), (num, 3))


def loss_of(mean):
    return jnp.sum(mean["square"] ** 2) + jnp.sum(jnp.cos(mean["sine"]))


def jacobian_form(params, energy, observable, samples):
    """Equation 6 as the paper writes it."""
    g = jax.vmap(observable)(samples)
    du = jax.vmap(jax.grad(energy), (None, 0))(params, samples)
    n = len(samples)

    def entry(g_leaf, du_leaf):
        outer = jnp.einsum("i...,i...->...", g_leaf.reshape(n, -1, 1), du_leaf.reshape(n, 1, -1)) / n
        product = g_leaf.reshape(n, -1).mean(0)[:, None] * du_leaf.reshape(n, -1).mean(0)
        jacobian = n / (KT * (n - 1)) * (product - outer)
        return jacobian.reshape(g_leaf.shape[1:] + du_leaf.shape[1:])

    return jax.tree.map(lambda leaf: jax.tree.map(lambda d: entry(leaf, d), du), g)


def assert_trees_close(actual, expected, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def test_equals_equation_six_in_reverse_and_forward_mode():
    params, energy, observable, samples = vector_problem()
    mean = expectation(energy, observable, kT=KT)
    expected = jacobian_form(params, energy, observable, samples)
    assert_trees_close(jax.jacrev(mean)(params, samples), expected)
    assert_trees_close(jax.jacfwd(mean)(params, samples), expected)


def test_value_is_the_sample_mean():
    params, energy, observable, samples = vector_problem()
    value = expectation(energy, observable, kT=KT)(params, samples)
    assert_trees_close(value, jax.tree.map(lambda g: g.mean(0), jax.vmap(observable)(samples)))


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 30, 64])
def test_boltzmann_grad_is_the_gradient_of_the_loss_of_the_expectation(chunk_size):
    params, energy, observable, samples = vector_problem()
    mean = expectation(energy, observable, kT=KT)
    expected = jax.value_and_grad(lambda p: loss_of(mean(p, samples)))(params)
    transform = boltzmann_grad(loss_of, energy, observable, kT=KT, chunk_size=chunk_size)
    assert_trees_close(transform(params, samples), expected)
    assert_trees_close(jax.jit(transform)(params, samples), expected)


def test_masked_is_dropped_even_where_it_is_not_finite():
    params, energy, observable, samples = vector_problem()
    transform = boltzmann_grad(loss_of, energy, observable, kT=KT, chunk_size=8)
    mask = np.arange(len(samples)) % 3 != 0
    spoilt = jnp.where(mask[:, None], samples, jnp.nan)
    expected = transform(params, samples[mask])
    assert_trees_close(transform(params, spoilt, mask), expected)
    mean = expectation(energy, observable, kT=KT)
    assert_trees_close(jax.grad(lambda p: loss_of(mean(p, spoilt, mask)))(params), expected[1])
    assert not np.allclose(expected[0], transform(params, samples)[0])


def test_shared_over_an_axis_is_whole():
    params, energy, observable, samples = vector_problem(32)
    mask = np.arange(32) % 5 != 0
    expected = boltzmann_grad(loss_of, energy, observable, kT=KT)(params, samples, mask)
    shared = boltzmann_grad(loss_of, energy, observable, kT=KT, axis_name="device")
    loss, gradient = jax.vmap(shared, in_axes=(None, 0, 0), axis_name="device")(
        params, samples.reshape(8, 4, 3), mask.reshape(8, 4)
    )
    for device in range(8):
        assert_trees_close(jax.tree.map(lambda leaf: leaf[device], (loss, gradient)), expected)  # noqa: B023


def test_samples_are_constants():
    params, energy, observable, samples = vector_problem()
    mean = expectation(energy, observable, kT=KT)
    gradient = jax.grad(lambda x: loss_of(mean(params, x)))(samples)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda kT: expectation(harmonic, jnp.square, kT=kT),
        lambda kT: boltzmann_grad(jnp.sum, harmonic, jnp.square, kT=kT),
    ],
)
def test_bad_use_gets_an_answer(make):
    with pytest.raises(ValueError, match="`kT` must be positive, got 0"):
        make(0.0)
    fn = make(KT)
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        fn(1.0, jnp.ones(1))
    with pytest.raises(ValueError, match="same leading axis"):
        fn(1.0, (jnp.ones(3), jnp.ones(4)))
    with pytest.raises(ValueError, match=r"`mask` needs shape \(3,\), got \(2,\)"):
        fn(1.0, jnp.ones(3), jnp.ones(2, bool))


def test_fewer_than_two_that_count_is_nan_not_a_number():
    gradient = jax.grad(expectation(harmonic, jnp.square, kT=KT))(1.0, jnp.arange(3.0), jnp.array([True, False, False]))
    assert np.isnan(gradient)
