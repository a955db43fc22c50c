"""The panel of systems: its commands, its targets, and what is compared with a run. Its runs are not tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import cli
from experiments.benchmarks import panel, records
from experiments.benchmarks.panel import Arm
from experiments.configs import check
from experiments.report.record import EARLY

ROOT = Path(__file__).resolve().parents[1]


def row(metric, value, phase=None, **others):
    return {"metric": metric, "value": value} | ({"phase": phase} if phase else {}) | others


def record(**changes):
    """Of a run that meets every target."""
    figures = {
        "median": (2.0, 24.0),
        "horizon": (40.0, 24.0),
        "kind": "at least",
        "ratio": 12.0,
        "low": 5.0,
        "p": 1e-5,
        "force": 0.02,
        "energy": (3.0, 3.2),
        "h_r": (0.006, 0.007),
        "temperature": (530.0, 505.0),
        "variance": (1.2, 0.9),
        "vacf": (0.04, 0.04),
        "minutes": 11.0,
    } | changes
    rows = []
    for index, phase in enumerate(("before", "after")):
        rows += [
            row(
                *("median_first_passage_ps", figures["median"][index], phase),
                **{"horizon_ps": figures["horizon"][index], "censored": bool(index), "low": 1.0, "high": None},
            ),
            row("energy_mae_meV_per_atom", figures["energy"][index], phase),
        ]
        # What is compared is of equal times.
        equal = ("before", EARLY)[index]
        rows += [
            row("h_r_mae", figures["h_r"][index], equal, error=0.001),
            row("internal_temperature_K", figures["temperature"][index], equal, error=5.0),
            row("bond_variance_ratio", figures["variance"][index], equal, error=0.1),
            row("vacf_mae", figures["vacf"][index], equal, replicas=16),
            row("vacf_mae_std_over_replicas", 0.02, equal),
        ]
    rows += [
        row("ratio_median_first_passage", figures["ratio"], kind=figures["kind"], low=figures["low"], high=None),
        row("logrank_p", figures["p"]),
        row("force_mae_change", figures["force"]),
    ]
    rows += figures.get("rows", [])
    return {
        "rows": rows,
        "config": {"md": {"temperature_K": 500.0}},
        "wall_s": 60 * figures["minutes"],
        "commit": "0123456789ab",
    }


def missed(**changes):
    return {one.name for one in panel.targets(record(**changes), max_minutes=12.0) if not one.is_met}


def test_a_run_that_is_better_in_everything_meets_all_targets():
    assert missed() == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ratio": 9.0, "kind": "between"}, "times as long"),
        ({"ratio": 9.0, "horizon": (40.0, 18.0)}, "times as long"),
        ({"ratio": None, "kind": "unknown"}, "times as long"),
        ({"low": 3.9}, "lower end of the interval"),
        ({"low": None}, "lower end of the interval"),
        ({"p": 0.002}, "log-rank p"),
        ({"force": 0.031}, "force MAE change"),
        ({"energy": (3.0, 3.4)}, "energy MAE change"),
        ({"h_r": (0.006, 0.009)}, "h_r_mae worse, in standard errors"),
        ({"temperature": (505.0, 475.0)}, "internal_temperature_K worse, in standard errors"),
        ({"variance": (0.9, 0.5)}, "bond_variance_ratio worse, in standard errors"),
        ({"vacf": (0.04, 0.06)}, "vacf_mae worse, in standard errors"),
        ({"minutes": 12.5}, "minutes"),
    ],
)
def test_each_target_is_missed_for_its_own_figure(changes, expected):
    assert missed(**changes) == {expected}


def test_a_median_beyond_twelve_times_the_one_before_is_met_from_ten_times_on():
    assert missed(ratio=10.0, horizon=(40.0, 20.0)) == set()


@pytest.mark.parametrize(("after", "is_met"), [(1.9, True), (1.5, False), (2.4, False)])
def test_diffusivity_has_to_be_within_the_interval_of_the_reference(after, is_met):
    name = "diffusivity_1e-9_m2_per_s"
    rows = [row(name, 1.9, "reference", low=1.7, high=2.1), row(name, after, "after", low=1.0, high=3.0)]
    assert missed(rows=rows) == (set() if is_met else {"diffusivity outside the reference's interval"})


@pytest.mark.parametrize("name", panel.MEMBERS)
@pytest.mark.parametrize("arm", [panel.RECIPE, panel.PAPER])
def test_fields_of_every_arm_are_those_of_its_config(name, arm):
    module = panel.MEMBERS[name].module
    fields = panel.fields_of(Arm(name, 1, arm))
    cli.check_names(cli.load_config(str(cli.CONFIGS / f"{module}.py")), [module, *fields])


def test_the_papers_recipe_is_that_of_the_papers_config():
    config = cli.load_config(str(cli.CONFIGS / "aspirin.py"))
    given = panel.paper_settings("aspirin")
    assert {"stable.optimizer": "sgd", "observable.weight": 100.0, "stable.restarts": False}.items() <= given.items()
    paper = dict(check.fields(cli.load_config(str(cli.CONFIGS / "aspirin_paper.py"))))
    assert all(paper[name] == value for name, value in given.items())
    assert not any(name.endswith("num_replicas") for name in given)
    assert {name.partition(".")[0] for name in given} <= set(panel.KEPT)
    assert config.stable.optimizer == "natural"


def test_rows_are_of_what_is_finished_with_the_commit_of_each(tmp_path):
    arms = [Arm("aspirin", 0, panel.RECIPE), Arm("aspirin", 1, panel.RECIPE), Arm("aspirin", 0, panel.PAPER)]
    for folder in ("aspirin_seed0", "aspirin_seed0_paper"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "record.json").write_text(json.dumps(record()))
    controls = tmp_path / "aspirin_seed0" / panel.FOLDER
    controls.mkdir()
    (controls / "ensemble.json").write_text(json.dumps(record(low=1.0)))
    rows = panel.rows_of(tmp_path, arms)
    assert {(one["seed"], one["arm"]) for one in rows} == {(0, "recipe"), (0, "ensemble"), (0, "paper")}
    assert {one["commit"] for one in rows} == {"0123456789ab"}
    assert {one["arm"] for one in rows if one["metric"] == "target"} == {"recipe", "paper"}
    lines = panel.table(rows).splitlines()
    assert len(lines) == 2 + 3
    assert "| aspirin | 0 | ensemble | 2.00" in lines[3] and "at least 12.0 (from 1.0)" in lines[3]
    assert "13 of 13" not in lines[3] and "of" in lines[2].rpartition("|")[0]


def test_systems_of_a_kind_share_one_recipe():
    """What differs between the defaults is data, sizes, temperature and the kind of criterion."""
    own = ("name", "system", "data", "model", "md", "evaluate", "pretrain.num_steps", "pretrain.batch_size")
    own += ("pretrain.learning_rate", "pretrain.energy_weight", "pretrain.force_weight", "stable.num_replicas")
    own += (
        "stable.steps_per_epoch",
        "observable.stop_A",
        "observable.width_A",
        "stability",
        "stable.learning_rate",
        "stable.qm_weight",
    )
    found = [dict(check.fields(cli.load_config(str(cli.CONFIGS / f"{name}.py")))) for name in SHIPPED]
    shared = set.intersection(*(set(one) for one in found))
    different = {name for name in shared if len({str(one[name]) for one in found}) > 1}
    assert {name for name in different if not name.startswith(own)} == set()


SHIPPED = ("aspirin", "molecule", "ac_ala3_nhme", "water")


def test_figures_that_are_unknown_are_null_in_the_record(tmp_path):
    path = tmp_path / "panel.json"
    records.write(path, "benchmarks.panel", {}, [row("a", None), row("b", float("inf")), row("c", 2.0)])
    assert [one["value"] for one in json.loads(path.read_text())["rows"]] == [None, None, 2.0]


def test_the_table_of_the_panel_is_that_of_the_record():
    rows = json.loads((ROOT / "experiments" / "results" / "panel.json").read_text())["rows"]
    lines = panel.table(rows).splitlines()
    assert [line for line in (ROOT / "docs" / "recipe.md").read_text().splitlines() if line in lines] == lines
