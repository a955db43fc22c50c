"""The directory of a run: what it was made from, its results, and the latest states of each stage.

A state or a result is taken up again only by the run that it was made from. Of the states of a stage the newest that is
not damaged is used.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from experiments import checkpoints, disk, interruption, potentials, processes, provenance
from experiments.configs import check, common
from experiments.data import sources
from experiments.progress import Progress
from experiments.systems.base import System
from stablejax.types import Params

NUM_KEPT = 2
"""States of a stage: the newest, and one to go back to."""
STATES = "checkpoints"
INVOCATIONS = "invocations.json"
NOT_COMPARED = ("data.path",)
"""Fields that may change between invocations: the contents of the data are compared."""


class Saved(NamedTuple):
    """A pytree read back, and what was written beside it."""

    tree: Any
    about: dict[str, Any]


def made_from(config: ConfigDict) -> dict[str, Any]:
    """What determines the results of a run: its config, the contents of its data, the version and the devices.

    Args:
      config: of the experiment, whose data have been read.
    """
    given = json.loads(config.to_json_best_effort())
    for name in common.OF_THE_MACHINE:
        given.pop(name, None)  # a config read back from a run has none
    return {
        "version": metadata.version("stablejax"),
        "devices": jax.device_count(),
        "data": hashes(str(config.data.path)),
        "config": disk.finite(given),
    }


def hashes(path: str) -> str:
    """SHA-256 of the contents of a data set, all its files in their order."""
    found = hashlib.sha256()
    for source in sources.find(path):
        with source.path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest() + source.group.encode())
    return found.hexdigest()


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What a checkpoint was made from that is other than what a run is made from, in words.

    Args:
      mine: from `made_from`.
      theirs: of the checkpoint.
    """
    if not theirs:
        return ["it was made by an earlier version, which did not say what from"]
    found = []
    if mine["version"] != theirs["version"]:
        found.append(f"it is of stablejax {theirs['version']}, this is {mine['version']}")
    one, other = (dict(check.fields(ConfigDict(made["config"]))) for made in (mine, theirs))
    changed = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    if changed := [name for name in changed if name not in NOT_COMPARED]:
        listed = ", ".join(f"{name} {_shown(other.get(name))} -> {_shown(one.get(name))}" for name in changed)
        found.append(f"another config, it differs in {listed}")
    if mine["data"] != theirs["data"]:
        found.append(f"the contents of {one['data.path']} have changed")
    if mine["devices"] != theirs["devices"]:
        found.append(f"it used {theirs['devices']} devices, now there are {mine['devices']}, see --config.host_devices")
    return found


def holds_run(path: Path, made_from: dict[str, Any]) -> bool:
    """Whether a directory has checkpoints, which the run would go on from. Nothing is written.

    Args:
      path: need not exist.
      made_from: see `made_from`.

    Raises:
      ValueError: they are of another run.
    """
    files = [*path.glob("*.npz"), *(path / STATES).glob("*.npz")]
    for file in files:
        try:
            about = checkpoints.about(file)
        except checkpoints.Damaged:
            continue  # `RunDirectory` says so when it needs it
        if found := differences(made_from, about.get("made_from", {})):
            raise ValueError(
                f"{path} holds another run ({'; '.join(found)}): restore what was changed, or choose another directory "
                "with --config.run_dir."
            )
    return bool(files)


def _shown(value: Any) -> str:
    return "unset" if value is None else repr(value)


class Invocations:
    """The times that a run was started, and the seconds that each spent in every stage.

    Args:
      path: of the file.

    Raises:
      ValueError: the file is damaged.
    """

    def __init__(self, path: Path):
        use = "it is a list of the times that the run was started: remove it to go on without their wall times"
        former = disk.read_json(path, use=use) if path.exists() else []
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._path = path
        self._all: list[dict[str, Any]] = [*former, {"began": now} | provenance.about() | {"wall_s": {}}]

    @property
    def number(self) -> int:
        """Of this one, from 1."""
        return len(self._all)

    @property
    def wall_s(self) -> dict[str, float]:
        """Seconds spent in each stage, over all invocations."""
        total: dict[str, float] = {}
        for invocation in self._all:
            for stage, seconds in invocation["wall_s"].items():
                total[stage] = total.get(stage, 0.0) + seconds
        return total

    def note(self, wall_s: dict[str, float]) -> None:
        """Keep the seconds that this one has spent in each stage so far."""
        self._all[-1]["wall_s"] = {stage: round(seconds, 3) for stage, seconds in wall_s.items()}
        if processes.is_first():
            disk.write_json(self._path, self._all)


class RunDirectory:
    """Checkpoints of one run in its directory, which has to be locked.

    Args:
      path: of the directory.
      made_from: see `made_from`.
    """

    def __init__(self, path: Path, made_from: dict[str, Any]):
        self.path, self._made_from = path, made_from
        self._invocations = Invocations(path / INVOCATIONS)
        self.progress = Progress(
            path / "metrics.jsonl",
            is_silent=not processes.is_first(),
            invocation=self._invocations.number,
            on_wall=self._invocations.note,
        )
        self.progress.resume_at(0)  # until a checkpoint is found

    def claim(self) -> None:
        """Write what this run is, where nothing in the directory is of another.

        Raises:
          ValueError: something is.
        """
        holds_run(self.path, self._made_from)
        if processes.is_first():
            with disk.writing(self.path / STATES):
                (self.path / STATES).mkdir(parents=True, exist_ok=True)
            disk.write_json(self.path / "config.json", {"config": self._made_from["config"]} | provenance.about())

    def save_potential(self, phase: str, system: System, params: Params) -> None:
        """See `potentials.save`."""
        potentials.save(self.path, phase, system, params, self._made_from)

    def save_result(self, name: str, tree: Any, **about: Any) -> None:
        """Keep what a stage has found.

        Args:
          name: of the file.
          tree: a pytree.
          about: what is needed beside it to go on, as JSON.
        """
        checkpoints.save(self.path / f"{name}.npz", tree, self._about(about))

    def result(self, name: str, like: Any) -> Saved | None:
        """What a stage has found, if it is there and not damaged.

        Args:
          name: of the file.
          like: see `checkpoints.load`.
        """
        path = self.path / f"{name}.npz"
        return self._loaded(path, like, "it is made again") if processes.agree(path.exists()) else None

    def save_state(self, stage: str, number: int, tree: Any, **about: Any) -> None:
        """Keep the state of a stage, and end here if the run was asked to. All processes have to call it.

        Args:
          stage: that it is of.
          number: larger than that of any earlier state.
          tree: a pytree.
          about: what is needed beside it to go on, as JSON.

        Raises:
          Interrupted: the run was asked to end.
        """
        checkpoints.save(self.path / STATES / f"{stage}-{number:08}.npz", tree, self._about(about))
        if processes.is_first():
            numbers = [other for other in self._found(stage) if other <= number]
            for old in numbers[:-NUM_KEPT]:
                (self.path / STATES / f"{stage}-{old:08}.npz").unlink(missing_ok=True)
        interruption.check()

    def state(self, stage: str, like: Any) -> Saved | None:
        """The newest state of a stage that is not damaged, if there is one.

        Args:
          stage: that it is of.
          like: see `checkpoints.load`.
        """
        for number in reversed(self._numbers(stage)):
            path = self.path / STATES / f"{stage}-{number:08}.npz"
            if (saved := self._loaded(path, like, "the one before it is used")) is not None:
                return saved
        return None

    def close(self) -> dict[str, float]:
        """End the last stage; returns the seconds spent in each, over all invocations."""
        self.progress.close()
        return self._invocations.wall_s

    def _about(self, others: dict[str, Any]) -> dict[str, Any]:
        return {"made_from": self._made_from, "num_lines": self.progress.num_lines} | others

    def _loaded(self, path: Path, like: Any, what_follows: str) -> Saved | None:
        try:
            tree, about = checkpoints.load_with_about(path, like)
        except checkpoints.Damaged as error:
            self.progress.say(f"{error}: {what_follows}")
            return None
        self.progress.resume_at(about["num_lines"])
        return Saved(tree, about)

    def _found(self, stage: str) -> list[int]:
        """Numbers of the states of a stage, in order, as this process sees them."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in (self.path / STATES).glob(f"{stage}-*.npz"))

    def _numbers(self, stage: str) -> list[int]:
        """Of the states of a stage, in order, as the first process sees them."""
        found = self._found(stage)
        count = processes.first(len(found))
        return [processes.first(found[index] if processes.is_first() else 0) for index in range(count)]
