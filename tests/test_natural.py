"""Natural-gradient steps against the matrices written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import natural, parallel
from stablejax.losses import Labeled, LabelErrors
from stablejax.natural import Anchors, Scale, TrustRegion, natural_gradient
from stablejax.parallel import Execution
from stablejax.types import Frame
from stablejax.updates import Evaluated, Seen

NUM_SAMPLES, NUM_STATIC = 24, 5
SCALE = Scale(np.array(0.3), np.array(0.7), np.array(0.1))
PARAMS = {"linear": np.array([0.3, -0.2, 0.5]), "bent": np.array([0.4, 0.1])}


def energy(params, position):
    distance = jnp.sqrt(jnp.sum((position[0] - position[1]) ** 2))
    powers = jnp.stack([distance, distance**2, distance**3])
    return jnp.sum(params["linear"] * powers) + params["bent"][0] * jnp.exp(params["bent"][1] * distance)


def positions(number, seed):
    return jax.random.normal(jax.random.key(seed), (number, 2, 3))


def matrix(anchors, scale):
    """G, and the Jacobians of energies [frame, parameter] and forces [frame, 6, parameter]."""
    flat, unravel = jax.flatten_util.ravel_pytree(PARAMS)

    def both(flat, position):
        energy_, gradient = jax.value_and_grad(energy, argnums=1)(unravel(flat), position)
        return energy_, -gradient.reshape(-1)

    du, df = jax.vmap(jax.jacfwd(both), (None, 0))(flat, anchors.position)
    weight = anchors.weight
    G = 4 * jnp.einsum("i,ip,iq->pq", weight, du, du) / scale.energy**2
    G += jnp.einsum("i,ifp,ifq->pq", weight, df, df) / 6 / scale.force**2
    return np.asarray(G), np.asarray(du), np.asarray(df)


def static_loss(frames, params=PARAMS):
    """L_σ and its gradient, from single frames."""
    flat_, unravel = jax.flatten_util.ravel_pytree(params)

    def loss(flat_):
        of_forces, shift = 0.0, 0.0
        for position, label, force in zip(*frames, strict=True):
            energy_, gradient = jax.value_and_grad(energy, argnums=1)(unravel(flat_), position)
            of_forces += jnp.mean(((-gradient - force) / SCALE.force) ** 2) / len(frames.energy)
            shift += (energy_ - label) / SCALE.energy / len(frames.energy)
        return of_forces + 10 * shift**2

    value, gradient = jax.value_and_grad(loss)(flat_)
    return float(value), np.asarray(gradient)


def scale_with(factor):
    """The units, with L_σ at the start that is so many times that of the parameters."""
    return SCALE._replace(loss=factor * np.array(static_loss(seen().frames)[0]))


def flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])


def evaluated(has_observable=True):
    observable = {"linear": np.array([1.0, -2.0, 0.5]), "bent": np.array([0.3, 0.7])}
    qm = {"linear": np.array([-0.2, -0.1, 0.4]), "bent": np.array([0.1, -0.05])}
    errors = LabelErrors(SCALE.energy, SCALE.force)
    return Evaluated(np.array(1.0), observable, np.array(0.1), errors, qm, np.array(has_observable))


def seen(mask=None, is_stable=None):
    every = np.ones(NUM_SAMPLES, bool)
    static = positions(NUM_STATIC, 1)
    samples = Frame(positions(NUM_SAMPLES, 2))
    frames = Labeled(static, jnp.full(NUM_STATIC, -5.0), jnp.zeros_like(static))
    return Seen(samples, every if mask is None else mask, every if is_stable is None else is_stable, frames)


def step(settings, evaluated_=None, rate_scale=1.0, state=None, prepared=False, **given):
    of_prepared = {"energy_fn": energy}
    if prepared:
        of_prepared = {
            "energy_fn": lambda twice, position: energy(jax.tree.map(lambda x: x / 2, twice), position),
            "prepare": lambda params: jax.tree.map(lambda x: 2 * x, params),
        }
    rule = natural_gradient(settings=settings, execution=Execution(), **of_prepared)
    state = rule.init(PARAMS) if state is None else state
    return jax.jit(rule.step)(state, PARAMS, evaluated_ or evaluated(), seen(**given), np.array(rate_scale))


@pytest.mark.parametrize("chunk_size", [None, 4, 16])
@pytest.mark.parametrize("has_mesh", [False, True])
def test_product_is_that_of_the_matrix(chunk_size, has_mesh, x64):
    mesh = parallel.replica_mesh() if has_mesh else None
    weight = jax.random.uniform(jax.random.key(3), (14,))
    anchors = Anchors(positions(14, 0), weight / weight.sum())
    direction = {"linear": np.array([1.0, 2.0, -1.0]), "bent": np.array([0.5, -0.3])}
    metric = natural.gauss_newton(energy, execution=Execution(mesh=mesh, chunk_size=chunk_size))
    found = jax.jit(metric.product)(PARAMS, anchors, SCALE, direction)
    change = jax.jit(metric.change)(PARAMS, anchors, direction)
    G, du, df = matrix(anchors, SCALE)
    np.testing.assert_allclose(flat(found), G @ flat(direction), rtol=1e-6)
    weight = np.asarray(anchors.weight)
    assert float(change.energy) == pytest.approx(np.sqrt(np.sum(weight * (du @ flat(direction)) ** 2)), rel=1e-6)
    per_frame = np.mean((df @ flat(direction)) ** 2, axis=1)
    assert float(change.force) == pytest.approx(np.sqrt(np.sum(weight * per_frame)), rel=1e-6)


def by_hand(settings, evaluated_, scale, **given):
    """The step with all matrices written out."""
    anchors = natural.choose_anchors(seen(**given), settings.num_anchors)
    G, du, df = matrix(anchors, scale)
    frames = seen(**given).frames
    loss, q = static_loss(frames)
    g = flat(evaluated_.observable_gradient)
    damped = G + settings.damping * (g @ G @ g) / (g @ g) * np.eye(len(g))
    toward, back = np.linalg.solve(damped, g), np.linalg.solve(damped, q)
    weight = np.asarray(anchors.weight)
    start, unravel = jax.flatten_util.ravel_pytree(PARAMS)

    def length_of(d):
        change_u = 2 * np.sqrt(np.sum(weight * (du @ d) ** 2)) / scale.energy
        change_f = np.sqrt(np.sum(weight * np.mean((df @ d) ** 2, axis=1))) / scale.force
        return settings.max_change / max(change_u, change_f)

    bound = settings.max_qm_loss * scale.loss
    change, multiplier = -length_of(toward) * toward, 0
    if static_loss(frames, unravel(start + change))[0] <= bound:
        return change, multiplier
    excess = loss - bound
    for _ in range(natural.NUM_ATTEMPTS):
        multiplier = max((excess / length_of(toward) - q @ toward) / (q @ back), 0)
        d = toward + multiplier * back
        change = -length_of(d) * d
        excess += max(static_loss(frames, unravel(start + change))[0] - bound, 0)
    return change, multiplier


EXACT = TrustRegion(max_change=0.1, damping=0.1, num_iterations=20, num_anchors=13)


@pytest.mark.parametrize("first", [3.0, 0.5, 0.3])
def test_step_is_the_solution_of_the_equations(first, x64):
    """Far below the bound of L_σ, where the multiplier is 0, and above it."""
    scale = scale_with(first)
    found = step(EXACT, state=scale)
    expected, multiplier = by_hand(EXACT, evaluated(), scale)
    assert (multiplier > 0) == (first < 3)
    np.testing.assert_allclose(flat(found.change), expected, rtol=1e-5)


def test_units_and_bound_are_those_of_the_first_step():
    made = step(EXACT)
    expected = [float(SCALE.energy), float(SCALE.force), static_loss(seen().frames)[0]]
    np.testing.assert_allclose(flat(made.state), np.array(expected), rtol=1e-5)
    worse = LabelErrors(2 * SCALE.energy, 2 * SCALE.force)
    again = step(EXACT, evaluated()._replace(qm_errors=worse), state=made.state)
    np.testing.assert_allclose(flat(again.state), np.array(expected), rtol=1e-5)


@pytest.mark.parametrize("rate_scale", [1.0, 0.25])
def test_changes_on_the_anchors_reach_the_bound_and_are_reported(rate_scale):
    made = step(EXACT, rate_scale=rate_scale)
    relative = 2 * float(made.energy_change / SCALE.energy), float(made.force_change / SCALE.force)
    assert max(relative) == pytest.approx(0.1 * rate_scale, rel=1e-5)
    G, du, df = matrix(natural.choose_anchors(seen(), EXACT.num_anchors), SCALE)
    change = flat(made.change)
    assert float(made.energy_change) == pytest.approx(np.sqrt(np.mean((du @ change) ** 2)), rel=1e-3)
    assert float(made.force_change) == pytest.approx(np.sqrt(np.mean((df @ change) ** 2)), rel=1e-3)


def test_loss_of_the_static_set_does_not_rise_above_its_bound():
    first, q = static_loss(seen().frames)
    toward = evaluated()
    if q @ flat(step(EXACT._replace(max_qm_loss=100.0)).change) < 0:
        toward = toward._replace(observable_gradient=jax.tree.map(np.negative, toward.observable_gradient))
    free, bound = step(EXACT._replace(max_qm_loss=100.0), toward), step(EXACT, toward)
    assert q @ flat(free.change) > 1e-3
    moved = [jax.tree.map(np.add, PARAMS, made.change) for made in (free, bound)]
    above, below = (static_loss(seen().frames, one)[0] - first for one in moved)
    assert above > 0 and -0.1 * above < below <= 0
    assert flat(toward.observable_gradient) @ flat(bound.change) < 0


def test_steps_are_the_same_of_what_is_prepared_from_the_parameters():
    made, again = step(EXACT), step(EXACT, prepared=True)
    np.testing.assert_allclose(flat(again.change), flat(made.change), rtol=1e-5)


def test_without_an_observable_nothing_changes():
    broken = evaluated(has_observable=False)
    nan = jax.tree.map(lambda leaf: leaf * jnp.nan, broken.observable_gradient)
    made = step(EXACT, broken._replace(observable_gradient=nan))
    assert not np.any(flat(made.change))


def test_anchors_are_static_frames_and_samples_that_count_of_stable_replicas():
    mask, is_stable = np.arange(NUM_SAMPLES) % 2 == 0, np.arange(NUM_SAMPLES) < 18
    given = seen(np.stack([mask, np.zeros_like(mask)], axis=1), is_stable)
    for num, num_static, expected in ((13, 5, [0, 2, 4, 6, 8, 10, 12, 14]), (6, 3, [0, 6, 12])):
        anchors = natural.choose_anchors(given, num, multiple_of=6)
        np.testing.assert_array_equal(anchors.position[:num_static], given.frames.position[:num_static])
        samples = anchors.position[num_static:num]
        chosen = [int(np.flatnonzero(np.all(given.samples.position == x, axis=(1, 2)))[0]) for x in samples]
        assert chosen == expected
        np.testing.assert_allclose(anchors.weight, [1 / num] * num + [0] * (-num % 6), rtol=1e-6)


def test_where_no_replica_is_stable_the_static_frames_are_the_anchors():
    anchors = natural.choose_anchors(seen(is_stable=np.zeros(NUM_SAMPLES, bool)), 10)
    np.testing.assert_allclose(anchors.weight, [1 / 5] * 5 + [0] * 5, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"max_change": 0.0}, {"max_qm_loss": -1.0}, {"num_anchors": 1}, {"damping": 0.0}, {"num_iterations": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="`TrustRegion`: expected max_change > 0"):
        natural_gradient(energy, TrustRegion(**wrong), execution=Execution())
