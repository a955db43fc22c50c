"""The record, the page and the figure of a run whose outcome is known on paper."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest

from experiments import disk, report
from experiments.report import page
from experiments.report.record import EARLY, ratio_kind
from experiments.stages import stabilize
from experiments.stages.evaluate import Averages, Evaluation
from experiments.systems.base import Measure, Profile
from stablejax import units
from stablejax.learn import LearnInfo
from stablejax.losses import LabelErrors
from stablejax.simulate import SimulateInfo
from stablejax.updates import UpdateInfo

HORIZON = 8.0
SPACING_FS = 250.0
TIME_PS = np.arange(9) * SPACING_FS / 1000


def evaluation(failed_at, *, force_mae=0.2, is_finite=True, diffusivity=(0.2, 0.4)):
    """Replicas that fail at given times (None: never), of two molecules that diffuse with D in Å²/ps."""
    diffusivity = np.array(diffusivity)[:, None]
    picosecond = 1000 * units.FEMTOSECOND
    velocity = 3 * diffusivity / (picosecond**2 * TIME_PS[-1])  # constant: D = ⅓ · ⟨v²⟩ · time
    averages = Averages(
        num_frames=np.asarray(7.0),
        temperature_K=np.asarray(312.5),
        structure={"h_r": np.array([1.0, 0.5, 0.0])},
        motion={
            "msd": 6 * diffusivity * TIME_PS + 0.3,
            "velocity_correlation": velocity * np.ones(len(TIME_PS)),
            "vacf": np.array([[1.0, 0.5], [1.0, 0.1], [1.0, np.nan]]),
        },
        standard_error={"internal_temperature_K": np.asarray(1.5), "h_r_mae": np.asarray(np.nan)},
    )
    return Evaluation(
        first_passage_ps=np.array([HORIZON if time is None else time for time in failed_at]),
        horizon_ps=np.array(HORIZON),
        is_unstable=np.array([time is not None for time in failed_at]),
        is_finite=np.array([is_finite] + [True] * (len(failed_at) - 1)),
        averages=averages,
        early=averages._replace(temperature_K=np.asarray(310.0)),
        energy_mae=np.asarray(0.2),
        force_mae=np.asarray(force_mae),
    )


def facts(**changes):
    given = report.Facts(
        name="toy",
        seed=3,
        config={"name": "toy", "note": "<b>a & b</b>"},
        num_atoms=4,
        num_frames=1000,
        num_reference=30,
        energy_offset_eV=-17634.123456789,
        num_train_replicas=5,
        num_replicas=4,
        frame_spacing_fs=SPACING_FS,
        fit_ps=(0.5, 2.0),
        train_criterion_name="a bond deviates by 0.25 Å from its mean length",
        criterion_name="a bond deviates by 0.5 Å from its mean length & r < 1 Å",
        structure_reference={"h_r": np.array([1.0, 0.1, 0.1])},
        profiles={"h_r": Profile(np.array([0.5, 1.0, 1.5]), "distances", "r (Å)", "h(r) (1/Å)", (0.0, 2.0))},
        measures=(Measure("h_r_mae", "h_r", "h(r) MAE <1/Å>", "1/Å", "{:.4f}", factor=10.0),),
        mean_force=0.9,
    )
    return given._replace(**changes)


REFERENCE_MOTION = {"vacf": np.array([[1.0, 0.4], [1.0, 0.2]])}
SOONER = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 4.0, 4.0, None)
LATER = (3.0, 4.0, 4.0, 6.0, 6.0, 6.0, 7.0, 7.0, 7.0, 7.5, 7.5, None)
HARDLY = (5.0, 6.0, *10 * [None])
COURSE = [
    {"phase": "simulating", "simulated_ps": 10.0, "fraction_unstable": 0.5},
    {"phase": "learning", "simulated_ps": 12.0, "fraction_unstable": 0.25},
]


def made(before=SOONER, after=LATER, **changes):
    runs = report.Runs(evaluation(before, is_finite=False), evaluation(after, force_mae=0.25), REFERENCE_MOTION)
    return report.make_record(facts(**changes), runs, {"pretraining": 60.0, "evaluation before": 3.5}), runs


def test_every_row_of_the_record_is_the_figure_on_paper():
    record, _ = made()
    rows = {(row["metric"], row.get("phase", row.get("stage"))): row for row in record["rows"]}
    values = {key: row["value"] for key, row in rows.items()}
    assert len(rows) == len(record["rows"])
    sigma = np.sqrt(2) / 10 / np.sqrt(2)  # of the mean of D = 0.2 and 0.4 Å²/ps, one degree of freedom
    expected = {
        ("median_first_passage_ps", "before"): 2.0,
        ("median_first_passage_ps", "after"): 6.0,
        ("mean_first_passage_ps", "before"): 34 / 12,
        ("fraction_unstable_at_horizon", "before"): 11 / 12,
        ("num_quarantined", "before"): 1,
        ("num_quarantined", "after"): 0,
        ("energy_mae_meV_per_atom", "before"): 50.0,
        ("force_mae_eV_per_A", "before"): 0.2,
        ("force_mae_eV_per_A", "after"): 0.25,
        ("internal_temperature_K", "before"): 312.5,
        ("internal_temperature_K", "after"): 312.5,
        ("internal_temperature_K", EARLY): 310.0,
        ("h_r_mae", "after"): 10 * (0.4 + 0.1) / 3,
        ("vacf_mae", "before"): 0.1,  # |0.5 − 0.3| / 2 and |0.1 − 0.3| / 2; the third was not stable for a window
        ("vacf_mae_std_over_replicas", "before"): 0.0,
        ("diffusivity_1e-9_m2_per_s", "before"): 3.0,  # 0.3 Å²/ps
        ("diffusivity_green_kubo_1e-9_m2_per_s", "after"): 3.0,
        ("ratio_median_first_passage", None): 3.0,
        ("force_mae_change", None): 0.25,
        ("stage_wall_s", "pretraining"): 60.0,
    }
    assert {key: values[key] for key in expected} == pytest.approx(expected)
    diffusivity = rows["diffusivity_1e-9_m2_per_s", "before"]
    assert (diffusivity["high"] - diffusivity["low"]) / 2 == pytest.approx(10 * 12.706 * sigma, rel=1e-4)
    median = rows["median_first_passage_ps", "before"]
    assert (median["censored"], median["replicas"], median["horizon_ps"]) == (False, 12, HORIZON)
    assert (median["low"], median["high"]) == (1.0, 4.0)  # the 3rd and the 10th of 12
    assert (record["name"], record["wall_s"]) == ("toy_seed3", 63.5)
    assert (record["num_reference"], record["energy_offset_eV"]) == (30, -17634.123456789)
    assert {"command", "commit", "versions", "machine"} <= set(record)


def test_a_molecule_has_no_diffusivity():
    record, _ = made(fit_ps=None)
    assert not [row for row in record["rows"] if row["metric"].startswith("diffusivity")]


@pytest.mark.parametrize(
    ("before", "after", "kind", "bounds", "said", "cell"),
    [
        (
            SOONER,
            LATER,
            "between",
            (3.0, 7 / 3, 4.0),
            "3.0 times as long (95 % confidence: 2.3 to 4.0",
            "3.0 (2.3 to 4.0)",
        ),
        (SOONER, HARDLY, "at least", (4.0, 8 / 3, None), "at least 4.0 times as long (", "at least 4.0 (from 2.7)"),
        (HARDLY, SOONER, "at most", (0.25, 0.0, 0.375), "at most 0.2 times as long (", "at most 0.2 (up to 0.4)"),
        (
            HARDLY,
            HARDLY,
            "unknown",
            (None, 0.0, None),
            "the ratio is unknown, since fewer than half of the re",
            "unknown",
        ),
    ],
)
def test_a_ratio_says_what_is_known_of_it(before, after, kind, bounds, said, cell):
    record, _ = made(before, after)
    find = report.finder(record)
    row = find("ratio_median_first_passage")
    assert (row["kind"], row["value"]) == (kind, bounds[0]) and row["low"] == pytest.approx(bounds[1])
    assert row["high"] == (None if bounds[2] is None else pytest.approx(bounds[2]))
    line = report.summary(record)[0]
    assert line.partition(" ps after: ")[2].startswith(said)
    assert report.with_ratio(find) == cell
    if kind == "unknown":
        assert not re.search(r"\d", line.partition(" ps after: ")[2].replace("log-rank p = 1)", ""))


@pytest.mark.parametrize(
    ("before", "after", "cell"),
    [
        (SOONER, LATER, "1.0 (0.9 to 3.2)"),
        (SOONER, HARDLY, "at least 1.0 (from 0.9)"),
        (HARDLY, SOONER, "at most 1.0 (up to 3.2)"),
        (HARDLY, HARDLY, "unknown"),
    ],
)
def test_a_ratio_of_an_older_record_is_as_certain_as_its_medians(before, after, cell):
    record, _ = made(before, after)
    rows = [row for row in record["rows"] if row["metric"] != "ratio_median_first_passage"]
    rows.append({"metric": "ratio_median_first_passage", "value": 1.0, "low": 0.9, "high": 3.2, "censored": False})
    assert report.with_ratio(report.finder({"rows": rows})) == cell


def test_bounds_are_told_from_numbers():
    assert [ratio_kind(*both) for both in [(False, False), (False, True), (True, False), (True, True)]] == [
        "between",
        "at least",
        "at most",
        "unknown",
    ]
    row = {"value": 8.0, "low": 3.04, "high": 8.0, "censored": True, "horizon_ps": 8.0}
    assert report.with_interval(row) == "over 8 (3.0 to over 8)"
    row = {"value": 2.5, "low": 1.0, "high": 8.0, "censored": False, "horizon_ps": 8.0}
    assert report.with_interval(row) == "2.50 (1.0 to over 8)"
    assert report.with_interval(row | {"high": None}) == "2.50 (1.0 to over 8)"


def test_a_record_is_json_whatever_was_measured():
    """Forces that were exact before make the change of their error infinite, and a temperature may be no number."""
    hot = evaluation(HARDLY, force_mae=0.0)
    hot = hot._replace(averages=hot.averages._replace(temperature_K=np.asarray(np.nan)))
    runs = report.Runs(hot, evaluation(HARDLY), {})
    record = report.make_record(facts(), runs, {})
    find = report.finder(json.loads(json.dumps(record, allow_nan=False)))
    assert find("force_mae_change")["value"] is None
    assert find("internal_temperature_K", "before")["value"] is None
    assert "eV/Å (unknown)" in report.summary(record)[1]
    assert "<td>kinetic temperature while stable (K)</td><td>unknown</td><td>312</td>" in page.make_page(
        facts(), record, b""
    )


def test_page_is_self_contained_escaped_and_says_what_was_compared(tmp_path):
    record, runs = made()
    path = report.write_page(tmp_path, facts(), record, runs, COURSE)
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    picture = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", text)[1])
    assert picture == (tmp_path / "figure.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and "$" not in text
    assert "<title>StABlE training: toy, seed 3</title>" in text
    assert "A replica is unstable when a bond deviates by 0.5 Å from its mean length &amp; r &lt; 1 Å." in text
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in text and "<b>" not in text
    for line in (
        "<td>median stable time (ps)</td><td>2.00 (1.0 to 4.0)</td><td>6.00 (4.0 to 7.5)</td>",
        "<td>after over before, of the medians</td><td></td><td>3.0 (2.3 to 4.0)</td>",
        "<td>replicas stopped before a non-finite state</td><td>1</td><td>0</td>",
        "<td>force MAE, held-out frames (eV/Å)</td><td>0.2000</td><td>0.2500</td>",
        "<td>h(r) MAE &lt;1/Å&gt;</td><td>1.6667</td><td>1.6667</td>",
        "<td>pretraining</td><td>60</td>",
    ):
        assert f"<tr>{line}</tr>" in text, line
    assert "reference curves are means over all 1000 frames of the data set" in text
    assert "reference of training is a mean over 30 frames, none of them held out for the test" in text
    assert "the reference moves by its own dynamics" in page.caption(facts())
    assert "two standard errors" in page.caption(facts()) and "error" not in page.caption(facts(fit_ps=None))
    assert "5 replicas, unstable where a bond deviates by 0.25 Å from its mean length" in text


def course_info():
    updates = UpdateInfo(**{name: np.float32(index) for index, name in enumerate(UpdateInfo._fields, start=1)})
    updates = updates._replace(qm_errors=LabelErrors(np.float32(0.5), np.float32(0.75)))
    numbers = {name: np.float32(10 * index) for index, name in enumerate(LearnInfo._fields, start=3)}
    return LearnInfo(**(numbers | {"updates": updates, "signal_to_noise": np.float32(2.0), "fault": np.int32(3)}))


def test_an_entry_of_the_course_has_each_figure_under_its_own_name():
    info = course_info()
    entry = stabilize.course_entry(info, 2, 12.5)
    assert (entry["phase"], entry["cycle"], entry["simulated_ps"]) == ("learning", 2, 12.5)
    for name in ("fraction_unstable", "num_quarantined", "num_rounds", "num_samples", "rate_scale"):
        assert entry[name] == float(getattr(info, name)), name
    for name in ("observable_loss", "qm_loss", "observable_gradient_norm", "qm_gradient_norm", "gradient_cosine"):
        assert entry[name] == float(getattr(info.updates, name)), name
    for name in ("num_updates", "effective_fraction"):
        assert entry[name] == float(getattr(info.updates, name)), name
    assert entry["force_change_eV_per_A"] == float(info.updates.force_change)
    assert entry["energy_change_eV"] == float(info.updates.energy_change)
    assert entry["qm_force_mae_eV_per_A"] == 0.75
    assert entry["signal_to_noise"] == 2.0
    assert entry["fault"] == "the update of the parameters is not finite"
    assert entry["num_rollbacks"] == float(info.num_rollbacks)
    assert json.loads(disk.to_json(entry)) == entry


def test_a_record_says_how_often_learning_went_wrong():
    _, runs = made()
    fine = {"phase": "learning", "num_rollbacks": 0, "gives_up": False, "qm_force_mae_eV_per_A": 0.1}
    course = [{"phase": "simulating"}, fine, fine | {"num_rollbacks": 2}]
    for more, line in (
        (course, "learning went wrong and went back to earlier parameters 2 times, with a smaller rate"),
        ([*course, fine | {"gives_up": True}], "learning went wrong and was given up after 2 returns"),
    ):
        record = report.make_record(facts(), runs, {}, course=more)
        assert report.summary(record)[-1].startswith(line)
    assert not [
        line for line in report.summary(report.make_record(facts(), runs, {}, course=[fine])) if "wrong" in line
    ]


def test_an_entry_of_the_simulation_has_no_figures_of_learning():
    numbers = {name: np.float32(index) for index, name in enumerate(SimulateInfo._fields, start=3)}
    info = SimulateInfo(**numbers)
    assert stabilize.course_entry(info, 0, 1.5) == {
        "phase": "simulating",
        "cycle": 0,
        "fraction_unstable": float(info.fraction_unstable),
        "num_quarantined": int(info.num_quarantined),
        "simulated_ps": 1.5,
        "stable_steps": float(info.stable_steps),
        "is_best": True,
    }


def test_page_links_the_frames_of_failures_that_were_kept(tmp_path):
    record, runs = made()
    (tmp_path / "failures_after.xyz").touch()
    text = report.write_page(tmp_path, facts(), record, runs, COURSE).read_text(encoding="utf-8")
    assert re.findall(r'href="([^"]+)"', text) == ["failures_after.xyz"]
