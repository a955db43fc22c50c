"""`--dry_run` says what a run would do, finds what a run would refuse, and writes nothing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_data_cases import saved, water

from experiments import cli, dry_run, estimates, locks, memory, pipeline, run_directory
from experiments.dry_run import Stage
from experiments.stages import stabilize
from experiments.systems import base

ROOT = Path(__file__).resolve().parents[1]


def config_in(run_dir):
    config = tiny.get_config()
    config.run_dir = str(run_dir)
    return config


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """What the command prints, by what stands before the colon."""
    folder = tmp_path_factory.mktemp("runs")
    given = ["--config=tests/tiny.py", "--dry_run", f"--config.run_dir={folder / 'run'}", "--config.host_devices=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.aspirin", *given]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert list(folder.iterdir()) == []
    return dict(line.partition(": ")[::2] for line in run.stdout.splitlines())


def test_every_stage_has_a_line_with_its_size_time_and_memory(lines):
    stages = ["pretraining", "evaluation before", "StABlE training", "evaluation after"]
    assert [name for name in lines if name in stages] == stages
    for name in stages:
        what, time, needed = lines[name].rsplit("; ", 2)
        assert what and time.removeprefix("at most ").startswith("about ") and needed.endswith(" MB per device")
        assert time.startswith("at most ") == (name != "pretraining") and float(needed.split()[0]) > 0
    assert lines["pretraining"].startswith("20 steps of 4 of the 4 training frames, ")
    assert lines["evaluation before"] == lines["evaluation after"]
    assert lines["evaluation before"].startswith(
        "4 replicas from test frames, at most 0.04 ps each, 320 replica-steps;"
    )
    assert lines["StABlE training"].startswith(
        "4 replicas from training frames, t = 20 steps (0.01 ps), S = 10; 2 cycles of a search of at most 20 ps and at "
        f"most 2 epochs of learning, at most {2 * (2000 + 1 + 2) * 20 * 4:,} replica-steps; at most about "
    )


def test_the_data_the_dynamics_and_the_machine_are_named(lines):
    assert lines["aspirin"] == "21 atoms, C9H8O4, in open boundaries"
    assert lines["data"].startswith(
        "10,000 frames of aspirin_gfn2.npz: 4 training, 4 validation and 8 test frames, references are means over 7,500"
    )
    assert lines["dynamics"] == "500 K, steps of 0.5 fs, langevin"
    assert "a bond deviates by 0.25 Å" in lines["unstable in training"]
    assert lines["devices"].startswith("2 (cpu), ") and lines["devices"].endswith("of which a run may take 80 %")
    assert lines["results"].endswith("run, not there yet")


def test_parameters_are_counted():
    assert dry_run.num_parameters({"a": np.zeros((3, 4)), "b": [np.zeros(5), np.float32(1)]}) == 18


@pytest.fixture
def dry_main(monkeypatch, capsys):
    """The exit code and the lines of errors of `--dry_run` with a config."""

    def main(config):
        monkeypatch.setattr(cli, "configure", lambda **_: None)
        with pytest.raises(SystemExit) as caught:
            cli.main(config, is_dry=True)
        return caught.value.code, capsys.readouterr().err.splitlines()

    return main


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stable.steps_per_frame": 7}, "config.stable.steps_per_frame has to divide"),  # the config
        ({"data.path": "nowhere.npz"}, "nowhere.npz: no such file"),  # the data
        ({"pretrain.batch_size": 3}, "config.pretrain.batch_size = 3 cannot be sharded"),  # a stage
        ({"stable.optimizer": "lion"}, "config.stable.optimizer has to be sgd, adam or natural"),
    ],
)
def test_what_a_run_would_refuse_is_one_sentence(changes, message, dry_main, tmp_path):
    config = config_in(tmp_path / "run")
    config.update_from_flattened_dict(changes)
    code, errors = dry_main(config)
    assert code == 2 and len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_data_that_go_wrong_are_refused(dry_main, tmp_path):
    config = config_in(tmp_path / "run")
    config.data.path, config.data.energy_unit = str(saved(tmp_path, F=-water()["F"])), "eV"
    code, errors = dry_main(config)
    assert code == 2 and len(errors) == 1 and "these are gradients; multiply them by −1" in errors[0]


def test_the_memory_of_every_stage_is_checked(dry_main, tmp_path, monkeypatch):
    checked = []

    def check(what, *_, **__):
        checked.append(what)
        if len(checked) == 4:
            raise ValueError(f"{what} needs too much.")
        return 1

    monkeypatch.setattr(memory, "check", check)
    monkeypatch.setattr(estimates, "seconds", lambda _: 1.0)
    code, errors = dry_main(config_in(tmp_path / "run"))
    assert checked == ["pretraining", "the evaluation", "a step of simulation", "a step of learning"]
    assert code == 2 and errors == ["error: a step of learning needs too much."]
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_a_run_has_is_refused_and_not_touched(tmp_path):
    with locks.exclusive(tmp_path):
        before = (tmp_path / ".lock").stat()
        with pytest.raises(ValueError, match="is in use by another run: wait until it ends"):
            locks.check_free(tmp_path)
        assert (tmp_path / ".lock").stat().st_mtime_ns == before.st_mtime_ns
    locks.check_free(tmp_path)
    locks.check_free(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    dry_run.check_place(tmp_path / "runs" / "mine")
    dry_run.check_place(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file, expected a folder: choose another directory with --config.r"):
        dry_run.check_place(tmp_path / "file" / "mine")
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with pytest.raises(ValueError, match="may not be written: choose another directory with --config.run_dir"):
        dry_run.check_place(tmp_path / "runs" / "mine")


def test_the_directory_is_looked_at_before_anything_is_compiled(tmp_path, monkeypatch):
    """Another run in it, one that is at work, and a place that cannot be written."""
    monkeypatch.setattr(pipeline, "prepare", lambda _: 3 * (None,))
    monkeypatch.setattr(dry_run, "heading", lambda *_: pytest.fail("too late"))
    for module, name in ((run_directory, "holds_run"), (locks, "check_free"), (dry_run, "check_place")):

        def refuse(*_, name=name):
            raise ValueError(name)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            with pytest.raises(ValueError, match=name):
                dry_run.run(config_in(tmp_path))


def settings_of(**changes):
    config = tiny.get_config()
    config.update_from_flattened_dict({"stable.max_simulation_ps": 0.03} | changes)
    thermostat = base.thermostat("langevin", timestep_fs=0.5, damping_time_fs=100.0)
    system = SimpleNamespace(
        thermostat=thermostat,
        timestep_fs=0.5,
        table_intervals=0,
        freeze_above=1.0,
        data=SimpleNamespace(split=SimpleNamespace(train=np.arange(4))),
        problem=SimpleNamespace(potential=SimpleNamespace(num_atoms=21)),
    )
    return stabilize.settings_of(config, system), system


def test_the_most_that_may_be_done():
    """2 cycles, each 3 searches, a rewinding and 2 epochs, of 20 steps of 4 replicas, with a frame every 10 steps."""
    settings, system = settings_of()
    assert estimates.most_steps(settings, 4) == 2 * (3 + 1 + 2) * 20 * 4
    assert estimates.most_frames(settings, system, 4) == 2 * 2 * (8 + 4)  # samples, and the whole static set
    noisy = {"stable.jackknife_blocks": 2, "stable.wanted_signal_to_noise": 1.0, "stable.max_rounds": 8}
    settings, _ = settings_of(**noisy)
    assert estimates.most_steps(settings, 4) == 2 * (3 + 1 + 2 * 24) * 20 * 4
    assert estimates.most_frames(settings, system, 4) == 2 * 2 * (64 + 4 + 64)
    settings, _ = settings_of(**{"stable.max_updates": 3, "stable.qm_batch_size": 2})
    assert estimates.most_frames(settings, system, 4) == 2 * 2 * 3 * (8 + 2)


def replay_of(limit):
    """Dynamics that take at most so many steps, counted."""

    def replay(_, replicas, until):
        replay.steps = int(jnp.minimum(until, limit).sum())
        return replicas, SimpleNamespace(step=jnp.minimum(until, limit))

    return replay


def test_the_time_of_a_step_is_without_what_a_call_takes(monkeypatch):
    replay, replicas = replay_of(10_000), SimpleNamespace(step=jnp.zeros(6, int))
    monkeypatch.setattr(estimates.jax.tree, "map", lambda fn, given: SimpleNamespace(step=fn(given.step)))

    def seconds(call):
        call()
        return 3.0 + 0.25 * replay.steps

    monkeypatch.setattr(estimates, "seconds", seconds)
    for number in (2, 6, 9):
        assert estimates.step_seconds(replay, None, replicas, number=number) == pytest.approx(0.25)
    replay = replay_of(5)  # all replicas stop there
    assert estimates.step_seconds(replay, None, replicas, number=2) == pytest.approx(0.25 + 3 / 10)
    replay = replay_of(0)
    assert math.isnan(estimates.step_seconds(replay, None, replicas, number=6))


def test_the_mean_time_of_calls_that_are_short(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(estimates, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def call(takes):
        calls.append(takes)
        clock[0] += takes if len(calls) > 1 else 100.0  # it is compiled

    assert estimates.seconds(lambda: call(0.125)) == pytest.approx(0.125) and len(calls) == 1 + 4
    calls.clear()
    assert estimates.seconds(lambda: call(9.0)) == pytest.approx(9.0) and len(calls) == 2


@pytest.mark.parametrize(("batch", "number", "expected"), [(1, 32, 2), (None, 32, 32), (8, 12, 12), (4, 12, 8)])
def test_replicas_that_are_simulated_at_once(batch, number, expected):
    system = SimpleNamespace(execution=SimpleNamespace(batch_size=batch))
    assert estimates.num_at_once(system, number) == expected  # on two devices


@pytest.mark.parametrize(
    ("wall_s", "expected"),
    [
        (0.3, "about 0.3 s"),
        (17.4, "about 17 s"),
        (119.0, "about 120 s"),
        (601.0, "about 10 min"),
        (9000.0, "about 2.5 h"),
        (1e6, "about 12 days"),
        (math.nan, "an unknown time"),
    ],
)
def test_times_in_words(wall_s, expected):
    assert dry_run.duration(wall_s) == expected
    assert dry_run.sentence(Stage("much", wall_s, True, 2**30)) == f"much; at most {expected}; 1.1 GB per device"
    assert dry_run.sentence(Stage("much", wall_s, False, 10**7)) == f"much; {expected}; 10 MB per device"
    assert dry_run.sentence(Stage("much", wall_s, False, 10**5)) == f"much; {expected}; 0.1 MB per device"
