"""The model of an experiment, as its config names and sizes it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.data.loaders import Dataset
from stablejax import potential
from stablejax.models import basis, gemnet
from stablejax.models.nequip import NequIP
from stablejax.models.schnet import SchNet
from stablejax.space import all_pairs

NUM_FITTED = 8
"""Frames that the scale factors of GemNet-T are fitted to."""


def make(config: ConfigDict, dataset: Dataset, key: jax.Array) -> nn.Module:
    """The architecture that `config.model.name` names, for the elements and neighbors of the data.

    Raises:
      ValueError: there is none of that name.
    """
    name = config.model.name
    if name not in _MAKERS:
        raise ValueError(f"config.model.name has to be one of {', '.join(_MAKERS)}, got {name!r}.")
    return _MAKERS[name](config.model, dataset, key)


def _schnet(settings, dataset, key) -> SchNet:
    del dataset, key
    return SchNet(
        num_features=settings.num_features,
        num_filters=settings.num_filters,
        num_blocks=settings.num_blocks,
        gaussian_center=basis.equal_centers(settings.num_gaussians, cutoff=settings.cutoff_A),
        cutoff=settings.cutoff_A,
    )


def _nequip(settings, dataset, key) -> NequIP:
    del key
    return NequIP(
        elements=tuple(np.unique(dataset.species).tolist()),
        num_features=settings.num_features,
        num_layers=settings.num_layers,
        max_degree=settings.max_degree,
        num_basis=settings.num_basis,
        radial_widths=(settings.radial_width,) * 2,
        cutoff=settings.cutoff_A,
        num_neighbors=mean_neighbors(dataset, settings.cutoff_A),
    )


def _gemnet(settings, dataset, key) -> gemnet.GemNetT:
    model = gemnet.GemNetT(
        num_blocks=settings.num_blocks,
        atom_size=settings.atom_size,
        edge_size=settings.edge_size,
        triplet_size=settings.triplet_size,
        bilinear_size=settings.bilinear_size,
        num_degrees=settings.num_spherical,
        gaussian_center=basis.equal_centers(settings.num_radial, cutoff=1.0),
        cutoff=settings.cutoff_A,
    )
    return with_fitted_scales(model, dataset, key)


def with_fitted_scales(model: gemnet.GemNetT, dataset: Dataset, key: jax.Array) -> gemnet.GemNetT:
    """The model with scale factors fitted to the first frames of the data."""
    space = dataset.space
    params = jax.jit(potential.bind(model, dataset.species, space=space).init)(key)
    position, pairs = jnp.asarray(dataset.position[:NUM_FITTED], jnp.float32), all_pairs(len(dataset.species))
    vectors = jax.vmap(lambda x: space.vectors(x, pairs))(position)
    return gemnet.fit_scales(model, params, dataset.species, pairs, vectors)


_MAKERS: dict[str, Callable] = {"schnet": _schnet, "nequip": _nequip, "gemnet": _gemnet}


def mean_neighbors(dataset: Dataset, cutoff: float) -> float:
    """Mean number of atoms within the cutoff (Å) of an atom."""
    pairs, space = all_pairs(len(dataset.species)), dataset.space
    count = jax.jit(lambda x: jnp.sum(space.distances(x, pairs) < cutoff))
    return 2 * float(np.mean([count(x) for x in dataset.position])) / len(dataset.species)
