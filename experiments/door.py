"""From a file of data to a whole config: what is chosen from the data, each with its reason.

What a person sets is not chosen. The choices are printed, and written as a config that a second run can change; see
`sizing` for those that follow from a time.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.configs import files
from experiments.data import conventions, loaders, splits
from experiments.data.dataset import Dataset

CONFIGS = Path(__file__).parent / "configs"
KINDS = {False: "molecule", True: "liquid"}
"""Files of configs, by whether there is a cell."""
NUM_TEST, NUM_VALIDATION, NUM_TRAIN = 500, 100, 1000
"""Most frames for each purpose; the paper trains on as many."""
LEAST_FRAMES = 20
MINUTES = 15.0
FILE = "chosen.py"
"""Of the choices, in the directory of the run."""


class Choice(NamedTuple):
    """A field, its value and the reason."""

    field: str
    value: Any
    why: str


class Opened(NamedTuple):
    """What follows from a file of data, and the time that sizes are still to follow from."""

    config: ConfigDict
    choices: list[Choice]
    given: Mapping[str, str]  # fields that a person sets
    minutes: float


def open_data(given: Mapping[str, str], *, minutes: float | None) -> tuple[str | None, Opened | None]:
    """The file of the config that a run with this data has already, or what is to be chosen; neither without data.

    Args:
      given: fields that a person sets, by their names with dots, as they are written.
      minutes: that the run may take. None: `MINUTES`.

    Raises:
      ValueError: see `from_data`.
    """
    if "data.path" not in given:
        return None, None
    name = given.get("name") or _name_of(given["data.path"])
    file = Path(given.get("run_dir") or f"runs/{name}_seed{given.get('seed', '0')}") / FILE
    if file.is_file():
        print(f"as chosen before: {file}", flush=True)
        return str(file), None
    config, choices = from_data(given["data.path"], given)
    return None, Opened(config, choices, given, MINUTES if minutes is None else minutes)


def from_data(path: str, given: Mapping[str, str]) -> tuple[ConfigDict, list[Choice]]:
    """The config for a data set, and what was chosen in it.

    Args:
      path: of the data.
      given: fields that a person sets, which are not chosen, by their names with dots; as they are written.

    Raises:
      ValueError: the data cannot be used, or leave open what they are.
    """
    dataset = _read(path, given)
    kind = KINDS[dataset.cell is not None]
    config = files.read(CONFIGS / f"{kind}.py")
    config.data.path = path
    choices = [
        Choice("name", _name_of(path), "after the file"),
        *_unit_and_temperature(path, dataset, given),
        *_frames(path, dataset),
    ]
    return config, made(config, choices, given)


def made(config: ConfigDict, choices: list[Choice], given: Collection[str]) -> list[Choice]:
    """The choices that a person has not made, which the config gets.

    Args:
      config: is changed.
      choices: proposed.
      given: names of the fields that a person sets.
    """
    choices = [one for one in choices if one.field not in given]
    config.update_from_flattened_dict({one.field: one.value for one in choices})
    return choices


def text(config: ConfigDict, choices: list[Choice], command: str) -> str:
    """A file of a config with the choices, to be changed and given to `--config`.

    Args:
      config: that they are in.
      choices: from the data and the time.
      command: that they were made by.
    """
    kind, model = config.system, config.model.name
    is_own = model == files.read(CONFIGS / f"{kind}.py").model.name
    paths = ",".join(os.path.abspath(path) for path in config.data.path.split(","))
    lines = [
        f'"""Chosen by {command}"""',
        "",
        f"from experiments.configs import {kind}",
        *([] if is_own else [f"from experiments.configs.models import {model}"]),
        "",
        "",
        "def get_config():",
        f"    config = {kind}.get_config()",
        *([] if is_own else ["    with config.unlocked():", f"        config.model = {model}.get_config()"]),
        f"    config.data.path = {paths!r}  # given",
        *(f"    config.{one.field} = {one.value!r}  # {one.why}" for one in choices),
        "    return config",
    ]
    return "\n".join(lines) + "\n"


def _read(path: str, given: Mapping[str, str]) -> Dataset:
    keys = loaders.Keys(*(given.get(f"data.{name}_key", "") for name in loaders.Keys._fields))
    max_bytes = float(given.get("data.max_gigabytes", loaders.MAX_BYTES / 1e9)) * 1e9
    return loaders.peek(path, length_unit=given.get("data.length_unit", "angstrom"), keys=keys, max_bytes=max_bytes)


def _name_of(path: str) -> str:
    """The name of the first file without its ending, where it can name a folder."""
    first = Path(path.split(",")[0]).name
    return re.sub(r"[^\w.-]", "_", re.sub(r"(\.(ext)?xyz(\.gz)?|\.\w+(:.*)?)$", "", first)).strip("._") or "mine"


def _unit_and_temperature(path: str, dataset: Dataset, given: Mapping[str, str]) -> list[Choice]:
    stated = conventions.temperature_of(dataset)
    known = float(given["md.temperature_K"]) if "md.temperature_K" in given else stated and float(stated.value)
    unit = (
        conventions.Found(given["data.energy_unit"], "given")
        if "data.energy_unit" in given
        else conventions.unit_of(path, dataset, known)
    )
    choices = [Choice("data.energy_unit", unit.value, unit.why)]
    if known is None:
        by_forces = conventions.temperature_by_forces(dataset) * loaders.ENERGY_UNITS.get(str(unit.value), math.nan)
        raise ValueError(
            f"{path}: expected the temperature of the data, which are without velocities: give "
            f"--config.md.temperature_K; forces along bonds suggest about {float(f'{by_forces:.2g}'):g} K."
        )
    return choices + ([] if stated is None else [Choice("md.temperature_K", stated.value, stated.why)])


def _frames(path: str, dataset: Dataset) -> list[Choice]:
    """As many as the paper, or what there are; a fifth of the frames, or trajectories of their own, for the test."""
    num_frames = len(dataset.energy)
    is_held_out = splits.of_held_out_trajectories(dataset)
    testable = num_frames // 5 if is_held_out is None else int(is_held_out.sum())
    learnable = num_frames - testable
    if num_frames < LEAST_FRAMES or learnable < 2:
        raise ValueError(
            f"{path}: expected at least {LEAST_FRAMES} frames to learn from and to test on, got {num_frames}: add "
            "frames."
        )
    num_validation = max(1, min(NUM_VALIDATION, learnable // 5))
    why = f"of {num_frames:,} frames" + ("" if is_held_out is None else ", test frames from trajectories of their own")
    return [
        Choice("data.num_train", min(NUM_TRAIN, learnable - num_validation), why),
        Choice("data.num_validation", num_validation, why),
        Choice("data.num_test", min(NUM_TEST, testable), why),
    ]
