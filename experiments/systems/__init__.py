"""From data to a problem, for each kind of system that a config may name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

if TYPE_CHECKING:
    from experiments.systems.base import System

KINDS = ("molecule", "liquid")
"""Modules of this package with a function `build(config)`."""


def build(config: ConfigDict, **options) -> System:
    """The system of the config, of the kind `config.system`.

    Args:
      config: of the experiment.
      options: of the `build` of that kind.

    Raises:
      ValueError: there is no such kind, or the data do not fit it.
    """
    if config.system not in KINDS:
        raise ValueError(f"config.system has to be one of {', '.join(KINDS)}, got {config.system!r}.")
    return import_module(f"experiments.systems.{config.system}").build(config, **options)
