"""Why a simulation in which every replica failed did so, from what is known of it."""

from __future__ import annotations

import enum

FEW_STEPS = 10


class Cause(enum.Enum):
    """Why all replicas failed, in words."""

    STARTS = "all starts violate the criterion at step 0, before any dynamics"
    LOST = "all replicas were lost to states that are not finite"
    EARLY = "all replicas failed within the first few steps, so the temperature or the timestep is too large"
    POOR = "the potential is too poor to simulate"


def cause(*, num_replicas: int, num_violating: int, num_lost: int, most_steps: int) -> Cause:
    """The first cause that explains the failure of all replicas.

    Args:
      num_replicas: all of them failed.
      num_violating: whose start violates the criterion; see `dynamics.violates`.
      num_lost: whose state was not finite.
      most_steps: that any of them took.
    """
    if num_violating == num_replicas:
        return Cause.STARTS
    if num_lost == num_replicas:
        return Cause.LOST
    return Cause.EARLY if most_steps <= FEW_STEPS else Cause.POOR
