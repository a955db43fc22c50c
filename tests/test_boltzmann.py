"""The estimator against closed forms, quadrature and itself."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import boltzmann_grad, boltzmann_value_and_grad, expectation, localized
from stablejax.boltzmann import parametric
from stablejax.neighborhoods import neighborhood_energies

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
    transform = boltzmann_value_and_grad(loss_of, energy, observable, kT=KT, chunk_size=chunk_size)
    assert_trees_close(transform(params, samples), expected)
    assert_trees_close(jax.jit(transform)(params, samples), expected)


def test_masked_is_dropped_even_where_it_is_not_finite():
    params, energy, observable, samples = vector_problem()
    transform = boltzmann_value_and_grad(loss_of, energy, observable, kT=KT, chunk_size=8)
    mask = np.arange(len(samples)) % 3 != 0
    spoilt = jnp.where(mask[:, None], samples, jnp.nan)
    expected = transform(params, samples[mask])
    assert_trees_close(transform(params, spoilt, mask=mask), expected)
    mean = expectation(energy, observable, kT=KT)
    assert_trees_close(jax.grad(lambda p: loss_of(mean(p, spoilt, mask=mask)))(params), expected[1])
    assert not np.allclose(expected[0], transform(params, samples)[0])


def test_shared_over_an_axis_is_whole():
    params, energy, observable, samples = vector_problem(32)
    mask = np.arange(32) % 5 != 0
    expected = boltzmann_value_and_grad(loss_of, energy, observable, kT=KT)(params, samples, mask=mask)
    shared = boltzmann_value_and_grad(loss_of, energy, observable, kT=KT, axis_name="device")
    loss, gradient = jax.vmap(lambda x, m: shared(params, x, mask=m), axis_name="device")(
        samples.reshape(8, 4, 3), mask.reshape(8, 4)
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
        fn(1.0, jnp.ones(3), mask=jnp.ones(2, bool))


def test_fewer_than_two_that_count_is_nan_not_a_number():
    gradient = jax.grad(expectation(harmonic, jnp.square, kT=KT))(
        1.0, jnp.arange(3.0), mask=jnp.array([True, False, False])
    )
    assert np.isnan(gradient)


def test_gaussian_in_several_dimensions_has_the_closed_form():
    # U = ½ xᵀ A x: E[x xᵀ] = kT A⁻¹, so dE[x xᵀ] = −kT A⁻¹ dA A⁻¹.
    matrix = jnp.array([[2.0, 0.5, 0.0], [0.5, 1.5, -0.3], [0.0, -0.3, 1.0]])
    num_estimates = 2000
    root = jnp.linalg.cholesky(KT * jnp.linalg.inv(matrix))
    samples = jax.random.normal(jax.random.key(5), (num_estimates, 50, 3)) @ root.T
    mean = expectation(lambda a, x: 0.5 * x @ a @ x, lambda x: jnp.outer(x, x), kT=KT)
    direction = jnp.array([[1.0, 0.2, 0.0], [0.2, -0.5, 0.1], [0.0, 0.1, 0.3]])
    derivative = lambda x: jax.jvp(lambda a: mean(a, x), (matrix,), (direction,))[1]  # noqa: E731
    estimates = np.asarray(jax.jit(jax.vmap(derivative))(samples), float)
    inverse = np.linalg.inv(matrix)
    error = estimates.std(axis=0, ddof=1) / np.sqrt(num_estimates)
    assert np.all(np.abs(estimates.mean(axis=0) + KT * inverse @ direction @ inverse) < 4 * error)


def metropolis_ising(key, coupling, num_sweeps):
    """Energies' samples of a ring of 8 spins, one a sweep."""

    def flip(spins, random):
        site, uniform = random
        change = 2 * coupling * spins[site] * (spins[site - 1] + spins[(site + 1) % 8])
        return jnp.where(uniform < jnp.exp(-change / KT), spins.at[site].multiply(-1), spins), None

    def sweep(spins, key):
        keys = jax.random.split(key)
        randoms = (jax.random.randint(keys[0], (16,), 0, 8), jax.random.uniform(keys[1], (16,)))
        spins, _ = jax.lax.scan(flip, spins, randoms)
        return spins, spins

    return jax.lax.scan(sweep, jnp.ones(8), jax.random.split(key, num_sweeps))[1][100:]


def test_ising_derivative_is_that_of_long_metropolis_runs():
    coupling, step = 0.4, 0.05
    energy = lambda j, spins: -j * jnp.sum(spins * jnp.roll(spins, 1))  # noqa: E731
    observable = lambda spins: jnp.mean(spins) ** 2  # noqa: E731
    runs = jax.jit(jax.vmap(metropolis_ising, (0, None, None)), static_argnums=2)
    keys = jax.random.split(jax.random.key(6), 64)

    def mean_and_error(values):
        values = np.asarray(values, float)
        return values.mean(), values.std(ddof=1) / np.sqrt(len(values))

    estimates = jax.vmap(lambda x: jax.grad(expectation(energy, observable, kT=KT))(coupling, x))(
        runs(keys, coupling, 2100)
    )
    finite_difference = [
        jax.vmap(jax.vmap(observable))(runs(keys, coupling + sign * step, 2100)).mean(axis=1) for sign in (1, -1)
    ]
    value, error = mean_and_error(estimates)
    expected, expected_error = mean_and_error((finite_difference[0] - finite_difference[1]) / (2 * step))
    assert abs(value - expected) < 3 * np.hypot(error, expected_error)
    assert value > 20 * error


def test_manners_of_jax_grad():
    _, _, _, samples = vector_problem()
    energy = lambda k, shift, x: k * jnp.sum((x - shift["s"]) ** 2)  # noqa: E731
    loss = lambda m: (jnp.sum(m**2), {"mean": m})  # noqa: E731
    arguments = (jnp.float32(0.7), {"s": jnp.arange(3.0)}, samples)
    mean = expectation(energy, jnp.sin, kT=KT)
    expected, aux = (
        jax.value_and_grad(lambda k, s: loss(mean(k, s, samples)), argnums=(0, 1), has_aux=True)(*arguments[:2]),
        mean(*arguments),
    )
    both = boltzmann_value_and_grad(loss, energy, jnp.sin, kT=KT, argnums=(0, 1), has_aux=True)
    assert_trees_close(both(*arguments), expected)
    gradient, info = boltzmann_grad(loss, energy, jnp.sin, kT=KT, argnums=-1, has_aux=True)(*arguments)
    assert_trees_close(gradient, expected[1][1])
    np.testing.assert_allclose(info["mean"], aux, rtol=1e-6)
    alone = boltzmann_grad(lambda m: loss(m)[0], energy, jnp.sin, kT=KT)(*arguments)
    assert_trees_close(alone, expected[1][0])


def test_composes_with_vmap_scan_and_jvp():
    params, energy, observable, samples = vector_problem()
    mean = expectation(energy, observable, kT=KT, chunk_size=8)
    grad = jax.grad(lambda p, x: loss_of(mean(p, x)))
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    one_by_one = [grad(jax.tree.map(lambda leaf: leaf[i], several), samples) for i in range(2)]  # noqa: B023
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    assert_trees_close(jax.vmap(grad, (0, None))(several, samples), expected)
    scanned = jax.jit(lambda p: jax.lax.scan(lambda c, one: (c, grad(one, samples)), 0, p)[1])(several)
    assert_trees_close(scanned, expected)
    tangent = jax.tree.map(jnp.ones_like, params)
    forward = jax.jvp(lambda p: loss_of(mean(p, samples)), (params,), (tangent,))[1]
    np.testing.assert_allclose(forward, sum(jnp.sum(leaf) for leaf in jax.tree.leaves(one_by_one[0])), rtol=1e-5)


def test_states_in_one_call_are_states_one_by_one():
    params, energy, observable, samples = vector_problem(31)
    kT, state = (0.7, 1.1), np.arange(31) % 3 // 2
    loss = lambda m: jnp.sum(m["square"][0] ** 2) + jnp.sum(m["sine"][1] ** 3)  # noqa: E731

    def separate(p):
        first, second = (
            expectation(energy, observable, kT=kT[s])(p, samples[np.flatnonzero(state == s)]) for s in range(2)
        )
        return jnp.sum(first["square"] ** 2) + jnp.sum(second["sine"] ** 3)

    expected = jax.value_and_grad(separate)(params)
    together = boltzmann_value_and_grad(loss, energy, observable, kT=kT, chunk_size=8)
    assert_trees_close(together(params, samples, state=state), expected)
    mean = expectation(energy, observable, kT=kT)
    assert_trees_close(jax.grad(lambda p: loss(mean(p, samples, state=state)))(params), expected[1])


def weighted_form(params, energy, observable, samples, weight):
    """The weighted covariance as it is defined, over reliability weights."""
    p = np.asarray(weight, float) / np.sum(weight)
    g, du = (
        np.asarray(jax.vmap(observable)(samples)),
        np.asarray(jax.vmap(jax.grad(energy), (None, 0))(params, samples)),
    )
    covariance = np.sum(p * g * du) - np.sum(p * g) * np.sum(p * du)
    return -covariance / KT / (1 - np.sum(p**2))


def test_weights():
    samples, weight = harmonic_samples(7, (20,), 1.3), np.linspace(0.0, 3.0, 20)
    mean = expectation(harmonic, jnp.square, kT=KT, chunk_size=6)
    assert mean(1.3, samples, weight=weight) == pytest.approx(np.average(samples**2, weights=weight), rel=1e-5)
    derivative = jax.grad(mean)(1.3, samples, weight=weight)
    assert derivative == pytest.approx(weighted_form(1.3, harmonic, jnp.square, samples, weight), rel=1e-4)
    uniform = jax.grad(mean)(1.3, samples, weight=np.full(20, 7.0))
    assert uniform == pytest.approx(float(jax.grad(mean)(1.3, samples)), rel=1e-5)
    assert derivative != pytest.approx(float(uniform), rel=0.01)


def water_like(num_frames=12, num_molecules=4):
    """Molecules of 3 atoms whose atom energies depend on all atoms."""
    position = jax.random.normal(jax.random.key(8), (num_frames, 3 * num_molecules, 3))

    def atom_energies(k, x):
        distance = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
        return k * jnp.sum(jnp.sin(distance), axis=1)

    members = np.arange(3 * num_molecules).reshape(num_molecules, 3)
    bond = lambda x: jnp.linalg.norm(x[members[:, 0]] - x[members[:, 1]], axis=-1)  # noqa: E731
    return position, atom_energies, members, bond


@pytest.mark.parametrize("as_mask", [False, True])
def test_localized_counts_every_neighborhood_as_a_sample(as_mask):
    position, atom_energies, members, bond = water_like()
    mask = np.arange(12 * 4).reshape(12, 4) % 5 != 0
    member = (
        (members[:, :, None] == np.arange(12)).any(axis=1)
        if as_mask
        else np.pad(members, ((0, 0), (0, 1)), constant_values=-1)
    )
    energies = localized(lambda k, x: neighborhood_energies(atom_energies(k, x), member))
    chosen = [(frame, index) for frame, index in zip(*np.nonzero(mask), strict=True)]
    pooled = (np.array([f for f, _ in chosen]), np.array([i for _, i in chosen]))
    one_energy = lambda k, s: jnp.sum(atom_energies(k, position[s[0]])[members[s[1]]])  # noqa: E731
    one_bond = lambda s: bond(position[s[0]])[s[1]]  # noqa: E731
    loss = lambda m: (m - 1.0) ** 2  # noqa: E731
    members = jnp.asarray(members)
    expected = boltzmann_value_and_grad(loss, one_energy, one_bond, kT=KT)(0.3, pooled)
    local = boltzmann_value_and_grad(loss, energies, bond, kT=KT, chunk_size=5)
    assert_trees_close(local(0.3, position, mask=mask), expected)
    mean = expectation(energies, bond, kT=KT)
    assert_trees_close(jax.grad(lambda k: loss(mean(k, position, mask=mask)))(0.3), expected[1])


def test_localized_with_one_neighborhood_of_all_atoms_is_global():
    position, atom_energies, _, bond = water_like()
    whole = localized(lambda k, x: neighborhood_energies(atom_energies(k, x), np.ones((1, 12), bool)))
    loss = lambda m: jnp.sum(m**2)  # noqa: E731
    expected = boltzmann_value_and_grad(loss, lambda k, x: jnp.sum(atom_energies(k, x)), bond, kT=KT)(0.3, position)
    actual = boltzmann_value_and_grad(loss, whole, lambda x: bond(x)[None], kT=KT)(0.3, position)
    assert_trees_close(actual, expected)


def test_non_finite_energies_are_named_and_excluded_only_if_asked():
    params, energy, observable, samples = vector_problem(20)
    spoilt = samples.at[jnp.array([3, 11])].set(jnp.inf)
    fn = boltzmann_value_and_grad(
        loss_of, energy, lambda x: observable(jnp.nan_to_num(x, posinf=0.0)), kT=KT, chunk_size=6
    )
    with pytest.raises(
        ValueError, match="energies of 2 samples are not finite, the first of them 3, 11: leave them out"
    ):
        fn(params, spoilt)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(jax.jit(fn)(params, spoilt)[1]))
    kept = np.delete(np.arange(20), [3, 11])
    excluding = boltzmann_value_and_grad(loss_of, energy, observable, kT=KT, excludes_non_finite=True, chunk_size=6)
    expected = boltzmann_value_and_grad(loss_of, energy, observable, kT=KT)(params, samples[kept])
    assert_trees_close(excluding(params, spoilt), expected)
    assert_trees_close(jax.jit(excluding)(params, spoilt), expected)


def test_rounding_of_the_mean_does_not_bring_in_the_mean_of_the_derivative():
    """∂U/∂k has a mean a hundred thousand times its spread, which has to drop out in float32 too."""
    x = np.random.default_rng(1).normal(size=2000)
    energy = lambda k, x: k * (1e5 + x)  # noqa: E731
    observable = lambda x: 1.0 + 0.1 * x  # noqa: E731
    exact = -0.1 * np.var(x, ddof=1) / KT
    samples = jnp.asarray(x, jnp.float32)
    gradient = boltzmann_grad(lambda m: m, energy, observable, kT=KT, chunk_size=7)(jnp.float32(1.0), samples)
    assert float(gradient) == pytest.approx(exact, rel=0.02)
    mean = expectation(energy, observable, kT=KT, chunk_size=7)
    assert float(jax.grad(mean)(jnp.float32(1.0), samples)) == pytest.approx(exact, rel=0.02)


def test_a_sample_with_one_neighborhood_that_is_not_finite_is_excluded_whole():
    samples = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)))
    fn = boltzmann_value_and_grad(
        jnp.sum, localized(lambda k, x: 0.5 * k * x**2), jnp.square, kT=KT, excludes_non_finite=True
    )
    excluded = fn(2.0, samples.at[4, 1].set(jnp.inf))
    assert_trees_close(excluded, fn(2.0, jnp.delete(samples, 4, axis=0)))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (
            "has to be a scalar, got shape .1,.: sum it",
            lambda x: expectation(lambda k, x: k * x[None], jnp.sin, kT=KT)(1.0, x),
        ),
        (
            "complex parameters are not supported",
            lambda x: expectation(lambda k, x: jnp.real(k) * x, jnp.sin, kT=KT)(1j, x),
        ),
        (
            "real floating-point parameters, got int32 at parameter 0.'a'.",
            lambda x: boltzmann_grad(jnp.sum, lambda k, x: k["a"] * x, jnp.sin, kT=KT)({"a": jnp.arange(1)[0]}, x),
        ),
        (
            "`argnums` has 1, but `samples` come after 1 parameters",
            lambda x: boltzmann_grad(jnp.sum, harmonic, jnp.sin, kT=KT, argnums=1)(1.0, x),
        ),
        ("must not be negative or NaN", lambda x: expectation(harmonic, jnp.sin, kT=KT)(1.0, x, weight=-jnp.ones(5))),
        (
            "`weight` needs shape .5,., got .4,.",
            lambda x: expectation(harmonic, jnp.sin, kT=KT)(1.0, x, weight=jnp.ones(4)),
        ),
        (
            "goes with one kT for each thermodynamic state, got only `state`",
            lambda x: expectation(harmonic, jnp.sin, kT=KT)(1.0, x, state=jnp.zeros(5, int)),
        ),
        (
            "goes with one kT for each thermodynamic state, got no `state`",
            lambda x: expectation(harmonic, jnp.sin, kT=[1.0, 2.0])(1.0, x),
        ),
        (
            "has to be from 0 to 1",
            lambda x: expectation(harmonic, jnp.sin, kT=[1.0, 2.0])(1.0, x, state=jnp.full(5, 2)),
        ),
        (
            "`state` needs integers of shape .5,., got shape .5,. of float32",
            lambda x: expectation(harmonic, jnp.sin, kT=[1.0, 2.0])(1.0, x, state=jnp.ones(5)),
        ),
        ("`kT` must be positive, got .1.0, -1.0.", lambda x: expectation(harmonic, jnp.sin, kT=[1.0, -1.0])),
        (
            "gives .neighborhood. for one sample, got shape ..",
            lambda x: expectation(localized(harmonic), jnp.sin, kT=KT)(1.0, x),
        ),
        (
            "need the 2 neighborhoods on axis 0, got shape .3,.",
            lambda x: expectation(localized(lambda k, x: k * jnp.ones(2)), lambda x: jnp.ones(3), kT=KT)(1.0, x),
        ),
    ],
)
def test_what_cannot_be_is_named(message, call):
    with pytest.raises(ValueError, match=message):
        call(jnp.arange(5.0))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from stablejax import boltzmann_value_and_grad
assert len(jax.devices()) == 8
energy = lambda p, x: p["k"] * jnp.sum(x**2) + p["c"] * jnp.sin(x[0])
options = dict(kT=0.7, chunk_size=3)
loss = lambda m: jnp.sum(m**2)
params, samples = {"k": jnp.float32(1.0), "c": jnp.float32(0.3)}, jax.random.normal(jax.random.key(0), (64, 3))
mask = jnp.arange(64) % 5 != 0
single = boltzmann_value_and_grad(loss, energy, jnp.cos, **options)(params, samples, mask=mask)
shared = boltzmann_value_and_grad(loss, energy, jnp.cos, axis_name="device", **options)
sharded = jax.shard_map(lambda p, x, m: shared(p, x, mask=m), mesh=Mesh(np.array(jax.devices()), ("device",)),
                        in_specs=(P(), P("device"), P("device")), out_specs=P(), check_vma=False)
for a, b in zip(jax.tree.leaves(jax.jit(sharded)(params, samples, mask)), jax.tree.leaves(single), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)
"""


def test_sharded_over_eight_devices_is_single():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, "-c", SHARDED], env=environment, check=True)


def estimates(fn, num_estimates=400, num=100, k=1.3, seed=20):
    """Of independent sets of samples, with their mean's distance from `exact` in standard errors."""
    values = np.asarray(jax.vmap(fn)(harmonic_samples(seed, (num_estimates, num), k)), float)
    return values, values.std(ddof=1) / np.sqrt(num_estimates)


OPTIONS = [{}, {"chunk_size": 30}]


@pytest.mark.parametrize("options", OPTIONS)
def test_an_observable_that_knows_the_parameters_has_both_terms(options):
    """⟨U⟩ = kT/2 whatever the stiffness; without ⟨∂g/∂θ⟩ its derivative would be −kT/2k."""
    mean = expectation(harmonic, parametric(harmonic), kT=KT, **options)
    for derivative in (jax.grad(mean), lambda k, s: jax.jvp(lambda k: mean(k, s), (k,), (1.0,))[1]):
        values, error = estimates(lambda s, d=derivative: d(1.3, s))
        assert abs(values.mean()) < 3.5 * error < 0.1 * KT / (2 * 1.3)
    loss = boltzmann_value_and_grad(lambda m: m, harmonic, parametric(harmonic), kT=KT, **options)
    samples = harmonic_samples(20, (100,), 1.3)
    np.testing.assert_allclose(loss(1.3, samples), (mean(1.3, samples), jax.grad(mean)(1.3, samples)), rtol=1e-4)


def test_the_virial_is_kT_for_any_parameters():
    """⟨x ∂U/∂x⟩ = kT, for an anharmonic well too: its derivative in both parameters is 0."""
    energy = lambda p, x: p["a"] * x**2 + p["b"] * x**4  # noqa: E731
    params = {"a": jnp.float32(0.4), "b": jnp.float32(0.3)}
    grid = jnp.linspace(-5, 5, 20001)
    weight = jax.nn.softmax(-energy(params, grid) / KT)
    samples = jax.random.choice(jax.random.key(5), grid, (400, 200), p=weight)
    virial = expectation(energy, parametric(lambda p, x: x * jax.grad(energy, argnums=1)(p, x)), kT=KT)
    means = np.asarray(jax.vmap(virial, (None, 0))(params, samples), float)
    assert means.mean() == pytest.approx(KT, abs=4 * means.std() / 20)
    for slope in jax.tree.leaves(jax.vmap(jax.grad(virial), (None, 0))(params, samples)):
        assert abs(float(slope.mean())) < 3.5 * float(slope.std()) / 20 < 0.1


def test_what_functions_close_over_is_differentiated_too():
    """Nothing is lost in silence: a traced value inside energy or observable is a parameter."""
    samples = harmonic_samples(6, (200,), 1.3)
    expected = jax.grad(expectation(harmonic, parametric(harmonic), kT=KT))(1.3, samples)
    by_closure = lambda k: expectation(harmonic, lambda x: harmonic(k, x), kT=KT)(k, samples)  # noqa: E731
    alone = lambda k: expectation(lambda x: harmonic(k, x), lambda x: harmonic(k, x), kT=KT)(samples)  # noqa: E731
    for fn in (by_closure, alone, jax.jit(by_closure)):
        assert float(jax.grad(fn)(1.3)) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


def test_parametric_terms_follow_masks_weights_states_and_neighborhoods():
    """Against the two sums written out."""
    rng = np.random.default_rng(0)
    samples, weight = rng.normal(size=(60, 3)), rng.uniform(0.5, 2.0, (60, 3))
    mask, state = rng.random((60, 3)) < 0.7, rng.integers(0, 2, 60)
    kT = np.array([0.7, 1.1])
    energies = lambda k, x: jnp.array([1.0, 2.0, 0.5]) * k * x**4  # noqa: E731
    observable = lambda k, x: jnp.sin(k * x)  # noqa: E731
    fit = boltzmann_value_and_grad(
        lambda m: m[0] - 2 * m[1], localized(energies), parametric(observable), kT=kT, chunk_size=7
    )
    value, gradient = fit(1.3, np.where(mask, samples, 5.0), mask=mask, weight=weight, state=state)
    means, slopes = [], []
    for s in (0, 1):
        p = weight * mask * (state == s)[:, None]
        p = p / p.sum()
        g, du, dg = np.sin(1.3 * samples), np.array([1.0, 2.0, 0.5]) * samples**4, samples * np.cos(1.3 * samples)
        mean = (p * g).sum()
        means.append(mean)
        slopes.append((p * dg).sum() - ((p * (g - mean) * du).sum() / (1 - (p**2).sum())) / kT[s])
    assert float(value) == pytest.approx(means[0] - 2 * means[1], rel=1e-4)
    assert float(gradient) == pytest.approx(slopes[0] - 2 * slopes[1], rel=1e-4)


def unlike(k, x):
    """Two kinds of neighborhoods: a well of one dimension, and far away one of two, which holds twice the energy."""
    return jnp.array([0.5 * k * x[0] ** 2, 0.5 * k * ((x[1] - 3.0) ** 2 + x[2] ** 2)])


def of_each(x):
    return x[:2] ** 2


def unlike_samples(num=20_000, k=1.3):
    normal = jax.random.normal(jax.random.key(7), (num, 3))
    return normal * jnp.sqrt(KT / k) + jnp.array([0.0, 3.0, 0.0])


@pytest.mark.parametrize("options", [{}, {"chunk_size": 3000}])
def test_kinds_of_neighborhoods_are_centered_apart(options):
    """Pooled, the difference of their means takes part in the covariance with the energy, and it is far off."""
    samples, group = unlike_samples(), np.array([0, 1])
    exact = -KT / 1.3**2
    apart = expectation(localized(unlike, num_groups=2), of_each, kT=KT, **options)
    np.testing.assert_allclose(apart(1.3, samples, group=group), [KT / 1.3, KT / 1.3 + 9], rtol=0.03)
    found = np.asarray(jax.jacrev(apart)(1.3, samples, group=group))
    np.testing.assert_allclose(found, exact, atol=0.08)
    fit = boltzmann_value_and_grad(jnp.sum, localized(unlike, num_groups=2), of_each, kT=KT, **options)
    each = jnp.broadcast_to(jnp.asarray(group), (len(samples), 2))
    assert float(fit(1.3, samples, group=each)[1]) == pytest.approx(found.sum(), rel=1e-3)
    pooled = float(jax.grad(expectation(localized(unlike), of_each, kT=KT))(1.3, samples))
    assert abs(pooled - exact) > 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "`group` goes with `num_groups` of `localized`, got no `group`"),
        ({"group": np.array([0, 2])}, "`group` has to be from 0 to 1"),
        ({"group": np.array([0.0, 1.0])}, "integers"),
    ],
)
def test_groups_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        expectation(localized(unlike, num_groups=2), of_each, kT=KT)(1.3, unlike_samples(10), **given)
    with pytest.raises(ValueError, match="`group` goes with `num_groups`"):
        expectation(localized(unlike), of_each, kT=KT)(1.3, unlike_samples(10), group=np.array([0, 1]))


@pytest.mark.parametrize("options", OPTIONS)
def test_crossed_halves_give_an_unbiased_gradient_of_a_loss_and_the_plain_form_does_not(options):
    """The residual and the covariance of the same samples are correlated: at N = 40 by a sixth of the gradient."""
    exact = 2 * (KT / 1.3 - 0.2) * -KT / 1.3**2
    forms = {
        crosses: boltzmann_value_and_grad(
            lambda m: (m - 0.2) ** 2, harmonic, jnp.square, kT=KT, crosses_halves=crosses, **options
        )
        for crosses in (False, True)
    }
    found = {
        crosses: estimates(lambda s, f=fit: f(1.3, s)[1], num_estimates=20_000, num=40)
        for crosses, fit in forms.items()
    }
    values, error = found[True]
    assert abs(values.mean() - exact) < 3.5 * error
    plain, plain_error = found[False]
    assert abs(plain.mean() - exact) > 10 * plain_error
    assert values.std() < 1.1 * plain.std()
    samples = harmonic_samples(20, (40,), 1.3)
    assert float(forms[True](1.3, samples)[0]) == pytest.approx(float(forms[False](1.3, samples)[0]), rel=1e-5)


def test_halves_are_what_the_caller_says():
    """Alternating samples, and a third of all, written out; the value is that of all of them."""
    samples = np.asarray(harmonic_samples(8, (40,), 1.3), float)
    fit = boltzmann_value_and_grad(lambda m: (m - 0.2) ** 2, harmonic, jnp.square, kT=KT, crosses_halves=True)
    for half in (np.arange(40) % 2, np.arange(40) % 3 // 2):
        mean = [np.mean(samples[half == h] ** 2) for h in (0, 1)]
        slope = [-np.cov(samples[half == h] ** 2, 0.5 * samples[half == h] ** 2)[0, 1] / KT for h in (0, 1)]
        expected = (mean[0] - 0.2) * slope[1] + (mean[1] - 0.2) * slope[0]
        value, gradient = fit(1.3, samples, half=half)
        assert float(gradient) == pytest.approx(expected, rel=1e-4)
        assert float(value) == pytest.approx((np.mean(samples**2) - 0.2) ** 2, rel=1e-4)
    with pytest.raises(ValueError, match="`half` goes with `crosses_halves`"):
        boltzmann_value_and_grad(jnp.square, harmonic, jnp.square, kT=KT)(1.3, samples, half=half)


def test_halves_are_those_of_all_devices():
    """The first and the second of all samples, wherever they are."""
    samples = harmonic_samples(8, (40,), 1.3)
    fit = partial(boltzmann_value_and_grad, lambda m: (m - 0.2) ** 2, harmonic, jnp.square, kT=KT, crosses_halves=True)
    value, slope = jax.vmap(partial(fit(axis_name="device"), 1.3), axis_name="device")(samples.reshape(4, 10))
    for device in range(4):
        assert_trees_close((value[device], slope[device]), fit()(1.3, samples))


def test_temperatures_are_those_of_their_states_where_there_are_groups_too():
    samples, state, group, kT = unlike_samples(60), np.arange(60) % 2, np.array([0, 1]), (0.7, 1.1)
    mean = partial(expectation, localized(unlike, num_groups=2), of_each)
    together = jax.jacrev(mean(kT=kT))(1.3, samples, state=state, group=group)
    for number in (0, 1):
        alone = jax.jacrev(mean(kT=kT[number]))(1.3, samples[state == number], group=group)
        np.testing.assert_allclose(together[number], alone, rtol=1e-4)


def test_temperature_may_be_traced_and_is_no_parameter():
    samples = harmonic_samples(9, (500,), 1.3)
    slope = lambda kT: jax.grad(expectation(harmonic, jnp.square, kT=kT))(1.3, samples)  # noqa: E731
    found = jax.jit(jax.vmap(slope))(jnp.array([0.7, 1.4]))
    np.testing.assert_allclose(found, [slope(0.7), slope(1.4)], rtol=1e-5)
    assert float(found[0]) == pytest.approx(2 * float(found[1]), rel=1e-5)


def test_second_derivatives_are_refused_instead_of_wrong():
    samples = harmonic_samples(10, (500,), 1.3)
    mean = expectation(harmonic, jnp.square, kT=KT)
    fit = boltzmann_value_and_grad(jnp.square, harmonic, jnp.square, kT=KT)
    for second in (jax.hessian(mean), jax.grad(jax.grad(mean)), jax.grad(lambda k, s: fit(k, s)[1])):
        with pytest.raises(ValueError, match="expected first derivatives only"):
            second(1.3, samples)


def test_numpy_samples_in_chunks_are_those_of_jax():
    samples = harmonic_samples(11, (50,), 1.3)
    fit = boltzmann_value_and_grad(jnp.square, harmonic, jnp.square, kT=KT, chunk_size=8)
    np.testing.assert_array_equal(fit(1.3, np.asarray(samples)), fit(1.3, samples))


def test_masks_are_boolean():
    with pytest.raises(ValueError, match="expected a boolean `mask`, got int"):
        expectation(harmonic, jnp.square, kT=KT)(1.3, harmonic_samples(0, (9,), 1.3), mask=np.arange(9))
