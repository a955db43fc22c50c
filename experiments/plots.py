"""The paper's Figure 3 for one run."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.evaluation import Evaluation
from stablejax import evaluate

matplotlib.use("Agg")
BEFORE, AFTER, REFERENCE = "#4477aa", "#ee7733", "#222222"
LEARNING = "#dddddd"


def figure_3(
    course: list[dict],
    before: Evaluation,
    after: Evaluation,
    *,
    distance_centre: np.ndarray,
    reference_h_r: np.ndarray,
    reference_vacf: np.ndarray | None,
    horizon_ps: float,
) -> Figure:
    """(a) course of training, (b) survival, (c) h(r) and its difference, (d) error of the VACF."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplot_mosaic([["a", "b"], ["c", "d"]])
    _course(axes["a"], course)
    _survival(axes["b"], before, after, horizon_ps)
    _distances(axes["c"], distance_centre, reference_h_r, before, after)
    _vacf_error(axes["d"], before, after, reference_vacf)
    for name, axis in axes.items():
        title = axis.get_title()
        axis.set_title("")
        axis.set_title(f"({name}) {title}", loc="left", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _course(axis, course):
    simulated = np.array([entry["simulated_ps"] for entry in course])
    unstable = 100 * np.array([entry["fraction_unstable"] for entry in course])
    is_learning = np.array([entry["phase"] == "learning" for entry in course])
    edges = np.concatenate([[0.0], simulated])
    for index in np.flatnonzero(is_learning):
        axis.axvspan(edges[index], edges[index + 1], color=LEARNING, linewidth=0)
    axis.plot(edges, np.concatenate([[0.0], unstable]), color=REFERENCE, marker=".", linewidth=1)
    axis.axvspan(np.nan, np.nan, facecolor=LEARNING, edgecolor="#999999", label="learning")
    axis.axvspan(np.nan, np.nan, facecolor="white", edgecolor="#999999", label="simulation")
    axis.legend(facecolor="white", framealpha=1, edgecolor="none")
    axis.set(title="course of StABlE training", xlabel="simulated time, all replicas (ps)", ylabel="unstable (%)")
    axis.set_ylim(0, 100)


def _survival(axis, before, after, horizon_ps):
    for run, colour, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
        curve = evaluate.survival(run.first_passage_ps, run.is_unstable)
        time = np.append(curve.time, horizon_ps)
        low, stable, high = (100 * np.append(y, y[-1]) for y in (curve.low, curve.stable, curve.high))
        axis.fill_between(time, low, high, step="post", color=colour, alpha=0.2, linewidth=0)
        axis.step(time, stable, where="post", color=colour, label=f"{label} StABlE training")
    axis.axhline(50, color="#999999", linewidth=0.8, linestyle=":")
    axis.legend(frameon=False)
    axis.set(
        title="replicas still stable", xlabel="time (ps)", ylabel="stable (%)", xlim=(0, horizon_ps), ylim=(0, 101)
    )


def _distances(axis, centre, reference, before, after):
    axis.plot(centre, reference, color=REFERENCE, label="reference", linewidth=1.2)
    inset = axis.inset_axes([0.52, 0.64, 0.47, 0.28])
    for run, colour, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
        axis.plot(centre, run.structure["h_r"], color=colour, label=label, linewidth=1, alpha=0.9)
        inset.plot(centre, run.structure["h_r"] - reference, color=colour, linewidth=0.8)
    inset.set_title("difference from the reference", fontsize=8)
    inset.tick_params(labelsize=7)
    axis.legend(frameon=False, loc="upper left", fontsize=9)
    axis.set(title="distribution of interatomic distances", xlabel="r (Å)", ylabel="h(r) (1/Å)", xlim=(0.5, 8))
    axis.set_ylim(0, 1.6 * reference.max())
    inset.set_xlim(0.5, 8)


def _vacf_error(axis, before, after, reference):
    axis.set(title="error of the velocity autocorrelation", ylabel="mean absolute error")
    if reference is None:
        axis.text(0.5, 0.5, "the reference holds no consecutive velocities", ha="center", transform=axis.transAxes)
        return
    mean = reference.mean(axis=0)
    groups = [vacf_errors(run, mean) for run in (before, after)] + [np.abs(reference - mean).mean(axis=1)]
    labels = ["before", "after", "windows of\nthe reference"]
    shown = [(group, label) for group, label in zip(groups, labels, strict=True) if len(group)]
    axis.boxplot([group for group, _ in shown], tick_labels=[f"{label} ({len(group)})" for group, label in shown])
    axis.set_ylim(bottom=0)


def vacf_errors(run: Evaluation, mean: np.ndarray) -> np.ndarray:
    """Mean absolute error of each replica that was stable for a whole window."""
    return np.abs(run.vacf - mean).mean(axis=1)[np.isfinite(run.vacf).all(axis=1)]
