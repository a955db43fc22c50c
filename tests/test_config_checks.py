"""What is wrong with a config is found before anything is computed, and said in one sentence."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments import cli
from experiments.configs import check, files

CONFIGS = sorted(
    path
    for path in cli.CONFIGS.glob("*.py")
    if path.stem not in ("__init__", "check", "common", "files", "meanings", "recipe")
)
MODELS = sorted(path.stem for path in (cli.CONFIGS / "models").glob("[a-z]*.py"))


def config_of(file="aspirin", **fields):
    config = cli.load_config(str(cli.CONFIGS / f"{file}.py"))
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in fields.items()})
    return config


def is_number(section: ConfigDict, name: str) -> bool:
    *sections, field = name.split(".")
    for part in sections:
        section = section[part]
    return section.get_type(field) in (int, float)


def test_every_number_of_every_config_has_a_constraint():
    numbers = set()
    for path in CONFIGS:
        for model in MODELS:
            config = cli.load_config(str(path), model=model)
            numbers |= {name for name, _ in check.fields(config) if is_number(config, name)}
    own = {name for path in CONFIGS for name, _ in check.fields(cli.load_config(str(path)))}
    assert numbers - check.CONSTRAINTS.keys() == set()
    assert check.CONSTRAINTS.keys() - numbers - own == set()  # none of a field that is no more


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_that_ship_are_in_range(path):
    check.check(cli.load_config(str(path)))


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("aspirin", "stable.steps_per_frame", 300, "has to divide config.stable.steps_per_epoch = 2000, got 300"),
        ("aspirin", "stable.num_replicas", 0, "has to be at least 1, got 0"),
        ("aspirin", "evaluate.horizon_ps", 0.5, "has to be at least config.evaluate.chunk_ps = 1, got 0.5"),
        ("aspirin", "evaluate.vacf_window_fs", 1000.0, "has to be at most 990, config.evaluate.chunk_ps less one"),
        ("water", "evaluate.displacement_ps", 2.0, "has to be at most 1.99, config.evaluate.chunk_ps less one"),
        ("aspirin", "md.temperature_K", 0.0, "has to be above 0 and finite, got 0.0"),
        ("aspirin", "md.timestep_fs", float("inf"), "has to be above 0 and finite, got inf"),
        ("aspirin", "md.damping_time_fs", float("nan"), "has to be above 0 and finite, got nan"),
        ("aspirin", "model.cutoff_A", -1.0, "has to be above 0 and finite, got -1.0"),
        ("aspirin", "stable.qm_weight", -1.0, "has to be at least 0 and finite, got -1.0"),
        ("aspirin", "stable.min_unstable", 1.5, "has to be from 0 to 1, got 1.5"),
        ("aspirin", "stable.max_unstable", 0.0, "has to be above 0 and at most 1, got 0.0"),
        ("aspirin", "pretrain.average_decay", 1.0, "has to be at least 0 and below 1, got 1.0"),
        ("water", "md.spare_pairs", 0.5, "has to be at least 1 and finite, got 0.5"),
        ("aspirin", "seed", -1, "has to be at least 0, got -1"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_was_expected(name, field, value, message):
    config = config_of(name)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError) as caught:
        check.check(config)
    assert str(caught.value).startswith(f"config.{field} {message}")
    assert len(str(caught.value).splitlines()) == 1


def test_each_mistake_has_a_line_and_the_exit_code_is_2(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(config_of(stable__num_replicas=0, pretrain__force_weight=-1.0))
    assert caught.value.code == 2
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "error: config.pretrain.force_weight has to be at least 0 and finite, got -1.0.",
        "error: config.stable.num_replicas has to be at least 1, got 0.",
    ]


def test_a_misspelled_field_of_a_file_is_found():
    config = config_of()
    with config.unlocked():
        config.stable.learnig_rate = 1.0
    with pytest.raises(ValueError, match="config has no field stable.learnig_rate: did you mean config.stable.learnin"):
        check.check(config)


@pytest.mark.parametrize("name", ["../mine", "/mine", "a/b", "..", ".", "", "a\\b"])
def test_a_run_stays_in_its_folder(name):
    with pytest.raises(ValueError, match="config.name has to be the name of a folder in runs/, without a path"):
        check.check(config_of(name=name))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.stable.learnig_rate=1",
            "config has no field stable.learnig_rate: did you mean config.stable.lear",
        ),
        ("--config.timestep_fs=1", "config has no field timestep_fs: did you mean config.md.timestep_fs"),
        ("--noconfig.observable.by_elemnt", "did you mean config.observable.by_element?"),
        ("--config.qqqqqq=1", "config has no field qqqqqq: see experiments/configs/common.py."),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(argument, message):
    cli.check_names(config_of(), ["aspirin", "--config.seed=1", "--noconfig.observable.by_element"])
    with pytest.raises(ValueError) as caught:
        cli.check_names(config_of(), ["aspirin", argument])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "mine.py, line 1: syntax error: invalid syntax."),
        ("\ndef get_config():\n    return 1 / 0\n", "mine.py, line 3: ZeroDivisionError: division by zero."),
        ("import absent_module\n", "mine.py, line 1: ModuleNotFoundError: No module named 'absent_module'."),
        ("open('absent.txt')\n", "mine.py, line 1: FileNotFoundError: "),
        ("x = 1\n", "expected a function get_config(), found none."),
        ("def get_config():\n    return {}\n", "get_config() has to return a ConfigDict, got dict."),
    ],
)
def test_a_broken_file_is_one_sentence(text, message, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "mine.py", Path("mine.py")):
        with pytest.raises(ValueError) as caught:
            files.read(path)
        assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(13, "Permission denied", "runs"), 2, "error: [Errno 13] Permission denied: 'runs'"),
        (MemoryError(), 2, "error: the memory of this machine does not suffice"),
        (ValueError("expected x, got y."), 2, "error: expected x, got y."),
        (TypeError("ours"), 1, "This is a defect of the program"),
    ],
)
def test_only_a_defect_shows_its_traceback(error, code, line, monkeypatch, capsys):
    def fails(**_):
        raise error

    monkeypatch.setattr(cli, "configure", fails)
    with pytest.raises(SystemExit) as caught:
        cli.main(config_of())
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == code and lines[-1].startswith(line)
    assert lines[0].startswith("Traceback") == (code == 1) and (len(lines) == 1) == (code == 2)


def test_programs_are_private(tmp_path, monkeypatch):
    folder = tmp_path / "stablejax" / "xla" / "kind"
    folder.mkdir(parents=True, mode=0o755)
    assert stat.S_IMODE(cli.make_private(folder).stat().st_mode) == 0o700
    monkeypatch.setattr(os, "getuid", lambda: Path(folder).stat().st_uid + 1)
    with pytest.raises(ValueError, match="belongs to another user: choose one of yours with JAX_COMPILATION_CACHE_DIR"):
        cli.make_private(folder)
