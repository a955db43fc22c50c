"""Radial bases, envelopes and activations that models share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from stablejax.types import Array, Float

LOG_2 = 0.6931471824645996
"""log 2 rounded to float32, which trained SchNet weights assume in every precision."""


@jax.custom_jvp
def shifted_softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 + e^x) − log 2: SchNet's activation (Schütt et al. 2018), 0 at 0."""
    return jnp.maximum(x, 0) + jnp.log(1 + jnp.exp(-jnp.abs(x))) - LOG_2


@shifted_softplus.defjvp
def _shifted_softplus_jvp(primals, tangents):
    return shifted_softplus(*primals), jax.nn.sigmoid(primals[0]) * tangents[0]


def equal_centers(num: int, *, cutoff: float) -> tuple[float, ...]:
    """`num` equal steps from 0 to `cutoff`, Å, rounded to float32.

    Args:
      num: centers.
      cutoff: the last, Å.
    """
    return tuple(np.linspace(0.0, cutoff, num, dtype=np.float32).tolist())


def gaussian_basis(distance: Float[Array, "*shape"], center: tuple[float, ...]) -> Float[Array, "*shape basis"]:
    """exp(−(r − μ_k)² / 2Δ²) with Δ the first step between the centers.

    Args:
      distance: r, Å.
      center: μ_k, Å.
    """
    coefficient = -0.5 / (center[1] - center[0]) ** 2
    delta = distance[..., None] - jnp.asarray(center, distance.dtype)
    return jnp.exp(coefficient * delta * delta)


def cosine_envelope(distance: Float[Array, "*shape"], *, cutoff: float) -> Float[Array, "*shape"]:
    """½(cos(π r / cutoff) + 1) inside the cutoff and 0 outside: value and slope vanish at the cutoff.

    Args:
      distance: r, Å.
      cutoff: Å.
    """
    inside = 0.5 * (jnp.cos(jnp.pi * distance / cutoff) + 1.0)
    return jnp.where(distance < cutoff, inside, 0.0)


def bessel_basis(
    distance: Float[Array, "*shape"], frequency: Float[Array, " basis"], *, cutoff: float
) -> Float[Array, "*shape basis"]:
    """(2/cutoff) sin(w_k r / cutoff) / r (Gasteiger et al., ICLR 2020), finite at 0.

    Args:
      distance: r, Å.
      frequency: w_k, at first kπ.
      cutoff: Å.
    """
    scaled = frequency / cutoff
    return (2 / cutoff) * scaled * jnp.sinc(scaled * distance[..., None] / jnp.pi)


def polynomial_envelope(distance: Float[Array, "*shape"], *, cutoff: float, exponent: int) -> Float[Array, "*shape"]:
    """1 − (p+1)(p+2)/2 t^p + p(p+2) t^(p+1) − p(p+1)/2 t^(p+2) of t = r / cutoff, 0 outside (Gasteiger et al. 2020).

    Value, slope and curvature vanish at the cutoff.

    Args:
      distance: r, Å.
      cutoff: Å.
      exponent: p.
    """
    p, t = exponent, distance / cutoff
    inside = 1 - t**p * ((p + 1) * (p + 2) / 2 - t * (p * (p + 2) - t * (p * (p + 1) / 2)))
    return jnp.where(t < 1, inside, 0.0)
