"""What the reliability benchmark compares and chooses; its runs are not tests."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import cli
from experiments.benchmarks import fault_cases, faults, fuzz, kills, records, reliability, runs, scene, soak
from experiments.benchmarks.kills import Moment, Timeline
from experiments.benchmarks.runs import Outcome, Runner
from experiments.benchmarks.soak import Sample

STAGES = ["a"] * 4 + ["b"] * 2


def lines(run_dir, *entries):
    run_dir.mkdir(exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return runs.lines_of(run_dir)


def test_lines_are_compared_without_what_says_when_they_were_written(tmp_path):
    first = lines(tmp_path / "a", {"step": 1, "wall_s": 1.0}, {"step": 2, "wall_s": 2.0, "invocation": 1})
    second = lines(tmp_path / "b", {"step": 1, "wall_s": 7.0, "invocation": 2}, {"step": 2})
    assert runs.lost_and_doubled(first, second) == (0, 0)
    third = lines(tmp_path / "c", {"step": 1}, {"step": 1}, {"step": 1}, {"step": 3})
    assert runs.lost_and_doubled(first, third) == (1, 3)


def test_a_line_that_is_not_whole_is_lost_and_one_too_many(tmp_path):
    first = lines(tmp_path / "a", {"step": 1}, {"step": 2})
    path = tmp_path / "a" / "metrics.jsonl"
    path.write_text(path.read_text()[:-4])
    assert runs.lost_and_doubled(first, runs.lines_of(tmp_path / "a")) == (1, 1)
    assert runs.lines_of(tmp_path / "nowhere") == []


def result(run_dir, bias=0.0, value=1.0, wall_s=3.0):
    run_dir.mkdir()
    for name in ("pretrained.npz", "refined.npz"):
        np.savez(run_dir / name, w=np.array([1.0, bias], np.float32))
    rows = [{"metric": "force_mae", "value": value}, {"metric": "stage_wall_s", "value": wall_s}]
    (run_dir / "record.json").write_text(json.dumps({"rows": rows}))
    return run_dir


def test_results_are_compared_to_the_last_bit_but_for_wall_times(tmp_path):
    expected = result(tmp_path / "expected")
    assert runs.differences(expected, result(tmp_path / "same", wall_s=9.0)) == []
    assert runs.differences(expected, result(tmp_path / "sign", bias=-0.0)) == ["pretrained.npz", "refined.npz"]
    assert runs.differences(expected, result(tmp_path / "value", value=1.0 + 1e-15)) == ["record.json"]
    (tmp_path / "sign" / "refined.npz").write_bytes(b"")
    assert runs.differences(tmp_path / "sign", tmp_path / "sign") == ["refined.npz"]  # nothing to compare with
    assert runs.differences(expected, tmp_path / "nowhere") == ["pretrained.npz", "refined.npz", "record.json"]


@pytest.mark.parametrize(
    ("code", "output", "is_right"),
    [
        (2, "note: x\nerror: it is wrong: change it.\n", True),
        (1, "error: it is wrong.\n", False),
        (2, "error: it is wrong.\nerror: that too.\n", False),
        (2, "error: [Errno 17] File exists: 'x'\n", False),
        (2, f"{runs.TRACEBACK}\nerror: it is wrong.\n", False),
        (2, "usage\n", False),
    ],
)
def test_what_one_sentence_is(code, output, is_right):
    assert Outcome(code, output, 0.0).is_sentence is is_right


def test_moments_hit_every_stage_and_the_report_at_random():
    drawn = [kills.moments(STAGES, 7, np.random.default_rng(seed)) for seed in range(20)]
    for moments in drawn:
        assert [moment.stage for moment in moments] == ["a", "a", "a", "b", "b", "report", "report"]
        assert [moment.num_lines for moment in moments] == sorted(moment.num_lines for moment in moments)
    chosen = {(m.stage, m.num_lines) for moments in drawn for m in moments}
    assert chosen == {("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 4), ("b", 5), ("report", 6)}
    assert len({m.fraction for moments in drawn for m in moments}) == 7 * 20


def test_lines_of_a_stage_that_is_begun_again_count_once():
    line = lambda stage, done: {"stage": stage, "fraction_done": done}  # noqa: E731
    assert kills.num_reached([], STAGES) == 0
    begun_again = [line("a", 0.25), line("a", 0.5), {}, line("a", 0.25)]
    assert kills.num_reached(begun_again, STAGES) == 2
    assert kills.num_reached([*begun_again, line("b", 0.5)], STAGES) == 5  # b begins when a is complete
    assert kills.num_reached([*begun_again, line("b", 0.5), line("b", 1.0)], STAGES) == 6


WRITES = """
import json, sys, time
with open(sys.argv[1], "a") as file:
    for done in range(4):
        file.write(json.dumps({"stage": "a", "fraction_done": done}) + "\\n")
        file.flush()
        time.sleep(0.2)
"""


def process(folder, run_dir):
    run_dir.mkdir(exist_ok=True)
    before = (sys.executable, "-c", WRITES, str(run_dir / "metrics.jsonl"))
    return Runner(folder).start(run_dir, before=before)


def test_a_process_is_killed_once_its_lines_are_there(tmp_path):
    started, run_dir = process(tmp_path, tmp_path / "run"), tmp_path / "run"
    timeline = Timeline(["a"] * 4, [0.0, 0.2, 0.4, 0.6], 0.8)
    assert kills.kill_at(Moment("a", 2, 0.0), timeline, started, run_dir)
    assert 2 <= len(runs.lines_of(run_dir)) < 4
    assert started.finish().code == -9


def test_a_process_that_ends_before_is_not_killed(tmp_path):
    started, run_dir = process(tmp_path, tmp_path / "run"), tmp_path / "run"
    timeline = Timeline(["a"] * 8, [0.1 * number for number in range(8)], 0.8)
    assert not kills.kill_at(Moment("a", 6, 0.0), timeline, started, run_dir)
    assert started.finish().code == 0


def test_a_report_that_was_done_before_it_was_killed_is_killed_sooner(monkeypatch, tmp_path):
    tried = []

    def kill_at(moment, *_):
        tried.append(moment)
        return moment.stage != kills.REPORT or moment.fraction < 0.2

    runner = SimpleNamespace(folder=tmp_path)
    runner.start = lambda _: SimpleNamespace(finish=lambda: runs.Outcome(0, "", 1.0))
    runner.run = lambda _: runs.Outcome(0, "", 1.0)
    planned = [Moment("a", 1, 0.9), Moment(kills.REPORT, 2, 0.5)]
    monkeypatch.setattr(kills, "kill_at", kill_at)
    monkeypatch.setattr(kills, "moments", lambda *_: list(planned))
    monkeypatch.setattr(kills, "compare", lambda *_: [])
    rows = kills.run(runner, tmp_path, Timeline(["a", "a"], [0.0, 1.0], 2.0), 2, 0, say=lambda _: None)
    assert [moment.fraction for moment in tried] == [0.9, 0.5, 0.25, 0.125]
    assert {row["stage"]: row["value"] for row in rows if row["metric"] == "kills"} == {"a": 1, kills.REPORT: 1}


def test_lines_are_seen_as_they_come(tmp_path):
    arrival_s = kills.watch(process(tmp_path, tmp_path / "run"), tmp_path / "run")
    assert len(arrival_s) == 4
    assert np.all(np.diff(arrival_s) > 0.1)


def test_kills_of_a_run_that_loses_a_line(tmp_path):
    expected, found = result(tmp_path / "expected"), result(tmp_path / "found", bias=1.0)
    lines(expected, {"step": 1}, {"step": 2})
    lines(found, {"step": 2}, {"step": 2})
    rows = kills.compare(expected, found)
    assert [row["value"] for row in rows if row["metric"] == "is_equal"] == [0, 0, 1]
    assert [row["value"] for row in rows[3:]] == [1, 1]


def test_damages_of_files():
    content = bytes(range(9))
    assert (fault_cases.cut(content), fault_cases.empty(content)) == (bytes(range(4)), b"")
    flipped = np.frombuffer(fault_cases.flip(content), np.uint8) ^ np.frombuffer(content, np.uint8)
    assert np.unpackbits(flipped).sum() == 1


def test_names_of_faults_are_of_one_fault_each():
    names = [fault.name for fault in faults.all_faults()]
    assert len(names) == len(set(names)) > 30


def test_a_fault_that_cannot_be_tried_does_not_end_the_others(monkeypatch):
    def fails(_):
        raise OSError("no room")

    right = scene.Verdict(True, "exit 2: error: so it is.")
    table = [faults.Fault("one", "r", fails), faults.Fault("two", "r", lambda _: right), faults.Fault("x", "r", fails)]
    monkeypatch.setattr(faults, "all_faults", lambda: table)
    rows = faults.run(None, ["one", "two"], lambda _: None)
    assert [(row["fault"], row["value"]) for row in rows] == [("one", 0), ("two", 1)]
    assert rows[0]["happened"] == "not tried, OSError: no room"


def test_verdicts(tmp_path):
    expected, same, other = (result(tmp_path / name, bias) for name, bias in (("e", 0.0), ("s", 0.0), ("o", 1.0)))
    stage = scene.Scene(Runner(tmp_path), expected, Timeline(STAGES, [], 0.0))
    done, refused = Outcome(0, "used state.1.npz\n", 0.0), Outcome(2, f"error: {tmp_path}/x: wrong.\n", 0.0)
    assert stage.same(done, same, "state.1.npz") == (True, "same results")
    assert stage.same(done, same, "state.2.npz") == (False, "same results, nothing said of state.2.npz")
    assert stage.same(done, other) == (False, "other pretrained.npz, refined.npz")
    assert stage.same(refused, same) == (False, "exit 2: error: x: wrong.")
    assert stage.refused(refused, "wrong").is_ok and not stage.refused(refused, "right").is_ok
    assert stage.same_or_refused(refused, same).is_ok and not stage.same_or_refused(done, other).is_ok
    assert stage.middle("b") == Moment("b", 5, 0.0)


def test_slope_of_a_line_and_its_error():
    time_s = np.linspace(0, 7200, 400)
    noise = np.random.default_rng(0).normal(size=(200, 400))
    found = np.array([soak.slope(time_s, 1000 + 5 * time_s / 3600 + one) for one in noise])
    assert found[:, 0].mean() == pytest.approx(5, abs=4 * found[:, 0].std() / np.sqrt(200))
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.2)
    assert np.isnan(soak.slope(time_s[:2], time_s[:2])).all()


def rounds(number, slower=0.0):
    """Chunks of 1000 and 500 steps of 1 ms, 0.1 s each beside them, and a machine that becomes slower."""
    made = []
    for index in range(number):
        factor = 1 + slower * index / (number - 1)
        chunks = [
            Sample("evaluation", steps, factor * (0.001 * steps + 0.1), 0.0, 10.0 * index, 100.0 + index, 8)
            for steps in (1000, 500)
        ]
        made.append([*chunks, Sample("reference", 1, factor, 0.0, 10.0 * index + 5, 100.0 + index, 8)])
    return made


def test_rows_of_a_soak():
    rows = soak.rows_of(rounds(20, slower=0.5), num_different=0)
    value = {(row["metric"], row.get("of"), row.get("fraction_frozen")): row["value"] for row in rows}
    assert value["last_over_first", "all", None] == pytest.approx(1 / 1.5, rel=0.03)
    assert value["last_over_first_and_reference", None, None] == pytest.approx(1)
    assert next(row for row in rows if "reference" in row["metric"])["standard_error"] == pytest.approx(0, abs=1e-9)
    assert value["memory_slope_MB_per_hour", None, None] == pytest.approx(360)
    assert value["replica_steps", None, None] == 20 * 1500


def test_cost_of_a_chunk_apart_from_its_steps():
    assert soak.costs(rounds(5)) == pytest.approx((0.001, 0.1))
    value = {row.get("fraction_frozen"): row["value"] for row in soak._cost_rows(rounds(5))}
    assert value[0.0] == pytest.approx(1000 / 1.1)
    assert value[0.75] == pytest.approx(250 / 0.35)


def test_memory_and_handles_of_this_process():
    before = soak.num_handles()
    with Path(__file__).open():
        assert soak.num_handles() == before + 1
    assert 50 < soak.memory_MB() < 50_000


def test_parts_replace_their_own_rows_and_keep_the_others(tmp_path):
    path = tmp_path / "record.json"
    first = reliability.merge(path, "soak", [{"metric": "a", "value": float("nan")}])
    records.write(path, "name", {}, first)
    both = reliability.merge(path, "kills", [{"metric": "b", "value": 1}])
    assert [(row["part"], row["metric"]) for row in both] == [("kills", "b"), ("soak", "a")]
    records.write(path, "name", {}, both)
    (row,) = reliability.merge(path, "soak", [{"metric": "c", "value": 2}])[1:]
    assert (row["metric"], row["value"], row["part"]) == ("c", 2, "soak")
    records.write(path, "name", {}, [{"part": "faults", "fault": name, "metric": "d", "value": 0} for name in "xy"])
    some = reliability.merge(path, "faults", [{"fault": "y", "metric": "d", "value": 1}], keeps_faults=True)
    assert [(row["fault"], row["value"]) for row in some] == [("x", 0), ("y", 1)]
    assert len(reliability.merge(path, "faults", [{"fault": "y", "metric": "d", "value": 1}])) == 1


def test_fuzzing_is_called_with_its_time_and_seed(monkeypatch):
    by_kind = {"data": [7, 1], "config": [2, 0]}
    found = {"tracebacks": 0, "longest_s": 1.5, "longest": "a.npz", "by_kind": by_kind, "faults": []}
    monkeypatch.setattr(fuzz, "fuzz", lambda cpu_s, seed: found | {"tries": cpu_s + seed})
    rows = reliability.run_fuzz(argparse.Namespace(fuzz_cpu_s=3.0, seed=7))
    assert {"metric": "tries", "value": 10.0} in rows
    assert {"metric": "longest_s", "value": 1.5, "unit": "s"} in rows
    assert {"metric": "accepted", "value": 1, "of": "data"} in rows
    json.dumps(rows)


def test_devices_can_be_chosen_after_the_benchmark_is_imported():
    code = "from experiments.benchmarks import reliability; reliability.cli.configure(host_devices=1)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=runs.ROOT)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_small_config_has_several_checkpoints_in_every_stage():
    config = cli.load_config(str(runs.SMALL))
    assert config.pretrain.num_steps // config.pretrain.steps_per_validation > 3
    assert config.evaluate.horizon_ps / config.evaluate.chunk_ps > 3
    assert config.stable.num_cycles > 1 < config.stable.max_epochs


OBEDIENT = Path(__file__).parent / "fixtures" / "obedient.py"


class Obedient(Runner):
    """Starts runs that do everything right."""

    def start(self, run_dir, *fields, before=(), **_):
        command = (*before, sys.executable, str(OBEDIENT), f"--config.run_dir={run_dir}", *fields)
        return self.start_command(command)


@pytest.fixture(scope="module")
def obedient(tmp_path_factory):
    runner = Obedient(tmp_path_factory.mktemp("obedient"))
    expected = runner.folder / "reference"
    return scene.Scene(runner, expected, kills.reference(runner, expected))


STABLE, TERM = fault_cases.STABLE, signal.SIGTERM


@pytest.mark.parametrize(
    "inject",
    [
        fault_cases.second_run,
        fault_cases.full_disk,
        partial(fault_cases.ended_by, TERM, 143, STABLE),
        partial(fault_cases.damaged_checkpoint, STABLE, fault_cases.cut),
        partial(fault_cases.damaged_checkpoint, STABLE, fault_cases.flip),
        lambda scene: fault_cases.no_config(scene, "--config.stable.learning_rate=0.5"),
    ],
)
def test_a_run_that_does_everything_right_is_found_right(obedient, inject):
    verdict = inject(obedient)
    assert verdict.is_ok, verdict.happened


def test_a_run_that_does_not_is_found_wrong(obedient):
    assert not fault_cases.ended_by(TERM, 130, STABLE, obedient).is_ok
    assert not fault_cases.damaged_checkpoint(STABLE, fault_cases.cut, obedient, name="nothing.npz").is_ok
    assert not fault_cases.damaged_checkpoint("pretraining", lambda content: content, obedient).is_ok  # not said
    assert not fault_cases.other_devices(obedient).is_ok  # refused without a word of devices


def test_kills_of_a_run_that_does_everything_right(obedient):
    timeline = obedient.timeline
    rows = kills.run(obedient.runner, obedient.expected, timeline, 5, 0, lambda _: None)
    assert sum(row["value"] for row in rows if row["metric"] == "kills") >= 4  # the report takes no time
    assert [row["value"] for row in rows if row["metric"] == "is_equal"] == [1, 1, 1]
    assert [row["value"] for row in rows if row["metric"] in ("lost_lines", "doubled_lines", "failed_start")] == [0, 0]
