"""What the README tells a newcomer to run does run."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import jax
import pytest

from experiments import report
from experiments.report.record import EARLY

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PHASES = ("before", "after")


def test_the_estimator_example_gives_what_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert float(names["mean"](2.0, names["samples"])) == pytest.approx(0.25, abs=0.02)
    assert float(jax.grad(names["mean"])(2.0, names["samples"])) == pytest.approx(-0.125, abs=0.02)
    assert float(names["gradient"]) == pytest.approx(2 * 0.05 * -0.125, abs=0.01)


def test_commands_and_files_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake (?!and\b)([a-z-]+)", README)) - {"them"}
    assert {"aspirin", "test"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)
    for linked in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / linked).exists(), linked


def before_and_after(metric, cell):
    """What `cell` makes of the two rows; a dash where too few replicas were stable for a window."""
    rows = lambda find: (find(metric, phase) for phase in PHASES)  # noqa: E731
    return lambda find: " → ".join(cell(row) if row else "–" for row in rows(find))


def change(metric, form, scale=1.0):
    return before_and_after(metric, lambda row: form.format(scale * row["value"]))


def equal_times(metric, cell):
    """Before, after for as long as before, and in brackets after for all of the time."""

    def cells(find):
        before, equal, after = (
            cell(row) if row else "–" for row in (find(metric, phase) for phase in ("before", EARLY, "after"))
        )
        return f"{before} → {equal} ({after})"

    return cells


def averages(metric, form):
    return equal_times(metric, lambda row: form.format(row["value"]))


with_error = partial(report.with_error, form="{:.2f}")
STABILITY = [
    ("median stable time (ps)", before_and_after("median_first_passage_ps", report.with_interval)),
    ("times as long", report.with_ratio),
    ("log-rank p", lambda find: f"{find('logrank_p')['value']:.0e}"),
    ("unstable at the end (%)", change("fraction_unstable_at_horizon", "{:.0f}", 100)),
    ("force MAE (eV/Å)", change("force_mae_eV_per_A", "{:.3f}")),
    ("force MAE change (%)", lambda find: f"{100 * find('force_mae_change')['value']:+.0f}"),
    ("energy MAE (meV/atom)", change("energy_mae_meV_per_atom", "{:.1f}")),
]
MOTION = [
    ("VACF MAE", averages("vacf_mae", "{:.3f}")),
    ("bond angles, MAE (degrees)", averages("bond_angle_mae_degree", "{:.2f}")),
    ("kinetic temperature (K)", averages("internal_temperature_K", "{:.0f}")),
]
ASPIRIN = [*STABILITY, ("h(r) MAE (1/Å)", averages("h_r_mae", "{:.4f}")), *MOTION]
PEPTIDE = [
    *STABILITY,
    ("h(r) MAE (1/Å)", averages("h_r_mae", "{:.4f}")),
    ("Ramachandran map, total-variation distance", averages("ramachandran_distance", "{:.2f}")),
    *MOTION,
]
WATER = [
    *STABILITY,
    *((f"g(r) of {kind}, MAE", averages(f"rdf_{kind.lower()}_mae", "{:.3f}")) for kind in ("OO", "OH", "HH")),
    ("g(r) of OH, spurious peak where the reference has none", averages("rdf_oh_spike", "{:.3f}")),
    ("diffusivity by displacement (1e-9 m²/s)", before_and_after("diffusivity_1e-9_m2_per_s", with_error)),
    ("the same by Green–Kubo", before_and_after("diffusivity_green_kubo_1e-9_m2_per_s", with_error)),
    *MOTION,
]


def rows_of(name):
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())["rows"]


def finders(system):
    """Of the recipe's runs of a system, by seed."""
    mine = [row for row in rows_of("panel") if (row["system"], row["arm"]) == (system, "recipe")]
    seeds = sorted({row["seed"] for row in mine})
    return [report.finder({"rows": [row for row in mine if row["seed"] == seed]}) for seed in seeds]


@pytest.mark.parametrize(
    ("page", "system", "rows"),
    [
        ("README.md", "aspirin", ASPIRIN),
        ("docs/systems.md", "ac_ala3_nhme", PEPTIDE),
        ("docs/systems.md", "water", WATER),
    ],
)
def test_tables_of_results_are_those_of_the_panel(page, system, rows):
    runs = finders(system)
    lines = [f"| {name} | {' | '.join(map(cell, runs))} |" for name, cell in rows]
    assert [line for line in (ROOT / page).read_text().splitlines() if line in lines] == lines


def test_the_table_of_training_is_that_of_the_record():
    record = json.loads((ROOT / "experiments" / "results" / "training.json").read_text())
    lines = []
    for minutes in (1, 2, 5, 10):
        cells = []
        for model in ("schnet", "nequip", "gemnet"):
            row = next(row for row in record["rows"] if row["model"] == model and row["cpu_s"] >= 60 * minutes)
            cells.append(f"{row['value']:.3f} ({row['frames']:,})")
        lines.append(f"| {minutes} | {' | '.join(cells)} |")
    assert [line for line in (ROOT / "docs" / "models.md").read_text().splitlines() if line in lines] == lines


def test_the_tables_of_speed_are_those_of_the_records():
    def cells(rows, model, system, columns):
        for frames, is_known in columns:
            where = {"model": model, "system": system, "frames": frames, "is_known": is_known}
            find = {row["metric"]: row["value"] for row in rows if where.items() <= row.items()}
            yield f"{find['time_ms'] / frames:.3g} ({100 * find['fraction_of_peak']:.0f} %)"

    columns = [(1, True), (1, False), (8, False), (64, False)]
    lines = []
    for system in ("aspirin", "peptide", "water"):
        for model, name in (("schnet", "SchNet"), ("nequip", "NequIP"), ("gemnet", "GemNet-T")):
            lines.append(f"| {system} | {name} | {' | '.join(cells(rows_of('models'), model, system, columns))} |")
    for degree, model in ((1, "nequip"), (2, "nequip-degree-2"), (3, "nequip-degree-3")):
        lines.append(f"| {degree} | {' | '.join(cells(rows_of('models_degree'), model, 'peptide', columns[:3]))} |")
    assert [line for line in (ROOT / "docs" / "models.md").read_text().splitlines() if line in lines] == lines


SCALING = (ROOT / "docs" / "scaling.md").read_text().splitlines()


def throughput_lines():
    rows = rows_of("md_throughput")

    def value(metric, where):
        found = [row["value"] for row in rows if row["metric"] == metric and where.items() <= row.items()]
        return found[0] if found else None

    def times(metric, where):
        ratio = value(metric, where)
        return "" if ratio is None else f"{ratio:.1f}"

    names = {"aspirin": "aspirin, SchNet", "peptide": "peptide, NequIP", "water": "64 waters, GemNet-T"}
    for system, replicas in dict.fromkeys((row["system"], row["replicas"]) for row in rows):
        where = {"system": system, "replicas": replicas}
        fast = value("replica_steps_per_s", where | {"method": "fast"})
        ratios = [times(f"speedup_vs_{rival}", where) for rival in ("plain", "pyg", "fast_on_one")]
        share = 100 * value("fraction_of_floor", where)
        begun = value("first_step_s", where)
        rate = f"{fast:,.0f}" if fast > 10 else f"{fast:.2f}"
        yield f"| {names[system]} | {replicas} | {rate} | {' | '.join(ratios)} | {share:.0f} | {begun:.0f} |"


def accuracy_lines():
    rows = rows_of("md_accuracy")

    def value(metric, method):
        (row,) = [row for row in rows if row["metric"] == metric and row.get("method") == method]
        return row

    for metric, name in (("energy_drift_meV_per_ps", "drift (meV/ps)"), ("energy_spread_meV", "spread (meV)")):
        yield f"| {name} | {value(metric, 'fast')['value']:.2f} | {value(metric, 'exact')['value']:.2f} |"
    horizon = json.loads((ROOT / "experiments" / "results" / "md_accuracy.json").read_text())["config"]["horizon_ps"]
    passages = (value("median_first_passage_ps", method) | {"horizon_ps": horizon} for method in ("fast", "exact"))
    medians = [report.with_interval(row) for row in passages]
    yield f"| median first passage (ps) | {' | '.join(medians)} |"


def scaling_lines():
    rows = rows_of("scaling")
    for devices in sorted({row["devices"] for row in rows if row.get("computed")}):
        where = [row for row in rows if row.get("computed") and row["devices"] == devices]
        cells = []
        for how in ("replicas shared", "replicas for each device"):
            for metric, form in (("epoch_s", "{:.3g}"), ("parallel_efficiency", "{:.2f}")):
                found = [row["value"] for row in where if row["metric"] == metric and row["how"] == how]
                cells.append(form.format(found[0]) if found else "")
        (talking,) = [row["value"] for row in where if row["metric"] == "all_reduce_s"]
        yield f"| {devices} | {1000 * talking:.2f} | {' | '.join(cells)} |"


@pytest.mark.parametrize("lines", [throughput_lines, accuracy_lines, scaling_lines])
def test_the_tables_of_scaling_are_those_of_the_records(lines):
    expected = list(lines())
    assert [line for line in SCALING if line in expected] == expected
