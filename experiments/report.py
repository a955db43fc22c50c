"""The record of a run and the page that a person opens. Figures on the page are drawn from the record."""

from __future__ import annotations

import base64
import html
import io
import math
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import plots, runtime
from experiments.evaluation import Evaluation
from experiments.systems import System
from stablejax import evaluate


def make_record(
    config: ConfigDict,
    system: System,
    before: Evaluation,
    after: Evaluation,
    reference_vacf: np.ndarray | None,
    wall_s: dict[str, float],
) -> dict:
    """One JSON object: what was run, on what, and one row per figure."""
    rows = []
    for phase, run in (("before", before), ("after", after)):
        rows += _phase_rows(config, system, phase, run, reference_vacf)
    times = [(run.first_passage_ps, run.is_unstable) for run in (before, after)]
    ratio = evaluate.ratio_of_medians(*times, seed=config.seed)
    rows.append(
        {
            "metric": "ratio_median_first_passage",
            "value": ratio.value,
            "low": ratio.low,
            "high": ratio.high,
            "censored": ratio.is_lower_bound,
        }
    )
    rows.append({"metric": "logrank_p", "value": evaluate.logrank_p(*times)})
    rows.append({"metric": "force_mae_change", "value": float(after.force_mae / before.force_mae - 1)})
    rows += [
        {"metric": "stage_wall_s", "stage": stage, "value": seconds, "unit": "s"} for stage, seconds in wall_s.items()
    ]
    return {
        "name": f"{config.name}_seed{config.seed}",
        "config": _public(config),
        "wall_s": sum(wall_s.values()),
        "rows": rows,
    } | runtime.about()


def _phase_rows(config, system, phase, run: Evaluation, reference_vacf) -> list[dict]:
    median = evaluate.median_first_passage(run.first_passage_ps, run.is_unstable)
    reference = system.structure_reference
    values = [
        ("mean_first_passage_ps", run.first_passage_ps.mean(), "ps"),
        ("fraction_unstable_at_horizon", run.is_unstable.mean(), None),
        ("num_quarantined", (~run.is_finite).sum(), None),
        ("energy_mae_meV_per_atom", 1000 * run.energy_mae / len(system.dataset.species), "meV"),
        ("force_mae_eV_per_A", run.force_mae, "eV/Å"),
        ("internal_temperature_K", run.temperature_K, "K"),
        ("h_r_mae", np.abs(run.structure["h_r"] - reference["h_r"]).mean(), "1/Å"),
        ("bond_length_mae_A", np.abs(run.structure["bond_length"] - reference["bond_length"]).mean(), "Å"),
        (
            "bond_angle_mae_degree",
            math.degrees(np.abs(run.structure["bond_angle"] - reference["bond_angle"]).mean()),
            "degree",
        ),
    ]
    if reference_vacf is not None:
        errors = plots.vacf_errors(run, reference_vacf.mean(axis=0))
        if len(errors):
            values.append(("vacf_mae", errors.mean(), None))
            values.append(("vacf_mae_std_over_replicas", errors.std(), None))
    rows = [
        {
            "metric": "median_first_passage_ps",
            "phase": phase,
            "value": median.value,
            "low": median.low,
            "high": median.high,
            "unit": "ps",
            "censored": median.is_censored,
            "replicas": len(run.is_unstable),
            "horizon_ps": config.evaluate.horizon_ps,
        }
    ]
    for metric, value, unit in values:
        rows.append({"metric": metric, "phase": phase, "value": float(value)} | ({"unit": unit} if unit else {}))
    return rows


def summary(record: dict) -> list[str]:
    """The outcome in a few lines."""
    find = finder(record)
    before, after = find("median_first_passage_ps", "before"), find("median_first_passage_ps", "after")
    ratio = find("ratio_median_first_passage")
    return [
        (
            f"median stable time: {with_interval(before)} ps before, {with_interval(after)} ps after: "
            f"{'at least ' if ratio['censored'] else ''}{ratio['value']:.1f} times longer "
            f"(95 % interval {ratio['low']:.1f} to {ratio['high']:.1f}, log-rank p = {find('logrank_p')['value']:.1g})"
        ),
        (
            f"force MAE: {find('force_mae_eV_per_A', 'before')['value']:.3f} -> "
            f"{find('force_mae_eV_per_A', 'after')['value']:.3f} eV/Å ({100 * find('force_mae_change')['value']:+.0f} %); "
            f"h(r) MAE: {find('h_r_mae', 'before')['value']:.4f} -> {find('h_r_mae', 'after')['value']:.4f} 1/Å"
        ),
    ]


def write_page(run_dir: Path, config, system, record, before, after, course, reference_vacf) -> Path:
    """`report.html`, self-contained, and `figure.png` beside it."""
    figure = plots.figure_3(
        course,
        before,
        after,
        distance_centre=system.distance_centre,
        reference_h_r=system.structure_reference["h_r"],
        reference_vacf=reference_vacf,
        horizon_ps=config.evaluate.horizon_ps,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    (run_dir / "figure.png").write_bytes(buffer.getvalue())
    page = PAGE.format(
        title=html.escape(f"{config.name}, seed {config.seed}"),
        summary="".join(f"<p>{html.escape(line)}</p>" for line in summary(record)),
        figure=base64.b64encode(buffer.getvalue()).decode(),
        criterion=html.escape(system.criterion_name),
        table=_table(record),
        stages=_stages(record),
        caption=html.escape(_caption(config, system)),
        config=html.escape(str(ConfigDict(record["config"]))),
        machine=html.escape(_ran_on(record)),
        command=html.escape(record["command"]),
    )
    path = run_dir / "report.html"
    path.write_text(page)
    return path


ROWS = (
    ("median_first_passage_ps", "median stable time (ps)", "{:.2f}"),
    ("mean_first_passage_ps", "mean stable time, censored at the horizon (ps)", "{:.2f}"),
    ("fraction_unstable_at_horizon", "fraction unstable at the horizon", "{:.2f}"),
    ("num_quarantined", "replicas stopped before a non-finite state", "{:.0f}"),
    ("energy_mae_meV_per_atom", "energy MAE, held-out frames (meV/atom)", "{:.2f}"),
    ("force_mae_eV_per_A", "force MAE, held-out frames (eV/Å)", "{:.4f}"),
    ("h_r_mae", "h(r) MAE (1/Å)", "{:.5f}"),
    ("bond_length_mae_A", "mean bond lengths, MAE (Å)", "{:.4f}"),
    ("bond_angle_mae_degree", "mean bond angles, MAE (degrees)", "{:.2f}"),
    ("vacf_mae", "VACF MAE, mean over replicas", "{:.4f}"),
    ("vacf_mae_std_over_replicas", "VACF MAE, standard deviation over replicas", "{:.4f}"),
    ("internal_temperature_K", "kinetic temperature while stable (K)", "{:.0f}"),
)


def _table(record) -> str:
    find = finder(record)
    lines = []
    for metric, label, form in ROWS:
        cells = []
        for phase in ("before", "after"):
            row = find(metric, phase)
            if row is None:
                cells.append("no replica was stable for a window")
            elif metric == "median_first_passage_ps":
                cells.append(with_interval(row))
            else:
                cells.append(form.format(row["value"]))
        lines.append(f"<tr><td>{label}</td><td>{html.escape(cells[0])}</td><td>{html.escape(cells[1])}</td></tr>")
    return "\n".join(lines)


def _stages(record) -> str:
    rows = [row for row in record["rows"] if row["metric"] == "stage_wall_s"]
    return "\n".join(f"<tr><td>{html.escape(row['stage'])}</td><td>{row['value']:.0f}</td></tr>" for row in rows)


def _ran_on(record) -> str:
    machine = record["machine"]
    place = f"{machine['cores']} cores of {machine['cpu']}"
    if machine["accelerator"]:
        place = f"{machine['devices']} × {machine['accelerator']}, {place}"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"{place}; {versions}; commit {record['commit']}"


def _caption(config, system) -> str:
    evaluation, stable = config.evaluate, config.stable
    return (
        f"(a) {stable.num_replicas} replicas; unstable means {config.stability.train_threshold_A:g} Å in training. "
        f"(b) {evaluation.num_replicas} replicas from held-out starts, the same starts and random numbers before and after, "
        f"looked at after every step; Kaplan-Meier with 95 % pointwise band; {system.criterion_name} is unstable. "
        f"(c) over the stable frames of (b), all {len(system.dataset.position)} frames of the data set as the reference. "
        "(d) one value per replica of (b) that was stable for a whole window; in brackets how many."
    )


def with_interval(row: dict) -> str:
    """A median with its interval, bounds at the horizon said as such."""
    horizon = row["horizon_ps"]
    bound = lambda x: f"{x:.1f}" if x < horizon else f"over {horizon:g}"  # noqa: E731
    value = f"over {horizon:g}" if row["censored"] else f"{row['value']:.2f}"
    return f"{value} ({bound(row['low'])} to {bound(row['high'])})"


def finder(record: dict):
    """`(metric, phase=None) -> ` the row of a record, or None."""

    def find(metric: str, phase: str | None = None) -> dict | None:
        return next((r for r in record["rows"] if r["metric"] == metric and r.get("phase") == phase), None)

    return find


def _public(config: ConfigDict) -> dict:
    """The config without where things lie on this machine."""
    public = config.copy_and_resolve_references()
    with public.unlocked():
        del public.run_dir
        public.data.path = Path(public.data.path).name
    return public.to_dict()


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>StABlE training: {title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
img {{ width: 100%; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
td, th {{ padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }}
pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 13px; }}
.caption {{ color: #555; font-size: 14px; }}
</style></head><body>
<h1>StABlE training: {title}</h1>
{summary}
<img alt="Figure 3: course of training, survival, distances, velocity autocorrelation" src="data:image/png;base64,{figure}">
<p class="caption">{caption}</p>
<h2>Before and after</h2>
<table><tr><th></th><th>before</th><th>after</th></tr>
{table}
</table>
<p>A replica is unstable when {criterion}. Intervals are at 95 %.</p>
<h2>Time spent</h2>
<table><tr><th>stage</th><th>seconds</th></tr>
{stages}
</table>
<h2>How it was run</h2>
<pre>{command}</pre>
<p>{machine}</p>
<pre>{config}</pre>
</body></html>
"""
