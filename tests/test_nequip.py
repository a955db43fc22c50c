"""NequIP against the released checkpoint, its paths, and its fast form."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import potential
from stablejax.models import nequip
from stablejax.models.nequip import NequIP
from stablejax.models.tensor_product import Irrep
from stablejax.space import periodic

ELEMENTS = (1, 6, 7, 8)


def released(shared):
    file = np.load(shared / "reference" / "nequip_ac_ala3_nhme_pretrained.npz")
    state = {name[6:]: file[name] for name in file if name.startswith("param/")}
    settings = json.loads(str(file["hyperparameters"]))
    return file, state, settings


def imported(state, settings):
    return nequip.from_torch(state, elements=ELEMENTS, num_neighbors=settings["avg_num_neighbors"])


def scale_and_shift(file, state):
    index = np.searchsorted(ELEMENTS, file["atomic_numbers"])
    by = float(state["scale_by"])
    parts = (by * state[f"per_species_rescale.{name}"].astype(float)[index] for name in ("scales", "shifts"))
    return tuple(parts)


@pytest.mark.parametrize(
    ("dtype", "energy_tolerance", "force_tolerance"), [(np.float32, 1e-4, 1e-4), (np.float64, 1e-9, 1e-8)]
)
def test_released_weights_give_their_energies_and_forces(dtype, energy_tolerance, force_tolerance, shared, x64):
    file, state, settings = released(shared)
    model, params = imported(state, settings)
    scale, shift = scale_and_shift(file, state)
    system = potential.bind(model, file["atomic_numbers"], scale=scale)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    position = jnp.asarray(file["positions"], dtype)
    atoms = jax.jit(jax.vmap(system.atom_energies, (None, 0)))(params, position)
    force = jax.jit(jax.vmap(potential.energy_and_forces(system.energy), (None, 0)))(params, position)[1]
    assert atoms.dtype == force.dtype == dtype
    assert np.abs(np.asarray(atoms, float) + shift - file["atom_energies"]).max() < energy_tolerance
    assert np.abs(force - file["forces"]).max() < force_tolerance


def test_parameter_count_is_the_papers():
    params = jax.eval_shape(potential.bind(NequIP(ELEMENTS), np.array([1, 6])).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 120_984


def test_paths_are_those_of_the_released_model(shared):
    settings = released(shared)[2]
    for layer, theirs in zip(NequIP(ELEMENTS).layers, settings["layers"], strict=True):
        harmonics = {"0e": 0, "1o": 1}
        expected = [(source, harmonics[second], target) for source, second, target, _ in theirs["tp"]]
        assert [(str(path.source), path.degree, str(path.target)) for path in layer.paths] == expected
        assert [str(irrep) for irrep in layer.gated] == theirs["gated"]


def test_import_names_what_is_wrong(shared):
    _, state, settings = released(shared)
    with pytest.raises(ValueError, match=r"expected 8192 numbers in `layer0_convnet\.conv\.sc\.weight`, got none"):
        imported({name: array for name, array in state.items() if name != "layer0_convnet.conv.sc.weight"}, settings)
    with pytest.raises(ValueError, match="got `module.x`"):
        imported(state | {"module.x": np.ones(1)}, settings)


@pytest.mark.parametrize("max_degree", [1, 2])
def test_tabulated_forces_are_the_exact_ones(max_degree):
    species = np.array([6, 8, 1, 1, 7, 1])
    model = NequIP(ELEMENTS, num_features=8, num_layers=2, max_degree=max_degree)
    options = {"space": periodic(11.0 * np.eye(3)), "scale": np.linspace(0.5, 2.0, 6)}
    system = potential.bind(model, species, **options)
    form = system.fast()
    params = jax.jit(system.init)(jax.random.key(0))
    position = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)) * 1.5, jnp.float32).at[0].add(11.0)
    energy, force = jax.jit(potential.energy_and_forces(system.energy))(params, position)
    fast = jax.jit(potential.energy_and_forces(form.prepared_energy))(jax.jit(form.prepare)(params), position)
    assert float(fast[0]) == pytest.approx(float(energy), abs=1e-5)
    assert np.abs(fast[1] - force).max() < 1e-4 * np.abs(force).max()


def test_gate_keeps_the_size_of_normal_features():
    """As e3nn scales activations; odd scalars are in no released model."""
    layer = nequip.layers(4, 1, has_parity=True)[3]
    assert Irrep(0, -1) in layer.targets
    key = jax.random.key(0)
    x = {
        irrep: jax.random.normal(
            jax.random.fold_in(key, index), (100_000, 2 * irrep.degree + 1, layer.num_out(irrep, 1))
        )
        for index, irrep in enumerate(layer.targets)
    }
    gated = nequip.Convolution(layer, num_features=1, radial_widths=(), num_neighbors=1.0)._gate(x)
    assert gated.keys() == x.keys()
    for feature in gated.values():
        assert float(jnp.mean(feature**2)) == pytest.approx(1.0, abs=0.02)
