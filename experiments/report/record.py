"""The record of a run: one JSON object, one row per figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments import disk, provenance
from experiments.report.facts import Facts, Runs
from experiments.stages.evaluate import TEMPERATURE, Averages, Evaluation
from stablejax import metrics, survival, units
from stablejax.observables import transport

EARLY = "after, for as long as before"
"""Phase of the rows of `Evaluation.early`: what rows of the phase before are compared with."""


def make_record(facts: Facts, runs: Runs, wall_s: dict[str, float], *, course: Sequence[dict] | None = None) -> dict:
    """What was run, on which machine, and the results. A figure that is unknown is null.

    Args:
      facts: of the experiment.
      runs: what was measured.
      wall_s: seconds spent in each stage.
      course: of StABlE training, from which it is known how often learning went wrong. None: not recorded.
    """
    rows = measured_rows(facts, runs)
    rows.append({"metric": "mean_force_eV_per_A", "value": facts.mean_force, "unit": "eV/Å"})
    if course is not None:
        rows += _learning_rows(course)
    rows += [
        {"metric": "stage_wall_s", "stage": stage, "value": seconds, "unit": "s"} for stage, seconds in wall_s.items()
    ]
    record = {
        "name": f"{facts.name}_seed{facts.seed}",
        "config": facts.config,
        "num_reference": facts.num_reference,
        "energy_offset_eV": facts.energy_offset_eV,
        "wall_s": sum(wall_s.values()),
        "rows": rows,
    }
    return disk.finite(record | provenance.about())


def _learning_rows(course: Sequence[dict]) -> list[dict]:
    """How often parameters were taken back, and whether training was given up for it."""
    learning = [entry for entry in course if entry["phase"] == "learning"]
    first = [
        {"metric": "train_force_mae_eV_per_A", "value": entry["qm_force_mae_eV_per_A"], "unit": "eV/Å"}
        for entry in learning[:1]
    ]
    return first + [
        {"metric": "num_rollbacks", "value": max((entry["num_rollbacks"] for entry in learning), default=0)},
        {"metric": "learning_given_up", "value": int(any(entry["gives_up"] for entry in learning))},
    ]


def measured_rows(facts: Facts, runs: Runs) -> list[dict]:
    """What was measured before, after, and of both together. A figure that is unknown may not be finite.

    Args:
      facts: of the experiment.
      runs: what was measured.
    """
    rows = []
    for phase, run in (("before", runs.before), ("after", runs.after)):
        rows += [median_row(phase, run), *_phase_rows(facts, phase, run)]
        rows += _averages_rows(facts, phase, run.averages, runs.reference_motion)
        rows += transition_rows(phase, run.averages.motion, spacing_fs=facts.frame_spacing_fs)
        rows += diffusivity_rows(phase, run.averages.motion, spacing_fs=facts.frame_spacing_fs, fit_ps=facts.fit_ps)
    rows += _averages_rows(facts, EARLY, runs.after.early, runs.reference_motion)
    rows += transition_rows("reference", runs.reference_motion, spacing_fs=facts.frame_spacing_fs)
    rows += diffusivity_rows("reference", runs.reference_motion, spacing_fs=facts.frame_spacing_fs, fit_ps=facts.fit_ps)
    return rows + _comparison_rows(runs, facts.seed)


def median_row(phase: str, run: Evaluation) -> dict:
    """The median first passage, with its interval.

    Args:
      phase: before or after.
      run: what was measured.
    """
    median = survival.median_first_passage(run.first_passage_ps, run.is_unstable)
    return {
        "metric": "median_first_passage_ps",
        "phase": phase,
        "value": median.value,
        "low": median.low,
        "high": median.high,
        "unit": "ps",
        "censored": bool(median.is_censored),
        "replicas": len(run.is_unstable),
        "horizon_ps": float(run.horizon_ps),
    }


def _phase_rows(facts: Facts, phase: str, run: Evaluation) -> list[dict]:
    values = [
        ("mean_first_passage_ps", run.first_passage_ps.mean(), "ps"),
        ("fraction_unstable_at_horizon", run.is_unstable.mean(), None),
        ("num_quarantined", (~run.is_finite).sum(), None),
        ("energy_mae_meV_per_atom", 1000 * run.energy_mae / facts.num_atoms, "meV"),
        ("force_mae_eV_per_A", run.force_mae, "eV/Å"),
    ]
    return [_row(metric, phase, value, unit) for metric, value, unit in values]


def _averages_rows(facts: Facts, phase: str, averages: Averages, reference_motion: dict[str, np.ndarray]) -> list[dict]:
    """Temperature, errors of the structure and of the motion, with standard errors."""
    values: list[tuple[str, Any, str | None]] = [(TEMPERATURE, averages.temperature_K, "K")]
    for measure in facts.measures:
        error = measure.error_fn(averages.structure[measure.name], facts.structure_reference[measure.name])
        values.append((measure.metric, measure.factor * error, measure.unit))
    rows = [
        _row(metric, phase, value, unit) | {"error": float(averages.standard_error[metric])}
        for metric, value, unit in values
    ]
    return rows + _vacf_rows(phase, averages, reference_motion)


def _row(metric: str, phase: str, value, unit: str | None = None) -> dict:
    return {"metric": metric, "phase": phase, "value": float(value)} | ({"unit": unit} if unit else {})


def _vacf_rows(phase: str, averages: Averages, reference_motion: dict[str, np.ndarray]) -> list[dict]:
    if "vacf" not in reference_motion:
        return []
    errors = metrics.errors_of_replicas(averages.motion["vacf"], reference_motion["vacf"].mean(axis=0))
    if not len(errors):
        return []
    return [
        _row("vacf_mae", phase, errors.mean()) | {"replicas": len(errors)},
        _row("vacf_mae_std_over_replicas", phase, errors.std()),
    ]


def transition_rows(phase: str, motion: dict[str, np.ndarray], *, spacing_fs: float) -> list[dict]:
    """Transitions of torsions, mean over replicas or windows with its 95 % interval; nothing for a liquid.

    Args:
      phase: before, after or reference.
      motion: curves [replica, lag].
      spacing_fs: between frames.
    """
    if "torsion_transitions" not in motion:
        return []
    mean = metrics.mean_interval(motion["torsion_transitions"][:, 0] * 1000 / spacing_fs)
    if mean is None:
        return []
    interval = {"low": mean.low, "high": mean.high, "replicas": mean.num}
    return [_row("torsion_transitions_per_ps", phase, mean.value, "1/ps") | interval]


def diffusivity_rows(
    phase: str, motion: dict[str, np.ndarray], *, spacing_fs: float, fit_ps: tuple[float, float] | None
) -> list[dict]:
    """Means over replicas, or over windows of the reference, with 95 % intervals; nothing for a molecule.

    Args:
      phase: before, after or reference.
      motion: curves [replica, lag] of displacement (Å²) and velocity correlation.
      spacing_fs: between their lags.
      fit_ps: times between which displacements are linear.
    """
    if "msd" not in motion or fit_ps is None:
        return []
    by_displacement = transport.diffusivity_of_displacement(
        motion["msd"], spacing=spacing_fs / 1000, first=fit_ps[0], last=fit_ps[1]
    )
    by_velocity = transport.diffusivity_of_velocity(
        motion["velocity_correlation"], spacing=spacing_fs * units.FEMTOSECOND
    )
    found = {
        "diffusivity_1e-9_m2_per_s": by_displacement * units.SQUARE_ANGSTROM_PER_PICOSECOND,
        "diffusivity_green_kubo_1e-9_m2_per_s": by_velocity * units.SQUARE_ANGSTROM_PER_TIME,
    }
    rows = []
    for metric, values in found.items():
        if (mean := metrics.mean_interval(values)) is not None:
            interval = {"low": mean.low, "high": mean.high, "replicas": mean.num}
            rows.append(_row(metric, phase, mean.value, "1e-9 m²/s") | interval)
    return rows


def _comparison_rows(runs: Runs, seed: int) -> list[dict]:
    before, after = ((run.first_passage_ps, run.is_unstable) for run in (runs.before, runs.after))
    with np.errstate(divide="ignore", invalid="ignore"):
        change = float(np.divide(runs.after.force_mae, runs.before.force_mae) - 1)
    return [
        _ratio_row(before, after, seed),
        {"metric": "logrank_p", "value": survival.logrank_p(before, after)},
        {"metric": "force_mae_change", "value": change},
    ]


def _ratio_row(before, after, seed: int) -> dict:
    """A bound where one of the medians is a bound, and no number where both are."""
    ratio = survival.ratio_of_medians(before, after, seed=seed)
    bounds = {"value": ratio.value, "low": ratio.low, "high": ratio.high}
    return {"metric": "ratio_median_first_passage", "kind": ratio.kind} | bounds


def ratio_kind(is_before_censored: bool, is_after_censored: bool) -> str:
    """The kind of a ratio of medians: between its bounds, at least, at most, or unknown.

    Args:
      is_before_censored: whether the earlier median is a lower bound.
      is_after_censored: whether the later one is.
    """
    if is_before_censored:
        return "unknown" if is_after_censored else "at most"
    return "at least" if is_after_censored else "between"


def finder(record: dict) -> Callable[..., Any]:
    """`(metric, phase=None) -> ` the row of a record, or None.

    Args:
      record: any.
    """

    def find(metric: str, phase: str | None = None) -> Any:
        return next((r for r in record["rows"] if r["metric"] == metric and r.get("phase") == phase), None)

    return find
