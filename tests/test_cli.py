"""The command line of an experiment, and what its record says of the process."""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments import cli, processes, provenance
from experiments.configs.models import gemnet, nequip, schnet

ROOT = Path(__file__).resolve().parents[1]
WATER = str(ROOT / "experiments" / "configs" / "water.py")


def python(code, *arguments, **environment):
    given = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    given.pop("TF_CPP_MIN_LOG_LEVEL", None)
    given.pop("XLA_FLAGS", None)
    return subprocess.run([sys.executable, *code, *arguments], env=given, capture_output=True, text=True, cwd=ROOT)


def test_fields_keep_their_former_names(capsys):
    given = ["water", "--config.observable.molecules_per_neighbourhood=3", "--config.seed", "1"]
    assert cli.split_arguments(given) == (
        None,
        ["water", "--config.observable.molecules_per_neighborhood=3", "--config.seed", "1"],
    )
    note = "note: config.observable.molecules_per_neighbourhood is now config.observable.molecules_per_neighborhood\n"
    assert capsys.readouterr().err == note
    assert cli.split_arguments(["water", "--config.seed=1"]) == (None, ["water", "--config.seed=1"])
    assert capsys.readouterr().err == ""


def test_files_may_set_fields_by_their_former_names(tmp_path, capsys):
    former = "config.observable.molecules_per_neighbourhood = 3"
    (tmp_path / "mine.py").write_text(
        "from experiments.configs import water\n\n\ndef get_config():\n    config = water.get_config()\n"
        f"    {former}\n    return config\n"
    )
    observable = cli.load_config(str(tmp_path / "mine.py")).observable
    assert observable.molecules_per_neighborhood == 3
    assert "molecules_per_neighbourhood" not in observable
    assert "is now config.observable.molecules_per_neighborhood" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--config=mine.py"], ["--config", "mine.py"], ["-config=mine.py"]])
def test_the_file_of_the_config_is_found(given):
    assert cli.split_arguments(["water", *given, "--config.seed=1"]) == ("mine.py", ["water", "--config.seed=1"])


@pytest.mark.parametrize("model", [schnet, nequip, gemnet])
def test_every_model_has_a_file_that_fits_every_experiment(model):
    sizes = model.get_config()
    for name in ("aspirin", "ac_ala3_nhme", "water"):
        config = cli.load_config(str(cli.CONFIGS / f"{name}.py"), model=sizes.name)
        own = cli.load_config(str(cli.CONFIGS / f"{name}.py")).model
        assert config.model.to_dict() == (own if own.name == sizes.name else sizes).to_dict()


def test_a_model_is_replaced_whole_by_its_own_file(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    (tmp_path / "models" / "tower.py").write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        "    return ConfigDict({'name': 'tower', 'height_A': 3.0})\n"
    )
    monkeypatch.setattr(cli, "CONFIGS", tmp_path)
    assert cli.load_config(WATER, model="schnet").model.num_filters == 32  # the file's own
    assert cli.load_config(WATER, model="tower").model.to_dict() == {"name": "tower", "height_A": 3.0}
    with pytest.raises(ValueError, match="config.model.name has to be one of tower, got 'lstm'"):
        cli.load_config(WATER, model="lstm")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--config.model.name=lstm"], "config.model.name has to be one of "),
        (["--config.stable.learnig_rate=1"], "learnig_rate"),
        (["--config.model.name=nequip", "--config.model.num_layers=1", "--config.system=x"], "config.system has to be"),
        (["--config.model.name=nequip", "--config.model.num_filters=8"], "num_filters"),  # of the model it replaces
    ],
)
def test_what_is_wrong_with_the_input_is_one_sentence(given, message, tmp_path):
    run = python(["-m", "experiments.aspirin"], *given, f"--config.run_dir={tmp_path / 'run'}")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ") and message in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["molecule"],
            "expected a value of config.data.energy_unit, config.data.path, config.md.temperature_K, got none: set --",
        ),
        (
            [
                "molecule",
                "--config.data.path=mine.xyz",
                "--config.data.energy_unit=eV",
                "--config.md.temperature_K=300",
            ],
            "mine.xyz: no such file: set config.data.path to an .npz or .xyz file.",
        ),
        (["paper"], "--system has to be one of aspirin, ac_ala3_nhme, water, got '': write --system=aspirin."),
        (["paper", "--system=aspirin", "--config.data.path=md17.npz"], "md17.npz: no such file: set config.data.path"),
        (
            ["paper", "--system", "ac_ala3_nhme"],
            "expected a value of config.data.path, got none: set --config.data.path=… and so on.",
        ),
        (["paper", "--system=water", "--config.data.path=mine.npz"], "mine.npz: no such file"),
    ],
)
def test_own_molecules_and_the_papers_settings_start(given, message, tmp_path):
    """As far as they get without data: each sentence is of the config of that name."""
    name, *fields = given
    run = python(["-m", f"experiments.{name}"], *fields, f"--config.run_dir={tmp_path / 'run'}")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ") and message in run.stderr and "Traceback" not in run.stderr


def test_a_molecule_has_the_defaults_of_aspirin_and_names_nothing_of_it():
    molecule, aspirin = (cli.load_config(str(cli.CONFIGS / f"{name}.py")) for name in ("molecule", "aspirin"))
    own = {"name": "aspirin", "data.path": aspirin.data.path, "data.energy_unit": "eV", "md.temperature_K": 500.0}
    molecule.update_from_flattened_dict(own)
    assert molecule.to_dict() == aspirin.to_dict()


def test_a_config_needs_a_file_that_is_there():
    for given in (["--config"], ["--config", "--config.seed=1"], ["--config="]):
        with pytest.raises(ValueError, match="--config needs a file"):
            cli.split_arguments(["water", *given])
    with pytest.raises(OSError, match="nowhere.py"):
        cli.load_config("nowhere.py")
    with pytest.raises(ValueError, match="common.py: expected a config with a model, got none: begin with that of an"):
        cli.load_config(str(cli.CONFIGS / "common.py"), model="schnet")
    with pytest.raises(ValueError, match="has to be a Python file, got README.md"):
        cli.load_config("README.md")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process": 3}, "config.cluster.process has to be one of 0 to 0, got 3"),
        ({"process": 2, "num_processes": 2}, "config.cluster.process has to be one of 0 to 1, got 2"),
        ({"process": 1, "num_processes": 2}, "config.cluster.num_processes = 2 needs config.cluster.coordinator"),
    ],
)
def test_processes_need_a_number_and_a_place_to_meet(changes, message):
    with pytest.raises(ValueError, match=message):
        processes.join(ConfigDict({"process": 0, "num_processes": 1, "coordinator": ""} | changes))


def test_command_of_the_record_has_no_paths_of_the_machine(monkeypatch):
    started = types.ModuleType("__main__")
    started.__spec__ = importlib.machinery.ModuleSpec("experiments.aspirin", None)
    monkeypatch.setitem(sys.modules, "__main__", started)
    monkeypatch.setattr(sys, "argv", ["/home/me/aspirin.py", "--config.data.path=/home/me/mine.npz", "--v=1"])
    assert provenance.command() == "python -m experiments.aspirin --config.data.path=mine.npz --v=1"


def test_a_record_says_where_it_comes_from():
    about = json.loads(json.dumps(provenance.about()))
    assert list(about) == ["command", "environment", "commit", "versions", "machine"]
    assert about["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert about["machine"] | {"cpu": ""} == {"cores": len(os.sched_getaffinity(0)), "cpu": "", "accelerator": None} | {
        "devices": 2
    }


def test_a_commit_is_marked_where_code_has_changed_and_not_where_a_record_has(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    code, record = tmp_path / "code.py", tmp_path / provenance.RECORDS / "record.json"
    record.parent.mkdir(parents=True)
    for path in (code, record):
        path.write_text("1")
    assert provenance.commit(tmp_path) == "unknown"
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = provenance.commit(record.parent)
    assert len(clean) == 12 and clean != "unknown"
    record.write_text("2")
    assert provenance.commit(tmp_path) == clean
    code.write_text("2")
    assert provenance.commit(record.parent) == f"{clean}-dirty"


def test_programs_are_kept_by_kind_of_processor(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = []
    for features in ("Zen avx2", "Zen avx2 avx512f"):
        monkeypatch.setattr(provenance, "cpu_features", lambda features=features: features)
        folders.append(cli.cache_folder())
    assert folders[0] != folders[1]
    assert {folder.parent for folder in folders} == {tmp_path / "stablejax" / "xla"}


CACHED = """
from experiments import cli
cli.configure(host_devices=1)
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: jnp.sin(x @ x) + jnp.cumsum(x, 0))(jnp.ones((9, 9))).shape)
"""


def test_programs_from_the_cache_are_loaded_in_silence(tmp_path):
    runs = [python(["-c", CACHED], JAX_COMPILATION_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    assert list(tmp_path.iterdir())
    assert [(run.returncode, run.stdout, run.stderr) for run in runs] == 2 * [(0, "(9, 9)\n", "")]


NOISY = """
import os, sys
from experiments import false_alarms
false_alarms.drop()
for feature in (b"+prefer-no-gather", b"+prefer-no-scatter", b"+avx512f"):
    os.write(2, b"E0627 ] Loading XLA:CPU AOT result. Target machine feature " + feature + b" is not  supported\\n")
if sys.argv[1:] == ["dies"]:
    os.write(2, b"F0627 a check failed\\n")
    os.abort()
raise RuntimeError("it failed")
"""


def test_only_the_false_alarm_is_dropped():
    """A feature that is an instruction, a failure, and the last words before a crash are shown."""
    run = python(["-c", NOISY])
    lines = run.stderr.splitlines()
    assert run.returncode == 1
    assert lines[0].endswith("+avx512f is not  supported") and "prefer" not in run.stderr
    assert lines[-1] == "RuntimeError: it failed"
    run = python(["-c", NOISY], "dies")
    assert run.returncode < 0
    assert [line.partition("] ")[2] or line for line in run.stderr.splitlines()] == [
        "Loading XLA:CPU AOT result. Target machine feature +avx512f is not  supported",
        "F0627 a check failed",
    ]
    assert python(["-c", "import experiments, os; print('TF_CPP_MIN_LOG_LEVEL' in os.environ)"]).stdout == "False\n"
