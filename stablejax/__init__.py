"""Stability-aware training of neural network interatomic potentials, in JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stablejax.boltzmann import boltzmann_grad, boltzmann_value_and_grad, expectation, localized

if TYPE_CHECKING:
    from stablejax.geometry import neighbor_lists
    from stablejax.losses import energy_and_force_loss, observable_loss
    from stablejax.models.gemnet import GemNetT
    from stablejax.models.nequip import NequIP
    from stablejax.models.schnet import SchNet
    from stablejax.potential import bind, energy_and_forces, exact_form, listed_form, tabulated_form
    from stablejax.pretrain import pretraining
    from stablejax.stable import stable_training

__all__ = [
    "GemNetT",
    "NequIP",
    "SchNet",
    "bind",
    "boltzmann_grad",
    "boltzmann_value_and_grad",
    "energy_and_force_loss",
    "energy_and_forces",
    "exact_form",
    "expectation",
    "listed_form",
    "localized",
    "neighbor_lists",
    "observable_loss",
    "pretraining",
    "stable_training",
    "tabulated_form",
]

# Imported when they are asked for: who wants the estimator alone needs neither Flax nor jax-md.
_MODULES = {
    "GemNetT": "models.gemnet",
    "NequIP": "models.nequip",
    "SchNet": "models.schnet",
    "bind": "potential",
    "energy_and_force_loss": "losses",
    "energy_and_forces": "potential",
    "exact_form": "potential",
    "listed_form": "potential",
    "neighbor_lists": "geometry",
    "observable_loss": "losses",
    "pretraining": "pretrain",
    "stable_training": "stable",
    "tabulated_form": "potential",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
