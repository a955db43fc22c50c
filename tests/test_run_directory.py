"""A directory is of one run, which goes on from the newest state that is not damaged."""

from __future__ import annotations

import json
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import checkpoints, processes
from experiments.run_directory import RunDirectory, differences, hashes

CONFIG = {"seed": 0, "data": {"path": "mine.npz"}, "stable": {"learning_rate": 0.1, "max_epochs": 3}}
MADE_FROM = {"version": "1.0", "devices": 2, "data": "0f", "config": CONFIG}
ZERO = {"x": jnp.zeros(3)}


def opened(path, **changes):
    directory = RunDirectory(path, MADE_FROM | changes)
    directory.claim()
    return directory


def test_the_newest_good_state_is_used_and_older_ones_are_removed(tmp_path, capsys):
    directory = opened(tmp_path)
    assert directory.state("stage", ZERO) is None
    for number in (1, 2, 10):
        directory.save_state("stage", number, {"x": jnp.full(3, number)}, course=[number])
    directory.save_state("stage_b", 3, ZERO)  # of another stage, whose name begins the same
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("stage-*")) == [
        "stage-00000002.npz",
        "stage-00000010.npz",
    ]
    again = opened(tmp_path)
    saved = again.state("stage", ZERO)
    assert saved is not None and saved.tree["x"].tolist() == [10.0] * 3 and saved.about["course"] == [10]
    path = tmp_path / "checkpoints" / "stage-00000010.npz"
    for content in (b"", path.read_bytes()[:-40], bytes(len(path.read_bytes()))):
        path.write_bytes(content)
        saved = opened(tmp_path).state("stage", ZERO)
        assert saved is not None and saved.about["course"] == [2]
        assert "stage-00000010.npz is damaged" in capsys.readouterr().out
    (tmp_path / "checkpoints" / "stage-00000002.npz").write_bytes(b"")
    assert opened(tmp_path).state("stage", ZERO) is None


def test_saving_asks_other_processes_for_nothing_that_only_the_first_one_does(tmp_path, monkeypatch):
    """What one of two processes asks alone, both wait for for ever."""
    asked: list[tuple] = []
    of_the_first: list[tuple] = []

    def ask(name, value):
        asked.append((name, of_the_first[len(asked)][1] if of_the_first else value))  # what the first process has
        return asked[-1][1]

    for name in ("agree", "first", "largest"):
        monkeypatch.setattr(processes, name, partial(ask, name))
    for is_first in (True, False):
        monkeypatch.setattr(processes, "is_first", lambda is_first=is_first: is_first)
        directory = RunDirectory(tmp_path, MADE_FROM)
        directory.claim()
        for number in (1, 2, 3):
            directory.save_state("stage", number, ZERO)
        directory.state("stage", ZERO)
        directory.result("made", ZERO)
        of_the_first, asked = of_the_first or asked, asked if of_the_first else []
    assert asked == of_the_first and ("first", 3) in asked


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "0.9"}, "it is of stablejax 1.0, this is 0.9"),
        ({"data": "1f"}, "the contents of mine.npz have changed"),
        ({"devices": 4}, "it used 2 devices, now there are 4, see --config.host_devices"),
        (
            {"config": CONFIG | {"stable": {"learning_rate": 0.2, "num_cycles": 1}}},
            "it differs in stable.learning_rate 0.1 -> 0.2, stable.max_epochs 3 -> unset, stable.num_cycles unset -> 1",
        ),
    ],
)
def test_what_was_made_from_something_else_is_refused_by_any_checkpoint(changes, said, tmp_path):
    for kind in ("state", "result"):
        path = tmp_path / kind
        path.mkdir()
        directory = opened(path)
        (path / "config.json").unlink()  # what counts is in the checkpoint
        directory.save_state("stage", 1, ZERO) if kind == "state" else directory.save_result("made", ZERO)
        opened(path)
        with pytest.raises(ValueError) as refused:
            opened(path, **changes)
        assert said in str(refused.value) and str(path) in str(refused.value)
        assert not (path / "config.json").exists() or json.loads((path / "config.json").read_text())["config"] == CONFIG


def test_data_may_move_and_results_of_before_are_refused(tmp_path):
    moved = MADE_FROM | {"config": CONFIG | {"data": {"path": "elsewhere/mine.npz"}}}
    assert differences(MADE_FROM, moved) == []
    np.savez(tmp_path / "pretrained.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="it was made by an earlier version"):
        opened(tmp_path)


def test_data_are_known_by_their_contents(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    one, same, other = (hashes(str(tmp_path / name)) for name in "abc")
    assert one == same != other
    both, reverse = (hashes(f"{tmp_path / x},{tmp_path / y}") for x, y in ("ac", "ca"))
    assert len({one, other, both, reverse}) == 4
    assert both == hashes(f"{tmp_path}/b,{tmp_path}/[c]")


def test_lines_of_work_that_is_repeated_go(tmp_path):
    directory = opened(tmp_path)
    directory.progress.stage("stage")
    for number in (1, 2):
        directory.progress.update("", number / 4, number=number)
        directory.save_state("stage", number, ZERO)
    directory.progress.update("", 0.75, number=3)  # the process dies before its state is saved
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "st')
    again = opened(tmp_path)
    again.progress.stage("stage")
    again.state("stage", ZERO)
    again.progress.update("", 0.75, number=3)
    again.close()
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(entry["number"], entry["invocation"]) for entry in entries] == [(1, 1), (2, 1), (3, 2)]


def test_wall_times_of_all_invocations_count(tmp_path):
    (tmp_path / "invocations.json").write_text(json.dumps([{"wall_s": {"a": 1.0, "b": 2.0}}, {"wall_s": {"a": 3.0}}]))
    assert opened(tmp_path).close() == {"a": 4.0, "b": 2.0}
    (tmp_path / "invocations.json").write_text("[")
    with pytest.raises(ValueError, match="invocations.json is damaged, expected JSON.*remove it to go on"):
        opened(tmp_path)


def test_states_of_arrays_are_what_was_saved(tmp_path):
    directory = opened(tmp_path)
    directory.save_result("made", {"x": jnp.arange(3.0)}, num_pairs=4)
    made = directory.result("made", ZERO)
    assert made is not None and made.tree["x"].tolist() == [0, 1, 2] and made.about["num_pairs"] == 4
    assert directory.result("other", ZERO) is None
    assert checkpoints.about(tmp_path / "made.npz")["made_from"] == MADE_FROM
