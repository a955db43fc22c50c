"""`--help` lists every field with its value, unit and meaning; the meanings stand in the configs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cli, usage
from experiments.configs import check, meanings

ROOT = Path(__file__).resolve().parents[1]
NO_CONFIGS = ("__init__", "check", "common", "files", "meanings", "recipe")
CONFIGS = sorted(path.stem for path in cli.CONFIGS.glob("*.py") if path.stem not in NO_CONFIGS)
MODELS = sorted(path.stem for path in (cli.CONFIGS / "models").glob("[a-z]*.py"))
UNITS = {"_A": "Å", "_fs": "fs", "_ps": "ps", "_K": "K"}
"""By the suffixes of names."""


def config_of(name, model=None):
    return cli.load_config(str(cli.CONFIGS / f"{name}.py"), model=model)


def words(text):
    return " ".join(text.split())


def help_of(config, width=100, **options):
    return usage.text(config, **({"about": "It.", "file": "its.py", "width": width} | options))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_of_every_config_has_a_meaning_with_its_unit(name, model):
    config = config_of(name, model)
    meant, fields = meanings.meanings(config), [field for field, _ in check.fields(config)]
    assert [field for field in fields if len(meant.get(field, "").split()) < 2] == []
    units = {field: unit for field in fields for end, unit in UNITS.items() if field.endswith(end)}
    assert [field for field, unit in units.items() if unit not in re.split(r"[\s,;:]+", meant[field])] == []


def test_a_meaning_stands_in_one_place():
    """Comments on values, which say why they are others than the defaults, are not those of fields."""
    common, systems = meanings.of_file(cli.CONFIGS / "common.py"), meanings.OF_SYSTEMS.values()
    others = {name for file in systems for name in meanings.of_file(cli.CONFIGS / file)}
    assert others & common.keys() == {"md.damping_time_fs"}
    meant = meanings.meanings(config_of("aspirin"))
    assert meant["md.damping_time_fs"].startswith("langevin: 1/friction, fs")


def test_comments_are_read_through_aliases_sections_and_several_lines(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def get_config():\n    config = make()\n    config.seed = 0  # of all\n    a = config.a = make()  # a part\n"
        "    a.one = '# no comment'  # of the part\n    # above\n    a.two = 2\n    also = config.a.b\n"
        "    with config.unlocked():\n        also.three = (  # begins\n            3  # and ends\n        )\n"
        "    config.x = config.y = 0  # both\n    return config\n"
    )
    assert meanings.of_file(tmp_path / "mine.py") == {
        "seed": "of all",
        "a": "a part",
        "a.one": "of the part",
        "a.b.three": "begins and ends",
        "x": "both",
        "y": "both",
    }
    assert list(meanings.of_file(tmp_path / "mine.py", section="model."))[:2] == ["model.seed", "model.a"]


@pytest.mark.parametrize("name", ["aspirin", "ac_ala3_nhme", "water", "molecule", "water_paper"])
def test_every_field_is_listed_with_its_value_and_meaning(name):
    config = config_of(name)
    config.seed, config.pretrain.schedule = 7, "constant"
    listed, meant = words(help_of(config)), meanings.meanings(config)
    for field, value in check.fields(config):
        assert words(f"--config.{field}={'…' if value is None else value} {meant[field]}") in listed
    assert "--config.seed=7 " in listed and "--config.pretrain.schedule=constant" in listed
    assert ("(has to be given)" in listed) == (name == "molecule")
    assert listed.index("--config.seed") < listed.index("--config.pretrain.") < listed.index("--config.model.name")


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_lines_are_wrapped_to_the_terminal(width):
    config = config_of("water")
    config.data.path = "water.npz"
    wrapped = help_of(config, width, about="Of it. " * 20 + "\n\n    code  stays\n")
    assert max(len(line) for line in wrapped.split("\n")) <= max(width, 56)  # that of the longest name of a field
    assert "\n    code  stays\n" in wrapped
    assert words(wrapped) == words(help_of(config, 80, about="Of it. " * 20 + "\n\n    code  stays\n"))


HELPED = """
import sys
from jax._src import xla_bridge
from experiments import cli
sys.argv = ["paper", *sys.argv[1:]]
cli.start("{system}_paper", systems=("aspirin", "ac_ala3_nhme", "water"))
assert not xla_bridge.backends_are_initialized()
"""


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--help"], "Fields of --system=aspirin:"),
        (["-h", "--system", "water", "--config.md.skin_A=0.5"], "--config.md.skin_A=0.5"),
        (["--config=tests/tiny.py", "-help", "--system=water", "--config.model.name=nequip"], "num_replicas=4"),
    ],
)
def test_help_starts_nothing_and_shows_what_the_command_line_says(given, shown):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "90"}
    command = [sys.executable, "-c", HELPED, *given]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stderr) == (0, "")
    assert shown in run.stdout and max(len(line) for line in run.stdout.split("\n")) <= 90
    assert all(option in run.stdout for option in ("--config=FILE", "--system=NAME", "--dry_run", "--help"))


def test_what_is_wrong_beside_help_is_still_one_sentence(monkeypatch, capsys):
    for given, message in (
        (["--help", "--config.sed=1"], "error: config has no field sed: did you mean config.seed?"),
        (
            ["--help", "--system=ice"],
            "error: --system has to be one of aspirin, water, got 'ice': write --system=aspir",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["paper", *given])
        with pytest.raises(SystemExit) as caught:
            cli.start("{system}_paper", systems=("aspirin", "water"))
        assert caught.value.code == 2 and capsys.readouterr().err.startswith(message)
