"""What the compiled programs do, as XLA counts it: a guard that no machine's speed enters."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.data import atomic_masses

from experiments.benchmarks import models
from stablejax import Frame, bind, boltzmann_value_and_grad, integrators, localized, tabulate, units
from stablejax.observables import structure, transport
from stablejax.space import all_pairs

pytestmark = pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
KT = units.thermal_energy(500.0)


def cost(fn, *arguments):
    """Operations, bytes and instructions. Bodies of loops count once."""
    compiled = jax.jit(fn).lower(*arguments).compile()
    counted = compiled.cost_analysis()
    instructions = len(re.findall(r"^  (?:ROOT )?%?[\w.\-]+ = ", compiled.as_text(), re.MULTILINE))
    return {
        "Mflop": counted["flops"] / 1e6,
        "MB": counted["bytes accessed"] / 1e6,
        "instructions": instructions,
        "scatters": len(re.findall(r" scatter\(", compiled.as_text())),
    }


def md_step(system, name):
    """A step of Nosé–Hoover dynamics, thermostat included, in the form that is simulated."""
    case = models.SYSTEMS[system](1)
    potential = bind(models.build_model(name, case.species), case.species, space=case.space)
    form = potential.fast() if case.cell is None else potential.with_lists(skin=0.1, num_pairs=6500)
    params = jax.eval_shape(potential.init, jax.random.key(0))
    mass = jnp.asarray(atomic_masses[case.species], jnp.float32)
    times = dict(timestep=0.5 * units.FEMTOSECOND, damping_time=20 * units.FEMTOSECOND)
    engine = integrators.nose_hoover(form, mass, kT=KT, **times)
    prepared = jax.eval_shape(form.prepare, params)
    position = jax.ShapeDtypeStruct(case.position[0].shape, jnp.float32)
    listed = None if form.lists is None else jax.eval_shape(form.lists.init, position)
    state = jax.eval_shape(engine.init, jax.random.key(0), position, prepared, listed)
    return cost(engine.step, state, prepared, listed)


def learning_gradient(chunk_size):
    """The Boltzmann estimator's gradient of L_obs, SchNet and aspirin."""
    case = models.aspirin(1)
    potential = bind(models.build_model("schnet", case.species), case.species)
    center = structure.bin_centers(10.0, 0.02)
    observable = structure.interatomic_distances(all_pairs(len(case.species)), center, smearing=0.01)
    fn = boltzmann_value_and_grad(
        lambda mean: jnp.sum(mean**2),
        lambda params, frame: potential.energy(params, frame.position),
        observable,
        kT=KT,
        chunk_size=chunk_size,
    )
    params = jax.eval_shape(potential.init, jax.random.key(0))
    return cost(fn, params, Frame(jax.ShapeDtypeStruct((64, len(case.species), 3), jnp.float32)))


BOUNDS = {
    ("aspirin", "schnet"): {"Mflop": 9.5, "MB": 17.5, "instructions": 2000, "scatters": 4},
    ("peptide", "nequip"): {"Mflop": 34, "MB": 110, "instructions": 4000, "scatters": 32},
    ("water", "gemnet"): {"Mflop": 19_000, "MB": 5600, "instructions": 8400, "scatters": 18},
}


@pytest.mark.parametrize(("system", "name"), BOUNDS)
def test_md_step(system, name):
    check(md_step(system, name), BOUNDS[system, name])


def test_learning_gradient_of_a_chunk():
    check(learning_gradient(8), {"Mflop": 470, "MB": 190, "instructions": 5200, "scatters": 3})


def localized_gradient(params, position):
    energies = localized(lambda params, x: params * jnp.sum(x**2, axis=1))
    return boltzmann_value_and_grad(lambda mean: jnp.sum(mean**2), energies, jnp.abs, kT=KT)(params, position)


def tabulated_slope(params, distance):
    table = tabulate.radial_table(lambda r: jnp.sin(r[:, None] * params), cutoff=5.0, num_intervals=8)
    return jax.grad(lambda r: jnp.sum(tabulate.evaluate(table, r)))(distance)


def centers(position):
    return transport.molecule_centers(position, np.ones(4), np.array([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("fn", "shapes"),
    [(localized_gradient, [(2,), (8, 2, 3)]), (tabulated_slope, [(3,), (7,)]), (centers, [(4, 3)])],
)
def test_accelerators_are_asked_for_all_digits(fn, shapes):
    """They round the factors of products of matrices unless told otherwise: to 10 bits of float32, for one."""
    program = jax.jit(fn).lower(*(np.ones(shape, np.float32) for shape in shapes)).as_text()
    products = re.findall(r"dot_general .*", program)
    assert products and all("precision = [HIGHEST, HIGHEST]" in product for product in products)


def check(found, bounds):
    for what, most in bounds.items():
        assert found[what] <= most, f"{what}: {found[what]:.4g}, at most {most} so far"
        # A bound far above what is found would guard nothing.
        assert what == "scatters" or found[what] >= 0.6 * most, (
            f"{what}: {found[what]:.4g}, far under {most}: lower the bound"
        )
