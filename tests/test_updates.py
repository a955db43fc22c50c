"""Updates from one set of samples, once and several times."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stablejax import boltzmann_value_and_grad, updates
from stablejax.losses import Labeled, LabelErrors
from stablejax.reweighting import effective_sample_size, perturbation_weights
from stablejax.updates import Gradients, Reuse, Seen, by_optimizer, make_updates, weighted_sum

KT = 0.7
MASK = np.arange(60) % 6 != 0
NO_FRAMES = Labeled(np.zeros((0, 2, 3)), np.zeros(0), np.zeros((0, 2, 3)))


def energy(k, position):
    return 0.5 * k * jnp.sum(position**2)


def energies(k, position):
    return jax.vmap(energy, (None, 0))(k, position)


def observable_grad(k, position, mask, weight):
    transform = boltzmann_value_and_grad(lambda m: (m - 0.2) ** 2, energy, lambda x: jnp.mean(x**2), kT=KT)
    return transform(k, position, mask=mask, weight=weight)


def qm_loss(k, frames):
    return 0.01 * (k - 1.3) ** 2, LabelErrors(jnp.float32(0), jnp.float32(0))


def samples():
    position = jax.random.normal(jax.random.key(0), (60, 2, 3)) * jnp.sqrt(KT / 1.3)
    # What is masked would show: far out in every sum, at the origin in the weights.
    spoilt = jnp.where(np.arange(60) % 12 == 0, 1e3, 0.0)[:, None, None]
    return jnp.where(MASK[:, None, None], position, spoilt)


def make(optimizer, observable=observable_grad, qm=qm_loss, qm_weight=2.0, **reuse):
    gradients = Gradients(observable, jax.value_and_grad(qm, has_aux=True))
    again = Reuse(energies_fn=energies, kT=KT, **reuse) if reuse else None
    return make_updates(gradients, by_optimizer(optimizer, weighted_sum(qm_weight)), reuse=again)


def seen(mask=MASK):
    return Seen(samples(), mask, np.ones(60, bool), NO_FRAMES)


def step(rate, **reuse):
    made = make(optax.sgd(rate), **reuse)
    state, info = jax.jit(made.step)(made.init(jnp.float32(1.3)), jnp.float32(1), seen())
    return state.params, info


def by_hand(rate, num_updates):
    """The same with weights and sums written out."""
    k, fractions = 1.3, []
    for _ in range(num_updates):
        weight = perturbation_weights(energies(k, samples()), energies(1.3, samples()), kT=KT)
        fractions.append(float(effective_sample_size(weight, MASK) / MASK.sum()))
        gradient = observable_grad(k, samples(), MASK, weight)[1] + 2.0 * 0.02 * (k - 1.3)
        k = k - rate * gradient
    return k, fractions


@pytest.mark.parametrize("num_updates", [2, 5])
def test_reuse_is_several_steps_with_reweighted_samples(num_updates):
    k, info = step(0.5, max_updates=num_updates, min_effective_fraction=0.1)
    expected, fractions = by_hand(0.5, num_updates)
    assert int(info.num_updates) == num_updates
    assert float(k) == pytest.approx(float(expected), rel=1e-4)
    assert float(info.effective_fraction) == pytest.approx(fractions[-1], rel=1e-3)
    once, _ = step(0.5)
    assert abs(float(k) - 1.3) > 1.5 * abs(float(once) - 1.3)


def test_reuse_stops_where_the_samples_are_worth_too_little():
    many, info = step(2.0, max_updates=50, min_effective_fraction=0.8)
    assert float(info.effective_fraction) < 0.8
    num_updates = int(info.num_updates)
    assert 1 <= num_updates < 50
    expected, fractions = by_hand(2.0, num_updates)
    assert min(fractions) >= 0.8
    assert float(many) == pytest.approx(float(expected), rel=1e-4)


def test_masks_of_neighborhoods_are_reused_by_sample():
    """A sample counts where any of its neighborhoods does; weights are those of the energy of the whole sample."""
    made = make(optax.sgd(0.5), max_updates=3, min_effective_fraction=0.1)
    expected, plain = jax.jit(made.step)(made.init(jnp.float32(1.3)), jnp.float32(1), seen())

    def observable(k, position, mask, weight):
        assert mask.shape == (60, 2)
        return observable_grad(k, position, jnp.any(mask, axis=1), weight)

    made = make(optax.sgd(0.5), observable=observable, max_updates=3, min_effective_fraction=0.1)
    mask = np.stack([MASK, np.zeros(60, bool)], axis=1)
    found, info = jax.jit(made.step)(made.init(jnp.float32(1.3)), jnp.float32(1), seen(mask))
    assert float(found.params) == pytest.approx(float(expected.params), rel=1e-6)
    assert float(info.effective_fraction) == pytest.approx(float(plain.effective_fraction), rel=1e-6)


def test_without_reuse_it_is_one_step_and_says_what_it_saw():
    k, info = step(0.5)
    expected, _ = by_hand(0.5, 1)
    assert float(k) == pytest.approx(float(expected), rel=1e-5)
    assert (int(info.num_updates), float(info.effective_fraction)) == (1, 1.0)
    loss, gradient = observable_grad(1.3, samples(), MASK, np.ones(60))
    assert float(info.observable_loss) == pytest.approx(float(loss), rel=1e-5)
    assert float(info.observable_gradient_norm) == pytest.approx(abs(float(gradient)), rel=1e-5)
    qm_gradient = jax.grad(lambda k: qm_loss(k, None)[0])(1.3)
    assert float(info.qm_gradient_norm) == pytest.approx(abs(float(qm_gradient)), rel=1e-5, abs=1e-9)


def test_norms_are_those_of_each_gradient():
    """Of two parameters, so that a norm is not an entry, and L_QM's is not L_obs's."""
    known = jnp.float32(1), jnp.array([3.0, 4.0])

    def qm(params, frames):
        return jnp.sum(jnp.array([5.0, 12.0]) * params), LabelErrors(jnp.float32(0), jnp.float32(0))

    made = make(optax.sgd(0.1), observable=lambda *_: known, qm=qm)
    _, info = made.step(made.init(jnp.zeros(2)), jnp.float32(1), seen())
    assert (float(info.observable_gradient_norm), float(info.qm_gradient_norm)) == (5.0, 13.0)
    assert float(info.gradient_cosine) == pytest.approx(63 / 65)


def test_update_is_the_gradient_step_of_equation_seven():
    def qm(params, frames):
        return params**2, LabelErrors(jnp.float32(0), jnp.float32(0))

    made = make(optax.sgd(1e-3), observable=lambda *_: (jnp.float32(1), jnp.float32(3)), qm=qm, qm_weight=10.0)
    for rate_scale in (1.0, 0.5):
        state, _ = made.step(made.init(jnp.float32(5)), jnp.float32(rate_scale), seen())
        assert float(state.params) == pytest.approx(5.0 - rate_scale * 1e-3 * (3 + 10 * 2 * 5.0))


@pytest.mark.parametrize("reuse", [{}, {"max_updates": 4, "min_effective_fraction": 0.1}])
def test_a_gradient_that_is_not_finite_leaves_parameters_and_optimizer_and_ends_the_updates(reuse):
    """Adam's moments would stay NaN for good."""
    broken = lambda *_: (jnp.float32(jnp.nan), jnp.float32(jnp.nan))  # noqa: E731
    optimizer = optax.adam(0.1)
    good = make(optimizer)
    before, _ = good.step(good.init(jnp.float32(1.3)), jnp.float32(1), seen())
    made = make(optimizer, observable=broken, **reuse)
    after, info = jax.jit(made.step)(before, jnp.float32(1), seen())
    assert int(info.num_updates) == 0
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_an_update_that_is_not_finite_changes_nothing_either():
    made = make(optax.sgd(jnp.nan))
    state, info = made.step(made.init(jnp.float32(1.3)), jnp.float32(1), seen())
    assert (int(info.num_updates), float(state.params)) == (0, pytest.approx(1.3))


def test_clipped_sum_keeps_the_regularization():
    combine = updates.clipped_sum(10.0, max_norm=1.0)
    np.testing.assert_allclose(combine(jnp.array([300.0, 400.0]), jnp.array([0.1, 0.0])), [1.6, 0.8], rtol=1e-6)
