"""Every model goes with every system: the config's model is replaced whole, and the experiment starts."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import pytest

from experiments import cli, systems
from stablejax import named

SMALL = {
    "schnet": dict(num_features=4, num_filters=4, num_blocks=1, num_gaussians=4),
    "nequip": dict(num_features=2, num_layers=1, radial_width=4),
    "gemnet": dict(num_blocks=1, atom_size=4, edge_size=4, triplet_size=4, bilinear_size=4, num_spherical=2),
}


SYSTEMS = ("aspirin", "ac_ala3_nhme", "water")
FAST = {("aspirin", "gemnet"), ("ac_ala3_nhme", "schnet"), ("water", "nequip")}  # every system and every model once
PAIRS = [
    pytest.param(*pair, marks=[] if pair in FAST else pytest.mark.slow)
    for pair in itertools.product(SYSTEMS, named.MODELS)
]


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_model_and_system_go_together(name, model):
    config = cli.load_config(str(cli.CONFIGS / f"{name}.py"), model=model)
    assert config.model.name == model
    config.model.update(SMALL.get(model, {}))
    potential = systems.build(config).problem.potential
    params = jax.eval_shape(potential.init, jax.random.key(0))
    position = jax.ShapeDtypeStruct((potential.num_atoms, 3), jnp.float32)
    assert jax.eval_shape(potential.fast(16).atom_energies, params, position).shape == (potential.num_atoms,)
    assert params["params"]
