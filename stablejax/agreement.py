"""Whether a potential agrees with labeled frames, and if not, in what: unit, sign, or order of atoms."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from stablejax import units
from stablejax.losses import Labeled
from stablejax.potential import Potential, energy_and_forces
from stablejax.types import Array, Float, Params

CORRELATED = 0.8
"""Correlation with the labels from which a potential describes the same system."""
NEAR_ONE = 0.3
"""Relative deviation of a slope that errors of a model and of the reference method may cause."""
RATIOS = {
    **{f"{name} for eV": 1 / factor for name, factor in units.ENERGY_UNITS.items() if name != "eV"},
    "hartree/bohr for eV/Å": units.BOHR / units.HARTREE,
    "kcal/mol/bohr for eV/Å": units.BOHR / units.KCAL_PER_MOL,
    "bohr for Å": units.BOHR,
}
"""What is taken for what, and how many times as large the result is."""


class Agreement(NamedTuple):
    """Of the predictions of a potential with labels."""

    force_correlation: float
    force_slope: float  # of predicted over labeled
    energy_correlation: float  # about the means
    energy_slope: float
    shift: float  # eV: mean of labeled less predicted, what the offset lacks


def agreement(potential: Potential, params: Params, frames: Labeled, *, batch_size: int = 8) -> Agreement:
    """Correlations and slopes of energies and forces.

    Args:
      potential: any.
      params: θ.
      frames: with labels relative to the potential's offset.
      batch_size: frames that are evaluated together.
    """
    model = energy_and_forces(potential.energy)

    @jax.jit
    def evaluate(params, position):
        return jax.lax.map(partial(model, params), position, batch_size=batch_size)

    energy, force = (np.asarray(one, float) for one in evaluate(params, frames.position))
    labels = np.asarray(frames.energy, float), np.asarray(frames.force, float)
    deviation, reference = energy - energy.mean(), labels[0] - labels[0].mean()
    return Agreement(
        *_fitted(force, labels[1]),
        *_fitted(deviation, reference),
        shift=float(labels[0].mean() - energy.mean()),
    )


def check_agreement(found: Agreement) -> None:
    """Refuse a potential that is not of the system, the units or the sign of the labels.

    Args:
      found: from `agreement`.

    Raises:
      ValueError: it is not, in one sentence that says in what.
    """
    _check("forces", found.force_correlation, found.force_slope)
    _check("energies", found.energy_correlation, found.energy_slope)


def _check(what: str, correlation: float, slope: float) -> None:
    start = f"`check_agreement`: expected {what} that agree with the labels, got"
    if not np.isfinite([correlation, slope]).all():
        raise ValueError(f"{start} some that are not finite: check the parameters and the dtype of the model.")
    if correlation < -CORRELATED:
        raise ValueError(f"{start} their negatives (correlation {correlation:.2f}): change the sign.")
    if correlation < CORRELATED:
        raise ValueError(
            f"{start} a correlation of {correlation:.2f}: check the order of atoms, the elements, the cell and the "
            "length unit that the model is given."
        )
    if abs(slope - 1) <= NEAR_ONE:
        return
    name, ratio = min(RATIOS.items(), key=lambda one: abs(np.log(one[1] / slope)))
    advice = f"the model has {name}" if abs(ratio / slope - 1) <= NEAR_ONE else "check the units of the model"
    raise ValueError(f"{start} {slope:.3g} times as large ones: {advice}.")


def _fitted(predicted: Float[Array, "..."], labels: Float[Array, "..."]) -> tuple[float, float]:
    """Correlation through the origin, and slope."""
    product = float(np.sum(predicted * labels))
    norms = float(np.sum(predicted**2)), float(np.sum(labels**2))
    return product / (norms[0] * norms[1]) ** 0.5 if all(norms) else np.nan, product / norms[1] if norms[1] else np.nan
