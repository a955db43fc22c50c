"""What a person sees of a run, and the same figures as lines of JSON."""

from __future__ import annotations

import io
import json

import pytest

from experiments.progress import Progress


def test_progress_says_how_far_and_keeps_every_figure(tmp_path):
    stream = io.StringIO()
    shown = Progress(tmp_path / "metrics.jsonl", stream, seconds_between_lines=0.0)
    shown.stage("baking")
    shown.update("half", 0.5, loss=1.0)
    shown.update("done", 1.0, loss=0.5)
    shown.close()
    lines = stream.getvalue().splitlines()
    assert "baking: half" in lines[0] and "left" in lines[0]
    assert "baking: done" in lines[1] and "left" not in lines[1]
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["fraction_done"], entry["loss"]) for entry in entries] == [
        ("baking", 0.5, 1.0),
        ("baking", 1.0, 0.5),
    ]
    assert set(shown.stage_wall_s) == {"baking"}


def test_lines_are_rare_and_figures_are_not(tmp_path):
    stream = io.StringIO()
    shown = Progress(tmp_path / "metrics.jsonl", stream, seconds_between_lines=3600.0)
    shown.stage("baking")
    for step in range(5):
        shown.update(f"step {step}", step / 10)
    assert len(stream.getvalue().splitlines()) == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_silent_one_keeps_the_time_only(tmp_path, capsys, monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 5.0, 6.0])
    monkeypatch.setattr("experiments.progress.time.monotonic", lambda: next(clock))
    silent = Progress(tmp_path / "metrics.jsonl", is_silent=True)
    silent.stage("baking")
    silent.update("half", 0.5)
    silent.say("a word")
    silent.close()
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())
    assert silent.stage_wall_s == {"baking": 5.0}


def test_a_figure_that_is_no_number_is_null_in_the_file(tmp_path):
    shown = Progress(tmp_path / "metrics.jsonl", io.StringIO())
    shown.stage("baking")
    shown.update("hot", 0.5, loss=float("nan"), rate=float("-inf"), kept=0.1)
    text = (tmp_path / "metrics.jsonl").read_text()
    entry = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (entry["loss"], entry["rate"], entry["kept"]) == (None, None, 0.1)
