"""The model of an experiment, by the name and sizes in its config."""

from __future__ import annotations

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.data.loaders import Dataset
from stablejax import named
from stablejax.models.protocol import ModelData


def make(config: ConfigDict, dataset: Dataset, key: jax.Array) -> nn.Module:
    """The model of `config.model`, for the data.

    Args:
      config: of the experiment.
      dataset: that the model is built for.
      key: see `stablejax.models.protocol.ModelData`.

    Raises:
      ValueError: there is none of that name, or it has other sizes.
    """
    # A config's fields have units in their names.
    sizes = {field.removesuffix("_A"): value for field, value in config.model.items() if field != "name"}
    if config.model.name not in named.MODELS:
        raise ValueError(f"config.model.name has to be one of {', '.join(named.MODELS)}, got {config.model.name!r}.")
    return named.make_model(config.model.name, model_data(dataset, key), sizes)


def model_data(dataset: Dataset, key: jax.Array) -> ModelData:
    """What a model may use of a data set.

    Args:
      dataset: that the model is built for.
      key: of the parameters that scale factors are fitted with.
    """
    return ModelData(dataset.species, dataset.position, dataset.space, key)
