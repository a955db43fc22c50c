"""The whole experiment at the smallest size, resumed, refused and reported; and what it keeps on disk."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny as tiny_config

import stablejax
from experiments import checkpoints, dry_run, interruption, pipeline, report
from experiments.configs import aspirin as aspirin_config
from experiments.configs import aspirin_paper, recipe
from experiments.data import loaders
from experiments.report.record import EARLY
from experiments.stages import pretrain
from stablejax.interfaces import files

ROOT = Path(__file__).resolve().parents[1]


def tiny(run_dir):
    config = tiny_config.get_config()
    config.run_dir = str(run_dir)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    return run_dir, pipeline.run(tiny(run_dir))


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


def test_the_recipe_runs_through_all_stages(tmp_path):
    """Natural steps, searches from the first frames, the best parameters, the horizon from the median before."""
    config = tiny(tmp_path)
    recipe.apply(config)
    config.stable.steps_per_frame, config.stable.num_cycles, config.stable.max_epochs = 10, 2, 1
    config.stable.num_iterations, config.stable.max_simulation_ps = 2, 0.02
    config.observable.width_A, config.observable.smearing_A = 0.1, 0.1
    config.stable.max_unstable = 0.25
    config.stability.range_margin_A = 0.01  # some replica fails at once
    record = pipeline.run(config)
    course = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    learned = [entry for entry in course if entry.get("phase") == "learning"]
    assert learned and all(entry["num_updates"] == 1 for entry in learned)
    assert all(0 < entry["force_change_eV_per_A"] < np.inf for entry in learned)
    assert any(entry.get("is_best") for entry in course)
    rows = {row["metric"] for row in record["rows"]}
    assert {"bond_variance_ratio", "torsion_transitions_per_ps", "train_force_mae_eV_per_A"} <= rows
    assert record["what_fails"].keys() == {"before", "after"} and "advice" in record


def test_record_on_disk_is_what_was_returned_with_rows_of_every_stage(finished):
    """What each figure is, `test_report` says."""
    run_dir, record = finished
    assert json.loads((run_dir / "record.json").read_text()) == record
    phases = {}
    for row in record["rows"]:
        phases.setdefault(row["metric"], []).append(row.get("phase", row.get("stage")))
    stages = ["pretraining", "evaluation before", "StABlE training", "evaluation after"]
    once, twice, thrice = [None], ["before", "after"], ["before", "after", EARLY]
    expected = {"h_r_mae": thrice, "force_mae_eV_per_A": twice, "logrank_p": once, "stage_wall_s": stages}
    assert {metric: phases[metric] for metric in expected} == expected
    assert record["config"]["data"]["path"] == "aspirin_gfn2.npz"
    energy = np.load(aspirin_config.DATA)["E"]
    assert record["energy_offset_eV"] == pytest.approx(energy.mean(), abs=3 * energy.std())
    assert record["num_reference"] == 6 * 1250  # two of the eight trajectories are held out for the test


def test_total_energies_follow_from_what_a_run_leaves_behind(finished):
    """Model, parameters and offset give the errors of the record, without reading how the run made them."""
    run_dir, record = finished
    config = tiny(run_dir)
    units = dict(energy_unit="eV", length_unit="angstrom")
    dataset = loaders.load(config.data.path, **units)
    test = loaders.split(dataset, num_train=4, num_validation=4, num_test=8, seed=0).test
    for phase, name, stage in (
        ("before", "potential_before", "pretraining"),
        ("after", "potential", "StABlE training"),
    ):
        potential, params = stablejax.load(run_dir / name)
        energy = jax.vmap(potential.energy, (None, 0))(params, dataset.position[test])
        total = np.asarray(energy, float) + potential.offset
        assert np.abs(total).min() > 1000 and np.abs(energy).max() < 10
        error = report.finder(record)("energy_mae_meV_per_atom", phase)["value"]
        assert 1000 * np.abs(total - dataset.energy[test]).mean() / 21 == pytest.approx(error, rel=1e-4)
        about = files.describe(run_dir / name)["provenance"]
        assert (about["stage"], about["data"]["files"]) == (stage, "aspirin_gfn2.npz")
        assert about["versions"]["jax"] == jax.__version__


def test_a_finished_run_is_not_run_again_and_gives_the_same_record(finished):
    run_dir, record = finished
    again = pipeline.run(tiny(run_dir))
    drop = lambda rows: [row for row in rows if row["metric"] != "stage_wall_s"]  # noqa: E731
    assert drop(again["rows"]) == drop(record["rows"])


def test_a_dry_run_beside_a_finished_run_says_so_and_touches_nothing(finished, capsys):
    run_dir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (run_dir, *run_dir.rglob("*"))}
    dry_run.run(tiny(run_dir))
    assert f"results: {run_dir}, where this run is already: it goes on from there\n" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (run_dir, *run_dir.rglob("*"))} == before
    other = tiny(run_dir)
    other.seed = 5
    with pytest.raises(ValueError, match="holds"):
        dry_run.run(other)


@pytest.mark.slow
def test_a_run_stopped_in_every_stage_ends_as_if_it_had_not_been(finished, tmp_path, monkeypatch):
    """Stopped once in each stage, each time after a checkpoint and a line of metrics that are not the stage's last."""
    run_dir, record = finished
    stops = iter(["pretraining-00000010.npz", "evaluation_before-00000001.npz", "stable-00000003.npz"])
    real, following, num_started = checkpoints.save, [next(stops)], 0

    def stopped(path, tree, about=None):
        real(path, tree, about)
        if path.name == following[0]:
            following[0] = next(stops, "evaluation_after-00000001.npz") if "after" not in path.name else ""
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(checkpoints, "save", stopped)
    while following[0]:
        num_started += 1
        with pytest.raises(interruption.Interrupted, match="SIGTERM"), interruption.deferred():
            pipeline.run(tiny(tmp_path / "run"))
    again = pipeline.run(tiny(tmp_path / "run"))
    assert num_started == 4
    drop = lambda rows: [row for row in rows if row["metric"] != "stage_wall_s"]  # noqa: E731
    assert drop(again["rows"]) == drop(record["rows"])
    for name in ("pretrained", "evaluation_before", "refined", "evaluation_after"):
        with np.load(run_dir / f"{name}.npz") as one, np.load(tmp_path / "run" / f"{name}.npz") as other:
            arrays = set(one.files) - {checkpoints.ABOUT}
            assert arrays == set(other.files) - {checkpoints.ABOUT}
            assert all(one[array].tobytes() == other[array].tobytes() for array in arrays), name
    texts = [(folder / "metrics.jsonl").read_text() for folder in (run_dir, tmp_path / "run")]
    lines = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert {line["invocation"] for line in lines[1]} == {1, 2, 3, 4, 5}
    timeless = [[{k: v for k, v in line.items() if k not in ("wall_s", "invocation")} for line in one] for one in lines]
    assert timeless[0] == timeless[1]
    invocations = json.loads((tmp_path / "run" / "invocations.json").read_text())
    walls = [sum(one["wall_s"].values()) for one in invocations]
    assert len(walls) == 5 and min(walls) > 0
    assert again["wall_s"] == pytest.approx(sum(walls), abs=1e-6)


def test_another_config_in_the_same_place_is_refused(finished):
    run_dir, _ = finished
    config = tiny(run_dir)
    config.stable.learning_rate = 0.5
    with pytest.raises(ValueError, match="it differs in stable.learning_rate 0.0001 -> 0.5"):
        pipeline.run(config)


def test_other_data_under_the_same_name_are_refused(tmp_path, monkeypatch):
    """Before anything is computed, with the first checkpoint of the first stage there."""
    config = tiny(tmp_path / "run")
    config.data.path = str(shutil.copy(aspirin_config.DATA, tmp_path / "mine.npz"))
    real = checkpoints.save

    def stopped(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config)
    (tmp_path / "run" / "config.json").unlink()
    with np.load(config.data.path) as file:
        np.savez(config.data.path, **{name: array + 0.5 if name == "E" else array for name, array in file.items()})
    monkeypatch.setattr(pretrain, "run_pretraining", lambda *_, **__: pytest.fail("pretraining goes on"))
    with pytest.raises(ValueError, match="holds another run .the contents of .*mine.npz have changed"):
        pipeline.run(config)


def test_a_damaged_result_is_made_again_from_the_state_before_it(finished, tmp_path, monkeypatch, capsys):
    run_dir, record = finished
    mine = shutil.copytree(run_dir, tmp_path / "run")
    (mine / "pretrained.npz").write_bytes((run_dir / "pretrained.npz").read_bytes()[:-100])
    monkeypatch.setattr(pretrain, "_report", lambda *_: pytest.fail("a step of pretraining was repeated"))
    again = pipeline.run(tiny(mine))
    drop = lambda rows: [row for row in rows if row["metric"] != "stage_wall_s"]  # noqa: E731
    assert drop(again["rows"]) == drop(record["rows"])
    assert "pretrained.npz is damaged (BadZipFile: " in capsys.readouterr().out
    with np.load(run_dir / "pretrained.npz") as one, np.load(mine / "pretrained.npz") as other:
        assert all(one[name].tobytes() == other[name].tobytes() for name in one.files if name != checkpoints.ABOUT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("md", "thermostat", "csvr"), "has to be one of langevin, nose_hoover, got 'csvr'"),
        (("stable", "optimizer", "lion"), "has to be sgd, adam or natural, got 'lion'"),
        (("pretrain", "schedule", "linear"), "has to be constant, cosine or plateau, got 'linear'"),
        (("evaluate", "frame_spacing_fs", 10.3), "config.evaluate.frame_spacing_fs has to be an integer multiple"),
        (("data", "num_train", 100_000), "asked for 100000 training"),
        (("stable", "wanted_signal_to_noise", 2.0), "needs the statistical error of the gradient"),
        (("stable", "jackknife_blocks", 5), "5 blocks need at least as many replicas, got 4"),
        (("system", None, "crystal"), "config.system has to be one of molecule, liquid, got 'crystal'"),
        (("data", "num_reference", 10**6), "asks for 1000000 frames"),
    ],
)
def test_settings_that_cannot_be_are_named(change, message, tmp_path):
    config = tiny(tmp_path / "run")
    section, field, value = change
    (config if field is None else config[section])[field or section] = value
    with pytest.raises(ValueError, match=message):
        pipeline.run(config)


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
    # The criterion is never scaled; the recipe has a further one in training.
    assert scaled.stability.to_dict() == config.stability.to_dict() | {"range_margin_A": 0.25}


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
    record = pipeline.run(config)
    rows = {(row["metric"], row.get("phase")): row["value"] for row in record["rows"]}
    assert 0 <= rows["fraction_unstable_at_horizon", "before"] <= 1
    assert ("vacf_mae", "before") not in rows  # MD17 has no velocities
    assert np.isfinite(rows["h_r_mae", "after"])


@pytest.mark.slow
def test_samples_are_used_again_and_their_worth_is_logged(tmp_path):
    config = tiny(tmp_path / "run")
    config.stable.num_cycles, config.stable.max_updates, config.stable.jackknife_blocks = 1, 3, 2
    config.stable.min_effective_fraction = 0.01
    config.evaluate.horizon_ps = 0.02
    pipeline.run(config)
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    learning = [entry for entry in entries if entry.get("phase") == "learning"]
    assert learning
    assert all(entry["num_updates"] == 3 and 0 < entry["effective_fraction"] <= 1 for entry in learning)
    assert all(entry["signal_to_noise"] > 0 and abs(entry["gradient_cosine"]) <= 1 for entry in learning)


@pytest.mark.slow
def test_noisy_gradients_get_more_samples(tmp_path):
    config = tiny(tmp_path / "run")
    config.stable.num_cycles, config.stable.max_epochs, config.stable.jackknife_blocks = 1, 3, 2
    config.stable.wanted_signal_to_noise, config.stable.max_rounds = 1e4, 4
    config.evaluate.horizon_ps = 0.02
    pipeline.run(config)
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    learning = [entry for entry in entries if entry.get("phase") == "learning"]
    assert [entry["num_rounds"] for entry in learning] == [1, 4, 4]
    assert learning[1]["num_samples"] > learning[0]["num_samples"]


@pytest.mark.parametrize("section", ["stable", "evaluate"])
def test_what_a_later_stage_cannot_be_built_from_is_found_before_the_first(section, tmp_path):
    """Three replicas on two devices."""
    config = tiny(tmp_path / "run")
    config[section].num_replicas = 3
    with pytest.raises(ValueError, match="3 replicas .*2 devices"):
        pipeline.run(config)
    assert not (tmp_path / "run").exists()
