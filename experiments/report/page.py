"""The page of a report, with its figure, made from the record."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from ml_collections import ConfigDict

from experiments import disk
from experiments.report import plots
from experiments.report.facts import Facts, Runs
from experiments.report.record import finder
from experiments.report.words import number, summary, with_error, with_interval, with_ratio
from experiments.systems.base import Measure


def write_page(run_dir: Path, facts: Facts, record: dict, runs: Runs, course: list[dict]) -> Path:
    """`report.html`, self-contained, and `figure.png` beside it.

    Args:
      run_dir: of the run.
      facts: of the experiment.
      record: of the run.
      runs: what was measured.
      course: of StABlE training, an entry per step.

    Returns:
      The path of the page.
    """
    buffer = io.BytesIO()
    plots.figure_3(facts, runs, course).savefig(buffer, format="png", dpi=110)
    with disk.whole(run_dir / "figure.png") as file:
        file.write(buffer.getvalue())
    path = run_dir / "report.html"
    files = [name for name in FAILURES if (run_dir / name).exists()]
    disk.write_text(path, make_page(facts, record, buffer.getvalue(), failures=files))
    return path


def make_page(facts: Facts, record: dict, picture: bytes, *, failures: Sequence[str] = ()) -> str:
    """The page as HTML.

    Args:
      facts: of the experiment.
      record: of the run.
      picture: the figure, PNG.
      failures: files with frames of failed replicas, beside the page.
    """
    text = {
        "title": f"{facts.name}, seed {facts.seed}",
        "criterion": facts.criterion_name,
        "caption": caption(facts),
        "config": str(ConfigDict(record["config"])),
        "machine": _ran_on(record),
        "command": record["command"],
    }
    parts = {name: html.escape(value) for name, value in text.items()} | {
        "summary": "".join(f"<p>{html.escape(line)}</p>" for line in summary(record)),
        "figure": base64.b64encode(picture).decode(),
        "table": _table(record, facts.measures),
        "stages": _stages(record),
        "failures": _failures(failures),
    }
    return _template().substitute(parts)


FAILURES = ("failures_before.xyz", "failures_training.xyz", "failures_after.xyz")
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
    ("torsion_transitions_per_ps", "transitions of a torsion (1/ps)", "{:.2f}"),
    ("internal_temperature_K", "kinetic temperature while stable (K)", "{:.0f}"),
)
OF_MOTION = ("diffusivity", "torsion")
"""Of metrics that are shown where the reference has them."""


def _table(record: dict, measures: tuple[Measure, ...]) -> str:
    find = finder(record)
    lines = []
    for metric, label, form in (*FIRST_ROWS, *((m.metric, m.label, m.form) for m in measures), *LAST_ROWS):
        reference = find(metric, "reference")
        if metric.startswith(OF_MOTION) and reference is None:
            continue
        if reference is not None:
            label = f"{label}; reference {with_error(reference, form)}"
        lines.append(_line(label, *(_cell(find(metric, phase), form) for phase in ("before", "after"))))
        if metric == "median_first_passage_ps":
            lines.append(_line("after over before, of the medians", "", with_ratio(find)))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"


def _cell(row: dict | None, form: str) -> str:
    if row is None:
        return "no replica was stable for a window"
    if row["metric"] == "median_first_passage_ps":
        return with_interval(row)
    return with_error(row, form) if "low" in row else number(row, form)


def _stages(record: dict) -> str:
    rows = [row for row in record["rows"] if row["metric"] == "stage_wall_s"]
    return "\n".join(_line(row["stage"], number(row, "{:.0f}")) for row in rows)


def _failures(files: Sequence[str]) -> str:
    if not files:
        return ""
    links = " and ".join(f'<a href="{html.escape(name)}">{html.escape(name)}</a>' for name in files)
    return f"<p>Frames before, at and after a violation, to be labeled by a quantum-chemistry code: {links}.</p>"


def _ran_on(record: dict) -> str:
    machine = record["machine"]
    place = f"{machine['cores']} cores of {machine['cpu']}"
    if machine["accelerator"]:
        place = f"{machine['devices']} × {machine['accelerator']}, {place}"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"{place}; {versions}; commit {record['commit']}"


MOTION = (
    " Displacement: of molecules' centers, the mean over these replicas and two standard errors; the reference moves "
    "by its own dynamics, at constant energy in the data set that ships, the replicas under a thermostat, which slows "
    "them."
)


def caption(facts: Facts) -> str:
    """The caption of the figure.

    Args:
      facts: of the experiment.
    """
    has_motion = facts.fit_ps is not None
    return (
        f"Course of training: {facts.num_train_replicas} replicas, unstable where {facts.train_criterion_name}. "
        f"Replicas still stable: {facts.num_replicas} from held-out starts, the same starts and random numbers before "
        "and after, evaluated after every step; Kaplan–Meier with a 95 % pointwise band; unstable where "
        f"{facts.criterion_name}. Structure: means over the stable frames of these replicas; the reference curves are "
        f"means over all {facts.num_frames} frames of the data set. The reference of training is a mean over "
        f"{facts.num_reference} frames, none of them held out for the test. Velocity autocorrelation: one value per "
        "replica that was stable for a whole window; their number in brackets." + (MOTION * has_motion)
    )


def _template() -> Template:
    return Template(resources.files("experiments.report").joinpath("templates/page.html").read_text(encoding="utf-8"))
