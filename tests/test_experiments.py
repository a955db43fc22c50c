"""The whole experiment at the smallest size, resumed, refused and reported; and what it keeps on disk."""

from __future__ import annotations

import base64
import importlib.machinery
import io
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny as tiny_config

from experiments import checkpoints, pipeline, progress, runtime, training
from experiments.aspirin import build
from experiments.configs import aspirin as aspirin_config
from experiments.configs import aspirin_paper
from stablejax.dynamics import Replica

ROOT = Path(__file__).resolve().parents[1]


def tiny(run_dir):
    config = tiny_config.get_config()
    config.run_dir = str(run_dir)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    return run_dir, pipeline.run(tiny(run_dir), build)


def test_every_file_a_person_needs_is_there(finished):
    run_dir, _ = finished
    assert {"config.json", "metrics.jsonl", "record.json", "report.html", "figure.png", "refined.npz"} <= {
        path.name for path in run_dir.iterdir()
    }
    about = json.loads((run_dir / "config.json").read_text())
    assert about["config"]["seed"] == 0
    assert about["versions"]["jax"] == jax.__version__
    stages = [json.loads(line)["stage"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(stages)) == ["pretraining", "evaluation before", "StABlE training", "evaluation after"]


def test_record_has_the_figures_in_the_agreed_form(finished):
    _, record = finished
    metrics = {row["metric"] for row in record["rows"]}
    assert {
        "median_first_passage_ps",
        "ratio_median_first_passage",
        "logrank_p",
        "force_mae_eV_per_A",
        "energy_mae_meV_per_atom",
        "h_r_mae",
        "internal_temperature_K",
        "stage_wall_s",
    } <= metrics
    assert all(np.isfinite(row["value"]) for row in record["rows"])
    assert {row["phase"] for row in record["rows"] if row["metric"] == "h_r_mae"} == {"before", "after"}
    assert "/" not in record["config"]["data"]["path"]


def test_page_is_self_contained_with_its_picture(finished):
    run_dir, record = finished
    page = (run_dir / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    picture = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", page)[1])
    assert picture == (run_dir / "figure.png").read_bytes()
    force = next(r["value"] for r in record["rows"] if r["metric"] == "force_mae_eV_per_A" and r["phase"] == "after")
    assert f"{force:.4f}" in page


def test_a_finished_run_is_not_run_again_and_gives_the_same_record(finished):
    run_dir, record = finished
    again = pipeline.run(tiny(run_dir), build)
    drop = lambda rows: [row for row in rows if row["metric"] != "stage_wall_s"]  # noqa: E731
    assert drop(again["rows"]) == drop(record["rows"])


def test_an_interrupted_run_ends_as_if_it_had_not_been(finished, tmp_path, monkeypatch):
    run_dir, record = finished
    real, calls = checkpoints.save, []

    def failing(path, tree):
        real(path, tree)
        if path.name == "stable_state.npz":
            calls.append(path)
            if len(calls) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", failing)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(tiny(tmp_path / "run"), build)
    monkeypatch.setattr(checkpoints, "save", real)
    monkeypatch.setattr(training, "run_pretraining", lambda *_: pytest.fail("pretraining was run again"))
    again = pipeline.run(tiny(tmp_path / "run"), build)
    drop = lambda rows: [row for row in rows if row["metric"] != "stage_wall_s"]  # noqa: E731
    assert drop(again["rows"]) == drop(record["rows"])


def test_another_config_in_the_same_place_is_refused(finished):
    run_dir, _ = finished
    config = tiny(run_dir)
    config.stable.learning_rate = 0.5
    with pytest.raises(ValueError, match="holds a run with another config .it differs in stable."):
        pipeline.run(config, build)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("md", "thermostat", "csvr"), "has to be langevin or nose_hoover, got 'csvr'"),
        (("stable", "optimizer", "lion"), "has to be sgd or adam, got 'lion'"),
        (("pretrain", "schedule", "linear"), "has to be constant, cosine or plateau, got 'linear'"),
        (("evaluate", "frame_spacing_fs", 10.3), "config.evaluate.frame_spacing_fs has to be a whole number"),
        (("data", "num_train", 100_000), "asked for 100000 training"),
        (("stable", "wanted_signal_to_noise", 2.0), "set config.stable.trust_blocks"),
        (("stable", "trust_blocks", 3), "= 3 needs as many replicas on each of 2 devices, got 4 in all"),
    ],
)
def test_settings_that_cannot_be_are_named(change, message, tmp_path):
    config = tiny(tmp_path / "run")
    section, field, value = change
    config[section][field] = value
    with pytest.raises(ValueError, match=message):
        pipeline.run(config, build)


def test_paper_config_has_the_papers_settings():
    config = aspirin_paper.get_config()
    assert (config.data.num_train, config.md.temperature_K, config.md.timestep_fs) == (1000, 500.0, 0.5)
    stable = config.stable
    assert (stable.num_replicas, stable.steps_per_epoch, stable.steps_per_frame, stable.num_cycles) == (
        128,
        2000,
        100,
        4,
    )
    assert (stable.learning_rate, stable.qm_weight, stable.max_unstable, stable.optimizer) == (1e-3, 10.0, 0.75, "sgd")
    assert (config.evaluate.num_replicas, config.evaluate.horizon_ps) == (256, 300.0)
    scaled = aspirin_config.get_config()
    assert scaled.stability.to_dict() == config.stability.to_dict()  # the criterion is never scaled


@pytest.mark.slow
def test_paper_config_runs_on_real_md17(shared, tmp_path):
    """All stages with the paper's model, thermostat, optimizers and loss; only counts and lengths are cut."""
    config = aspirin_paper.get_config()
    config.run_dir = str(tmp_path / "run")
    config.data.path = str(shared / "data" / "aspirin_md17.npz")
    config.data.num_train, config.data.num_validation, config.data.num_test = 100, 20, 20
    config.pretrain.num_steps, config.pretrain.batch_size, config.pretrain.steps_per_validation = 200, 10, 100
    config.stable.num_replicas, config.stable.num_cycles, config.stable.max_epochs = 4, 1, 2
    config.stable.steps_per_epoch, config.stable.max_unstable = 200, 0.25
    config.evaluate.num_replicas, config.evaluate.horizon_ps, config.evaluate.chunk_ps = 4, 0.1, 0.05
    config.evaluate.vacf_window_fs = 20.0
    record = pipeline.run(config, build)
    rows = {(row["metric"], row.get("phase")): row["value"] for row in record["rows"]}
    assert 0 <= rows["fraction_unstable_at_horizon", "before"] <= 1
    assert ("vacf_mae", "before") not in rows  # MD17 has no velocities
    assert np.isfinite(rows["h_r_mae", "after"])


def test_checkpoints_keep_keys_and_refuse_others(tmp_path):
    tree = Replica(
        {"x": jnp.arange(3.0), "key": jax.random.key(1)}, jnp.int32(4), 1.5 * jnp.ones(()), True, False, False, ()
    )
    tree = jax.tree.map(jnp.asarray, tree)
    path = tmp_path / "state.npz"
    checkpoints.save(path, tree)
    loaded = checkpoints.load(path, tree)
    np.testing.assert_array_equal(jax.random.normal(loaded.md["key"]), jax.random.normal(tree.md["key"]))
    np.testing.assert_array_equal(loaded.md["x"], tree.md["x"])
    assert loaded.step.dtype == jnp.int32
    with pytest.raises(ValueError, match="holds another kind of checkpoint"):
        checkpoints.load(path, {"x": jnp.arange(3.0)})
    with pytest.raises(ValueError, match=r"`md/x` has shape \(3,\), expected \(4,\)"):
        checkpoints.load(path, tree._replace(md=tree.md | {"x": jnp.arange(4.0)}))
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


def test_command_of_the_record_has_no_paths_of_the_machine(monkeypatch):
    started = types.ModuleType("__main__")
    started.__spec__ = importlib.machinery.ModuleSpec("experiments.aspirin", None)
    monkeypatch.setitem(sys.modules, "__main__", started)
    monkeypatch.setattr(sys, "argv", ["/home/me/aspirin.py", "--config.data.path=/home/me/mine.npz", "--v=1"])
    assert runtime.command() == "python -m experiments.aspirin --config.data.path=mine.npz --v=1"


def test_progress_says_how_far_and_keeps_every_figure(tmp_path):
    stream = io.StringIO()
    shown = progress.Progress(tmp_path / "metrics.jsonl", stream, seconds_between_lines=0.0)
    shown.stage("baking")
    shown.update("half", 0.5, loss=1.0)
    shown.update("done", 1.0, loss=0.5)
    shown.close()
    lines = stream.getvalue().splitlines()
    assert "baking: half" in lines[0] and "left" in lines[0]
    assert "baking: done" in lines[1] and "left" not in lines[1]
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["loss"] for entry in entries] == [1.0, 0.5]
    assert set(shown.stage_wall_s) == {"baking"}


def test_samples_are_used_again_and_their_worth_is_logged(tmp_path):
    config = tiny(tmp_path / "run")
    config.stable.num_cycles, config.stable.max_updates, config.stable.trust_blocks = 1, 3, 2
    config.stable.min_effective_fraction = 0.01
    config.evaluate.horizon_ps = 0.02
    pipeline.run(config, build)
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    learning = [entry for entry in entries if entry.get("phase") == "learning"]
    assert learning
    assert all(entry["num_updates"] == 3 and 0 < entry["effective_fraction"] <= 1 for entry in learning)
    assert all(entry["signal_to_noise"] > 0 and abs(entry["gradient_cosine"]) <= 1 for entry in learning)


def test_noisy_gradients_get_more_samples(tmp_path):
    config = tiny(tmp_path / "run")
    config.stable.num_cycles, config.stable.max_epochs, config.stable.trust_blocks = 1, 3, 2
    config.stable.wanted_signal_to_noise, config.stable.max_rounds = 1e4, 4
    config.evaluate.horizon_ps = 0.02
    pipeline.run(config, build)
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    learning = [entry for entry in entries if entry.get("phase") == "learning"]
    assert [entry["num_rounds"] for entry in learning] == [1, 4, 4]
    assert learning[1]["num_samples"] > learning[0]["num_samples"]


CACHED = """
from experiments import runtime
runtime.configure(host_devices=1)
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: jnp.sin(x @ x) + jnp.cumsum(x, 0))(jnp.ones((9, 9))).shape)
"""


def test_programs_from_the_cache_are_loaded_in_silence(tmp_path):
    given = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    given.pop("TF_CPP_MIN_LOG_LEVEL", None)
    runs = [subprocess.run([sys.executable, "-c", CACHED], env=given, capture_output=True, text=True) for _ in range(2)]
    assert list(tmp_path.iterdir())
    assert [(run.returncode, run.stdout, run.stderr) for run in runs] == 2 * [(0, "(9, 9)\n", "")]
