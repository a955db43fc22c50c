"""The record of a run and the page that a person opens. Figures on the page are drawn from the record."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from experiments import plots, runtime
from experiments.evaluation import Evaluation
from experiments.systems import System
from stablejax import survival, units
from stablejax.observables import transport

SQUARE_ANGSTROM_PER_PS = 10.0
"""In 1e-9 m²/s."""


def make_record(
    config: ConfigDict,
    system: System,
    before: Evaluation,
    after: Evaluation,
    reference_motion: dict[str, np.ndarray],
    wall_s: dict[str, float],
) -> dict:
    """One JSON object: what was run, on what, and one row per figure."""
    rows = []
    for phase, run in (("before", before), ("after", after)):
        rows += _phase_rows(config, system, phase, run, reference_motion)
        rows += diffusivity_rows(config, phase, run.motion)
    rows += diffusivity_rows(config, "reference", reference_motion)
    times = [(run.first_passage_ps, run.is_unstable) for run in (before, after)]
    ratio = survival.ratio_of_medians(*times, seed=config.seed)
    rows.append(
        {
            "metric": "ratio_median_first_passage",
            "value": ratio.value,
            "low": ratio.low,
            "high": ratio.high,
            "censored": ratio.is_lower_bound,
        }
    )
    rows.append({"metric": "logrank_p", "value": survival.logrank_p(*times)})
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


def _phase_rows(config, system, phase, run: Evaluation, reference_motion) -> list[dict]:
    median = survival.median_first_passage(run.first_passage_ps, run.is_unstable)
    values = [
        ("mean_first_passage_ps", run.first_passage_ps.mean(), "ps"),
        ("fraction_unstable_at_horizon", run.is_unstable.mean(), None),
        ("num_quarantined", (~run.is_finite).sum(), None),
        ("energy_mae_meV_per_atom", 1000 * run.energy_mae / len(system.dataset.species), "meV"),
        ("force_mae_eV_per_A", run.force_mae, "eV/Å"),
        ("internal_temperature_K", run.temperature_K, "K"),
    ]
    for measure in system.measures:
        error = measure.error_fn(run.structure[measure.name], system.structure_reference[measure.name])
        values.append((measure.metric, measure.factor * error, measure.unit))
    if "vacf" in reference_motion:
        errors = plots.vacf_errors(run, reference_motion["vacf"].mean(axis=0))
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


def diffusivity_rows(config, phase: str, motion: dict[str, np.ndarray]) -> list[dict]:
    """Means over replicas, or over windows of the reference, with 95 % intervals; nothing for a molecule."""
    if "msd" not in motion:
        return []
    settings, spacing_fs = config.evaluate, config.evaluate.frame_spacing_fs
    by_displacement = transport.diffusivity_of_displacement(
        motion["msd"], spacing=spacing_fs / 1000, first=settings.diffusion_from_ps, last=settings.displacement_ps
    )
    by_velocity = transport.diffusivity_of_velocity(
        motion["velocity_correlation"], spacing=spacing_fs * units.FEMTOSECOND
    )
    found = {
        "diffusivity_1e-9_m2_per_s": by_displacement * SQUARE_ANGSTROM_PER_PS,
        "diffusivity_green_kubo_1e-9_m2_per_s": by_velocity * 1000 * units.FEMTOSECOND * SQUARE_ANGSTROM_PER_PS,
    }
    rows = []
    for metric, values in found.items():
        values = values[np.isfinite(values)]
        if len(values) < 2:
            continue
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        mean = float(values.mean())
        rows.append({"metric": metric, "phase": phase, "value": mean, "low": mean - half, "high": mean + half})
        rows[-1] |= {"unit": "1e-9 m²/s", "replicas": len(values)}
    return rows


SUMMARIZED = (
    ("h_r_mae", "h(r) MAE", ".4f", " 1/Å"),
    ("rdf_oo_mae", "g(r) of OO, MAE", ".3f", ""),
    ("diffusivity_1e-9_m2_per_s", "diffusivity", ".2f", " 1e-9 m²/s"),
)


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
            f"{find('force_mae_eV_per_A', 'after')['value']:.3f} eV/Å ({100 * find('force_mae_change')['value']:+.0f} %)"
            + "".join(
                f"; {label}: {find(metric, 'before')['value']:{form}} -> {find(metric, 'after')['value']:{form}}{unit}"
                for metric, label, form, unit in SUMMARIZED
                if find(metric, "before") and find(metric, "after")
            )
        ),
    ]


def write_page(run_dir: Path, config, system, record, before, after, course, reference_motion) -> Path:
    """`report.html`, self-contained, and `figure.png` beside it."""
    figure = plots.figure_3(
        course,
        before,
        after,
        profiles=system.profiles,
        reference=system.structure_reference,
        reference_motion=reference_motion,
        horizon_ps=config.evaluate.horizon_ps,
        spacing=config.evaluate.frame_spacing_fs / 1000,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    (run_dir / "figure.png").write_bytes(buffer.getvalue())
    page = PAGE.format(
        title=html.escape(f"{config.name}, seed {config.seed}"),
        summary="".join(f"<p>{html.escape(line)}</p>" for line in summary(record)),
        figure=base64.b64encode(buffer.getvalue()).decode(),
        criterion=html.escape(system.criterion_name),
        table=_table(record, system.measures),
        stages=_stages(record),
        caption=html.escape(_caption(config, system)),
        config=html.escape(str(ConfigDict(record["config"]))),
        machine=html.escape(_ran_on(record)),
        command=html.escape(record["command"]),
    )
    path = run_dir / "report.html"
    path.write_text(page)
    return path


FIRST_ROWS = (
    ("median_first_passage_ps", "median stable time (ps)", "{:.2f}"),
    ("mean_first_passage_ps", "mean stable time, censored at the horizon (ps)", "{:.2f}"),
    ("fraction_unstable_at_horizon", "fraction unstable at the horizon", "{:.2f}"),
    ("num_quarantined", "replicas stopped before a non-finite state", "{:.0f}"),
    ("energy_mae_meV_per_atom", "energy MAE, held-out frames (meV/atom)", "{:.2f}"),
    ("force_mae_eV_per_A", "force MAE, held-out frames (eV/Å)", "{:.4f}"),
)
LAST_ROWS = (
    ("diffusivity_1e-9_m2_per_s", "diffusivity by displacement (1e-9 m²/s)", "{:.2f}"),
    ("diffusivity_green_kubo_1e-9_m2_per_s", "diffusivity by Green–Kubo (1e-9 m²/s)", "{:.2f}"),
    ("vacf_mae", "VACF MAE, mean over replicas", "{:.4f}"),
    ("vacf_mae_std_over_replicas", "VACF MAE, standard deviation over replicas", "{:.4f}"),
    ("internal_temperature_K", "kinetic temperature while stable (K)", "{:.0f}"),
)


def _table(record, measures) -> str:
    find = finder(record)
    lines = []
    for metric, label, form in (*FIRST_ROWS, *((m.metric, m.label, m.form) for m in measures), *LAST_ROWS):
        reference = find(metric, "reference")
        if metric.startswith("diffusivity") and reference is None:
            continue
        if reference is not None:
            label = f"{label}; reference {with_error(reference, form)}"
        cells = []
        for phase in ("before", "after"):
            row = find(metric, phase)
            if row is None:
                cells.append("no replica was stable for a window")
            elif metric == "median_first_passage_ps":
                cells.append(with_interval(row))
            elif "low" in row:
                cells.append(with_error(row, form))
            else:
                cells.append(form.format(row["value"]))
        lines.append(f"<tr><td>{label}</td><td>{html.escape(cells[0])}</td><td>{html.escape(cells[1])}</td></tr>")
    return "\n".join(lines)


def with_error(row: dict, form: str) -> str:
    """A mean with half of its interval."""
    return f"{form.format(row['value'])} ± {form.format(row['high'] - row['value'])}"


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
        f"Course of training: {stable.num_replicas} replicas, unstable where {system.train_criterion_name}. "
        f"Replicas still stable: {evaluation.num_replicas} from held-out starts, the same starts and random numbers before "
        "and after, looked at after every step; Kaplan-Meier with 95 % pointwise band; unstable where "
        f"{system.criterion_name}. Structure: over the stable frames of these replicas, all "
        f"{len(system.dataset.position)} frames of the data set as the reference. Velocity autocorrelation: one value per "
        "replica that was stable for a whole window; in brackets how many."
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
