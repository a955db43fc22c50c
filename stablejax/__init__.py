"""Stability-aware training of neural network interatomic potentials, in JAX."""

from stablejax.boltzmann import boltzmann_grad, boltzmann_value_and_grad, expectation, localised
from stablejax.losses import energy_and_force_loss, observable_loss
from stablejax.models.schnet import SchNet
from stablejax.potential import bind, energy_and_forces, exact_form, tabulated_form
from stablejax.pretrain import pretraining
from stablejax.stable import stable_training

__all__ = [
    "SchNet",
    "bind",
    "boltzmann_grad",
    "boltzmann_value_and_grad",
    "energy_and_force_loss",
    "energy_and_forces",
    "exact_form",
    "expectation",
    "localised",
    "observable_loss",
    "pretraining",
    "stable_training",
    "tabulated_form",
]
