"""What faults are injected into: finished and interrupted runs, and what is right afterwards."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks import kills, runs
from experiments.benchmarks.kills import Moment, Timeline
from experiments.benchmarks.runs import TRACEBACK, Outcome, Runner


class Verdict(NamedTuple):
    """What happened, and whether that was right."""

    is_ok: bool
    happened: str


class Scene:
    """An uninterrupted run, and interrupted ones that are made when they are asked for."""

    def __init__(self, runner: Runner, expected: Path, timeline: Timeline):
        self.runner, self.expected, self.timeline = runner, expected, timeline
        self._made: dict[tuple[str, ...], Path] = {}
        self._number = 0

    def folder(self) -> Path:
        """A path that nothing is at."""
        self._number += 1
        return self.runner.folder / f"fault_{self._number}"

    def interrupted(self, stage: str, *fields: str) -> Path:
        """A copy of a run that was killed in the middle of a stage.

        Args:
          stage: by its name in the metrics.
          fields: of the command line.
        """
        key = (stage, *fields)
        if key not in self._made:
            run_dir = self._made[key] = self.folder()
            kills.kill_at(self.middle(stage), self.timeline, self.runner.start(run_dir, *fields), run_dir)
        copy = self.folder()
        shutil.copytree(self._made[key], copy)
        return copy

    def middle(self, stage: str) -> Moment:
        """When half of the lines of a stage are there."""
        stages = self.timeline.stages
        return Moment(stage, stages.index(stage) + (stages.count(stage) + 1) // 2, 0.0)

    def refused(self, outcome: Outcome, *words: str) -> Verdict:
        """Right: exit code 2 and one sentence.

        Args:
          outcome: of the process.
          words: that the sentence has to have.
        """
        return Verdict(outcome.is_sentence and all(word in outcome.output for word in words), self.said(outcome))

    def same(self, outcome: Outcome, run_dir: Path, *words: str) -> Verdict:
        """Right: exit code 0 and the results of the uninterrupted run.

        Args:
          outcome: of the process.
          run_dir: of the run.
          words: that have to be in the output.
        """
        if outcome.code:
            return Verdict(False, self.said(outcome))
        different = runs.differences(self.expected, run_dir)
        missing = [word for word in words if word not in outcome.output]
        happened = f"other {', '.join(different)}" if different else "same results"
        happened += "".join(f", nothing said of {word}" for word in missing)
        return Verdict(not different and not missing and TRACEBACK not in outcome.output, happened)

    def same_or_refused(self, outcome: Outcome, run_dir: Path, *words: str) -> Verdict:
        """Either of these.

        Args:
          outcome: of the process.
          run_dir: of the run.
          words: that have to be in the output.
        """
        return self.same(outcome, run_dir) if outcome.code == 0 else self.refused(outcome, *words)

    def said(self, outcome: Outcome) -> str:
        """Exit code and last words, without the paths of this machine."""
        lines = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
        lines = lines or outcome.output.strip().splitlines()[-1:]
        kind = "a traceback, " if TRACEBACK in outcome.output else ""
        return f"exit {outcome.code}: {kind}{' '.join(lines)}".replace(f"{self.runner.folder}/", "")[:300]


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A file system in memory at a new folder, gone afterwards; false where this user may not mount one.

    Args:
      folder: where.
      options: of the mount.
    """
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        can = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        can = False
    try:
        yield can
    finally:
        if can:
            subprocess.run(["umount", str(folder)], check=True)
