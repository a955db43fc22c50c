"""What failed, what was gained and what it cost, and what to do where that was not enough: in one sentence each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.report.record import finder
from experiments.report.words import ratio_row

if TYPE_CHECKING:
    from ase import Atoms

MOST_ATOMS = 4
"""Of one failure that its atoms are named for."""
ENOUGH, SIGNIFICANT, DEAR = 4.0, 1e-3, 0.05
"""Times as long, log-rank p, and change of the force error, from which on there is something to advise."""
OVERFIT, COARSE = 0.5, 0.25
"""Force error on training frames over that on others, below which more frames would help; and force error over the
mean force, above which the potential is a coarse one."""
HOPELESS_PS = 0.1
"""Median stable time, below which a coarse potential is beyond repair."""


def diagnosed(record: dict, failures: Mapping[str, Sequence[Atoms]]) -> dict:
    """The record with what failed in each phase, and with advice.

    Args:
      record: of a run.
      failures: frames that were kept of the failures of each phase.
    """
    fails = {phase: what_fails(frames) for phase, frames in failures.items()}
    return record | {"what_fails": fails, "advice": advice(record)}


def what_fails(frames: Sequence[Atoms]) -> str:
    """Which atoms the failures are of, the most frequent first; empty where they are not of a few atoms.

    Args:
      frames: that were kept of failures.
    """
    at = [frame for frame in frames if frame.info.get("when") == "at"]
    found = Counter(name for frame in at if (name := _involved(frame)))
    if not found:
        return ""
    shown = ", ".join(f"{name} ({count})" for name, count in found.most_common(3))
    return f"of {len(at)} failures that were kept, most are of {shown}"


def _involved(frame: Atoms) -> str:
    index = [number for number, is_one in enumerate(frame.arrays["involved"]) if is_one]
    if not 0 < len(index) <= MOST_ATOMS:
        return ""
    return "-".join(f"{frame.get_chemical_symbols()[number]}{number}" for number in index)


def advice(record: dict) -> str:
    """What to do where stability was not gained, or was dear; empty where neither is so.

    Args:
      record: of a run.
    """
    find = finder(record)
    row, p = ratio_row(find), find("logrank_p")["value"]
    change = find("force_mae_change")["value"]
    is_gained = row["kind"] in ("between", "at least") and row["value"] >= ENOUGH and p is not None and p < SIGNIFICANT
    is_dear = change is not None and change > DEAR
    was_stable = find("median_first_passage_ps", "before")["censored"]
    if was_stable or (is_gained and not is_dear):
        return ""
    train, scale = find("train_force_mae_eV_per_A"), find("mean_force_eV_per_A")
    error = find("force_mae_eV_per_A", "before")["value"]
    what = "stability was dear" if is_gained else "little was gained"
    if train is None or scale is None or error is None:
        return what
    if train["value"] < OVERFIT * error:
        return (
            f"{what}, and the force error is {train['value']:.3f} eV/Å on training frames and {error:.3f} on others: "
            "more training frames would help most"
        )
    if error > COARSE * scale["value"]:
        return (
            f"{what}, and the force error is {100 * error / scale['value']:.0f} % of the mean force: a larger model, "
            "more frames or longer pretraining would help most"
        )
    return f"{what}: allow more cycles (config.stable.num_cycles) or a longer search (config.stable.max_simulation_ps)"


def beyond_repair(median_ps: float, force_mae: float, mean_force: float) -> str:
    """Said before StABlE training, of a potential that fails at once and is coarse; empty of others.

    Args:
      median_ps: stable time before.
      force_mae: on held-out frames, eV/Å.
      mean_force: their mean absolute component, eV/Å.
    """
    if median_ps >= HOPELESS_PS or force_mae <= COARSE * mean_force:
        return ""
    return (
        f"this potential fails within {median_ps:.2g} ps, and its force error is "
        f"{100 * force_mae / mean_force:.0f} % of the mean force: StABlE training is unlikely to repair it; more "
        "frames or a larger model come first"
    )
