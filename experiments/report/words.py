"""Figures of a record in words: bounds are stated as bounds, and unknown figures as unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments.report.record import finder, ratio_kind

SUMMARIZED = (
    ("h_r_mae", "h(r) MAE", "{:.4f}", " 1/Å"),
    ("rdf_oo_mae", "g(r) of OO, MAE", "{:.3f}", ""),
    ("diffusivity_1e-9_m2_per_s", "diffusivity", "{:.2f}", " 1e-9 m²/s"),
)
UNKNOWN = "unknown"


def summary(record: dict) -> list[str]:
    """The outcome in a few lines.

    Args:
      record: of an experiment.
    """
    find = finder(record)
    change = number(find("force_mae_change"), "{:+.0f} %", factor=100)
    parts = [f"force MAE: {_before_and_after(find, 'force_mae_eV_per_A', '{:.3f}')} eV/Å ({change})"]
    parts += [
        f"{label}: {_before_and_after(find, metric, form)}{unit}"
        for metric, label, form, unit in SUMMARIZED
        if find(metric, "before") and find(metric, "after")
    ]
    fails = [f"{phase}: {text}" for phase, text in record.get("what_fails", {}).items() if text]
    return [stability(find), "; ".join(parts), *_went_wrong(find), *fails, *filter(None, [record.get("advice", "")])]


def _went_wrong(find: Callable[..., Any]) -> list[str]:
    """Nothing for records without a fault, or from before it was recorded."""
    given_up, returns = find("learning_given_up"), find("num_rollbacks")
    if given_up is not None and given_up["value"]:
        return [f"learning went wrong and was given up after {returns['value']} returns to earlier parameters"]
    if returns is not None and returns["value"]:
        return [
            f"learning went wrong and went back to earlier parameters {returns['value']} times, with a smaller rate"
        ]
    return []


def stability(find: Callable[..., Any]) -> str:
    """Median stable times and how they compare.

    Args:
      find: see `finder`.
    """
    before, after = (with_interval(find("median_first_passage_ps", phase)) for phase in ("before", "after"))
    return f"median stable time: {before} ps before, {after} ps after: {_comparison(find)}"


def _before_and_after(find: Callable[..., Any], metric: str, form: str) -> str:
    return " -> ".join(number(find(metric, phase), form) for phase in ("before", "after"))


def _comparison(find: Callable[..., Any]) -> str:
    row, p = ratio_row(find), number(find("logrank_p"), "{:.1g}")
    if row["kind"] == "unknown":
        return f"the ratio is unknown, since fewer than half of the replicas failed in both (log-rank p = {p})"
    value = f"{'' if row['kind'] == 'between' else row['kind'] + ' '}{row['value']:.1f}"
    return f"{value} times as long (95 % confidence: {_bounds(row)}; log-rank p = {p})"


def _bounds(row: dict) -> str:
    """An interval, with the bounds that are known."""
    low, high = row["low"], None if row["kind"] == "at least" else row["high"]
    if row["kind"] == "at most" or low == 0:
        low = None
    if high is None:
        return "no bounds" if low is None else f"from {low:.1f}"
    return f"up to {high:.1f}" if low is None else f"{low:.1f} to {high:.1f}"


def ratio_row(find: Callable[..., Any]) -> dict:
    """The row of the ratio of medians with its `kind`, which older records leave to the medians.

    Args:
      find: see `finder`.
    """
    row = find("ratio_median_first_passage")
    if "kind" in row:
        return row
    return row | {
        "kind": ratio_kind(*(find("median_first_passage_ps", phase)["censored"] for phase in ("before", "after")))
    }


def with_ratio(find: Callable[..., Any]) -> str:
    """The ratio of medians with the bounds that are known.

    Args:
      find: see `finder`.
    """
    row = ratio_row(find)
    if row["kind"] == "unknown":
        return UNKNOWN
    return f"{'' if row['kind'] == 'between' else row['kind'] + ' '}{row['value']:.1f} ({_bounds(row)})"


def with_interval(row: dict) -> str:
    """A median with its interval; bounds at the horizon are marked.

    Args:
      row: of the median.
    """
    horizon = row["horizon_ps"]

    def bound(x):
        return f"over {horizon:g}" if x is None or x >= horizon else f"{x:.1f}"

    value = f"over {horizon:g}" if row["censored"] else f"{row['value']:.2f}"
    return f"{value} ({bound(row['low'])} to {bound(row['high'])})"


def with_error(row: dict, form: str) -> str:
    """A mean with half of its interval.

    Args:
      row: with an interval.
      form: of both numbers.
    """
    return f"{form.format(row['value'])} ± {form.format(row['high'] - row['value'])}"


def number(row: dict, form: str, *, factor: float = 1.0) -> str:
    """The value of a row.

    Args:
      row: any.
      form: of the number.
      factor: it is multiplied by.
    """
    return UNKNOWN if row["value"] is None else form.format(factor * row["value"])
