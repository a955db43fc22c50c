"""The paper's Figure 3 for one run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.report.facts import Facts, Runs
from stablejax import metrics, survival

matplotlib.use("Agg")
BEFORE, AFTER, REFERENCE = "#4477aa", "#ee7733", "#222222"
LEARNING = "#dddddd"


def figure_3(facts: Facts, runs: Runs, course: list[dict]) -> Figure:
    """Course of training, survival, structure and its difference from the reference, error of the VACF.

    Args:
      facts: of the experiment.
      runs: what was measured.
      course: of StABlE training, an entry per step.
    """
    rows = _panels(facts, runs, course)
    figure = Figure(figsize=(11, 4 * len(rows)), layout="constrained")
    name = iter("abcdefghijklmnopqrstuvwxyz")
    for panels, part in zip(rows, figure.subfigures(len(rows), 1, squeeze=False)[:, 0], strict=True):
        for draw, axis in zip(panels, part.subplots(1, len(panels), squeeze=False)[0], strict=True):
            draw(axis)
            title = axis.get_title()
            axis.set_title("")
            axis.set_title(f"({next(name)}) {title}", loc="left", fontsize=11)
            axis.spines[["top", "right"]].set_visible(False)
    return figure


def _panels(facts: Facts, runs: Runs, course: list[dict]) -> list[list[Callable]]:
    """Functions that draw the panels, row by row; each takes its axis."""
    before, after, reference = runs.before, runs.after, facts.structure_reference
    both = dict(before=before, after=after)
    profiles: list[Callable] = [
        partial(_profile, profile=profile, reference=reference, name=name, runs=(before, after))
        for name, profile in facts.profiles.items()
    ]
    motion: list[Callable] = [partial(_vacf_error, **both, reference=runs.reference_motion.get("vacf"))]
    if "msd" in before.averages.motion:
        spacing = facts.frame_spacing_fs / 1000
        motion.append(partial(_displacement, **both, reference=runs.reference_motion, spacing=spacing))
    rows: list[list[Callable]] = [[partial(_course, course=course), partial(_survival, **both)]]
    rows += [profiles + motion] if len(profiles) == 1 else [profiles, motion]
    if "ramachandran" in reference:
        maps = {"reference": reference, "before": before.averages.structure, "after": after.averages.structure}
        rows.append([partial(_ramachandran, title=title, density=part["ramachandran"]) for title, part in maps.items()])
    return rows


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


def _survival(axis, before, after):
    for run, color, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
        curve = survival.survival(run.first_passage_ps, run.is_unstable)
        time = np.append(curve.time, run.horizon_ps)
        low, stable, high = (100 * np.append(y, y[-1]) for y in (curve.low, curve.stable, curve.high))
        axis.fill_between(time, low, high, step="post", color=color, alpha=0.2, linewidth=0)
        axis.step(time, stable, where="post", color=color, label=f"{label} StABlE training")
    axis.axhline(50, color="#999999", linewidth=0.8, linestyle=":")
    axis.legend(frameon=False)
    longest = max(before.horizon_ps, after.horizon_ps)
    axis.set(title="replicas still stable", xlabel="time (ps)", ylabel="stable (%)", xlim=(0, longest), ylim=(0, 101))


def _profile(axis, profile, reference, name, runs):
    reference = reference[name]
    axis.plot(profile.x, reference, color=REFERENCE, label="reference", linewidth=1.2)
    inset = axis.inset_axes([0.52, 0.64, 0.47, 0.28])
    for run, color, label in zip(runs, (BEFORE, AFTER), ("before", "after"), strict=True):
        curve = run.averages.structure[name]
        axis.plot(profile.x, curve, color=color, label=label, linewidth=1, alpha=0.9)
        inset.plot(profile.x, curve - reference, color=color, linewidth=0.8)
    inset.set_title("difference from the reference", fontsize=8)
    inset.tick_params(labelsize=7)
    axis.legend(frameon=False, loc="upper left", fontsize=9)
    axis.set(title=profile.title, xlabel=profile.xlabel, ylabel=profile.ylabel, xlim=profile.xlim)
    axis.set_ylim(0, 1.6 * reference.max())
    inset.set_xlim(*profile.xlim)


def _ramachandran(axis, title, density):
    edges = np.linspace(-180, 180, len(density) + 1)
    axis.pcolormesh(edges, edges, np.sqrt(density.T), cmap="Greys", rasterized=True)
    ticks = [-180, -90, 0, 90, 180]
    axis.set(title=f"Ramachandran map, {title}", xlabel="φ (degrees)", ylabel="ψ (degrees)", xticks=ticks, yticks=ticks)
    axis.set_aspect("equal")


def _vacf_error(axis, before, after, reference):
    axis.set(title="error of the velocity autocorrelation", ylabel="mean absolute error")
    if reference is None:
        axis.text(0.5, 0.5, "the reference holds no consecutive velocities", ha="center", transform=axis.transAxes)
        return
    mean = reference.mean(axis=0)
    curves = (before.averages.motion["vacf"], after.averages.motion["vacf"], reference)
    groups = [metrics.errors_of_replicas(some, mean) for some in curves]
    labels = ["before", "after", "windows of\nthe reference"]
    shown = [(group, label) for group, label in zip(groups, labels, strict=True) if len(group)]
    axis.boxplot([group for group, _ in shown], tick_labels=[f"{label} ({len(group)})" for group, label in shown])
    axis.set_ylim(bottom=0)


def _displacement(axis, before, after, reference, spacing):
    curves = [(before.averages.motion["msd"], BEFORE, "before"), (after.averages.motion["msd"], AFTER, "after")]
    if "msd" in reference:
        curves.append((reference["msd"], REFERENCE, "reference"))
    whole = [(msd[np.isfinite(msd).all(axis=1)], color, label) for msd, color, label in curves]
    axis.set(title="mean squared displacement", xlabel="time (ps)", ylabel="Å²")
    if not any(len(msd) for msd, _, _ in whole):
        axis.text(0.5, 0.5, "no replica was stable for a whole window", ha="center", transform=axis.transAxes)
        return
    for msd, color, label in whole:
        if not len(msd):
            continue
        time, mean = spacing * np.arange(msd.shape[1]), msd.mean(axis=0)
        error = msd.std(axis=0, ddof=1) / np.sqrt(len(msd)) if len(msd) > 1 else np.zeros_like(mean)
        axis.fill_between(time, mean - 2 * error, mean + 2 * error, color=color, alpha=0.2, linewidth=0)
        axis.plot(time, mean, color=color, label=f"{label} ({len(msd)})", linewidth=1)
    axis.legend(frameon=False)
    axis.set(xlim=(0, None), ylim=(0, None))
