"""Models of other libraries as potentials: taken apart, refined, and compared with labels before they are believed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from stablejax import boltzmann_grad, units
from stablejax.agreement import agreement, check_agreement
from stablejax.energy_functions import from_energy
from stablejax.interfaces.modules import from_module
from stablejax.losses import Labeled

STIFFNESS = 3.0  # eV/Å²
START = jnp.array([[0.3, -0.2, 0.1], [0.0, 0.4, -0.5]])


class Linen(linen.Module):
    """½ k Σ x²."""

    @linen.compact
    def __call__(self, position):
        return 0.5 * self.param("stiffness", linen.initializers.constant(STIFFNESS), ()) * jnp.sum(position**2)


class Nnx(nnx.Module):
    """The same, with a count that is no parameter."""

    def __init__(self):
        self.stiffness, self.calls = nnx.Param(jnp.array(STIFFNESS)), nnx.Variable(jnp.array(0))

    def __call__(self, position):
        return 0.5 * self.stiffness[...] * jnp.sum(position**2)


def equinox_module():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")

    class Equinox(eqx.Module):
        stiffness: jax.Array
        order: np.ndarray  # of atoms, which is no parameter
        name: str = eqx.field(static=True)

        def __call__(self, position):
            return 0.5 * self.stiffness * jnp.sum(position[self.order] ** 2)

    return Equinox(jnp.array(STIFFNESS), np.array([1, 0]), "a well")


MODULES = {
    "linen": lambda: Linen().bind(Linen().init(jax.random.key(0), START)),
    "nnx": Nnx,
    "equinox": equinox_module,
    "a pytree": lambda: {"stiffness": jnp.array(STIFFNESS), "power": 2, "name": "a well"},
}


def energy(module, position):
    return (
        0.5 * module["stiffness"] * jnp.sum(position ** module["power"])
        if isinstance(module, dict)
        else module(position)
    )


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_a_potential_that_the_estimator_and_an_optimizer_take(name):
    potential, params = from_module(MODULES[name](), energy, num_atoms=2, offset=-5.0)
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [()] and potential.offset == -5.0
    np.testing.assert_allclose(potential.forces(params, START), -STIFFNESS * START, rtol=1e-6)
    samples = jax.random.normal(jax.random.key(1), (50, 2, 3))
    gradient = jax.jit(boltzmann_grad(lambda m: m, potential.energy, lambda x: jnp.sum(x**2), kT=0.5))(params, samples)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    update, _ = optax.sgd(0.1).update(gradient, optax.sgd(0.1).init(params))
    moved = optax.apply_updates(params, update)
    assert potential.energy(moved, START) > potential.energy(params, START)  # stiffer: Σ x² gets smaller


def test_units_of_the_module_are_converted():
    def in_its_units(module, position):  # hartree from bohr
        return energy(module, position * units.BOHR) / units.HARTREE

    potential, params = from_module(
        MODULES["a pytree"](), in_its_units, num_atoms=2, energy_unit=units.HARTREE, length_unit=units.BOHR
    )
    np.testing.assert_allclose(potential.forces(params, START), -STIFFNESS * START, rtol=1e-5)


def test_a_module_without_parameters_is_refused():
    for module in ({"name": "nothing"}, Linen()):
        with pytest.raises(ValueError, match="expected a module with floating-point arrays, got .* without any"):
            from_module(module, energy, num_atoms=2)


class TestAgreement:
    """`agreement` with labels of the well, and what is wrong in a sentence."""

    position = jax.random.normal(jax.random.key(2), (40, 2, 3)) * jnp.array([1.0, 0.5])[:, None]
    stiffness = jnp.array([STIFFNESS, 5 * STIFFNESS])[:, None]

    def frames(self):
        energy = 0.5 * jnp.sum(self.stiffness * self.position**2, axis=(1, 2))
        return Labeled(self.position, energy - 7.0, -self.stiffness * self.position)

    def found(self, factor=1.0, stretch=1.0, order=(0, 1)):
        stiffness = self.stiffness[jnp.array(order)]
        model = from_energy(lambda k, x: factor * 0.5 * jnp.sum(k * (stretch * x) ** 2), num_atoms=2)
        return agreement(model, stiffness, self.frames())

    def test_labels_of_the_model_itself_agree_up_to_a_shift(self):
        found = self.found(1.1)
        check_agreement(found)
        assert found[:4] == pytest.approx((1.0, 1.1, 1.0, 1.1), rel=1e-4)
        mean = float(self.frames().energy.mean())
        assert found.shift == pytest.approx(mean - 1.1 * (mean + 7.0), rel=1e-4)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"factor": -1.0}, r"forces that agree with the labels, got their negatives \(correlation -1.00\)"),
            ({"factor": 23.06}, "forces .* got 23.1 times as large ones: the model has kcal/mol for eV"),
            ({"factor": 1 / 27.2}, "got 0.0368 times as large ones: the model has hartree for eV"),
            ({"factor": 3.0}, "got 3 times as large ones: check the units of the model"),
            ({"factor": float("nan")}, "got some that are not finite"),
        ],
    )
    def test_what_does_not_agree_is_said(self, changes, message):
        with pytest.raises(ValueError, match=message):
            check_agreement(self.found(**changes))

    def test_atoms_in_another_order_do_not_agree(self):
        frames = self.frames()
        stiffness = self.stiffness
        model = from_energy(lambda k, x: 0.5 * jnp.sum(k * x[::-1] ** 2), num_atoms=2)
        shuffled = frames._replace(force=frames.force[:, ::-1], position=frames.position)
        with pytest.raises(ValueError, match="got a correlation of .*: check the order of atoms"):
            check_agreement(agreement(model, stiffness, shuffled))
