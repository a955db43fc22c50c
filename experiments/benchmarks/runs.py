"""Runs of an experiment as a person starts them, known by their files only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SMALL = Path(__file__).resolve().parent / "small.py"
POLL_S = 0.02
OF_THE_SESSION = ("wall_s", "invocation")
"""Fields of a line of metrics that say when it was written, not what."""
TRACEBACK = "Traceback (most recent call last)"


class Outcome(NamedTuple):
    """How a process ended."""

    code: int
    output: str  # of both streams
    wall_s: float

    @property
    def is_sentence(self) -> bool:
        """Whether it was refused as an error in the input is: exit code 2 and one line, not that of the system."""
        said = [line for line in self.output.splitlines() if line.startswith("error: ")]
        return self.code == 2 and len(said) == 1 and not any(word in self.output for word in ("[Errno", TRACEBACK))


class Started(NamedTuple):
    """A process, and where its output goes."""

    process: subprocess.Popen
    output: Path
    begun: float

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def finish(self, *, timeout_s: float = 900.0) -> Outcome:
        """Wait for it; it is killed at the timeout."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return Outcome(code, self.output.read_text(errors="replace"), time.monotonic() - self.begun)


class Runner(NamedTuple):
    """Starts runs whose compiled programs and outputs are in one folder."""

    folder: Path

    def start(
        self,
        run_dir: Path,
        *fields: str,
        module: str = "aspirin",
        config: Path | None = SMALL,
        before: tuple[str, ...] = (),
    ) -> Started:
        """The process of a run.

        Args:
          run_dir: of the run.
          fields: further arguments, `--config.FIELD=VALUE`.
          module: of `experiments`.
          config: file for `--config`. None: the module's own.
          before: command that starts the run.
        """
        command = [sys.executable, "-m", f"experiments.{module}", f"--config.run_dir={run_dir}", *fields]
        command += [] if config is None else [f"--config={config}"]
        return self.start_command((*before, *command))

    @property
    def programs(self) -> Path:
        """Folder of compiled programs."""
        return self.folder / "programs"

    def start_command(self, command: tuple[str, ...]) -> Started:
        """Any process."""
        own = {"JAX_COMPILATION_CACHE_DIR": str(self.programs), "PYTHONPATH": str(ROOT)}
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".txt")
        with os.fdopen(handle, "wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=os.environ | own, stdout=file, stderr=subprocess.STDOUT)
        return Started(process, Path(name), time.monotonic())

    def run(self, run_dir: Path, *fields: str, **options) -> Outcome:
        """A run from start to end.

        Args:
          run_dir: of the run.
          fields: further arguments.
          options: of `start`.
        """
        return self.start(run_dir, *fields, **options).finish()


def lines_of(run_dir: Path) -> list[dict]:
    """Lines of the metrics, those without what says when they were written; one that is not JSON is `{}`."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text(errors="replace") if path.exists() else ""
    return [_line(line) for line in text.split("\n") if line]


def _line(text: str) -> dict:
    try:
        entry = json.loads(text)
    except ValueError:
        return {}
    known = entry if isinstance(entry, dict) else {}
    return {key: value for key, value in known.items() if key not in OF_THE_SESSION}


def lost_and_doubled(expected: Iterable[dict], found: Iterable[dict]) -> tuple[int, int]:
    """Lines that should be there and are not, and lines that are there and should not be, or too often.

    Args:
      expected: lines of an uninterrupted run.
      found: lines of another.
    """
    first, second = (Counter(json.dumps(line, sort_keys=True) for line in lines) for lines in (expected, found))
    return (first - second).total(), (second - first).total()


def arrays_of(path: Path) -> dict[str, tuple] | None:
    """Contents of an .npz, to be compared to the last bit. None: it cannot be read."""
    try:
        with np.load(path) as file:
            return {name: (file[name].dtype.str, file[name].shape, file[name].tobytes()) for name in file.files}
    except Exception:
        return None


def rows_of(run_dir: Path) -> list[dict] | None:
    """Rows of the record but those of wall times. None: there is no record that can be read."""
    try:
        rows = json.loads((run_dir / "record.json").read_text())["rows"]
    except (OSError, ValueError, KeyError):
        return None
    return [row for row in rows if "wall" not in row["metric"]]


def differences(expected: Path, found: Path) -> list[str]:
    """Names of the results that are not those of another run to the last bit.

    Args:
      expected: directory of an uninterrupted run.
      found: directory of the other.
    """
    arrays = [
        name for name in ("pretrained.npz", "refined.npz") if _differ(*(arrays_of(d / name) for d in (expected, found)))
    ]
    return arrays + (["record.json"] if _differ(rows_of(expected), rows_of(found)) else [])


def _differ(expected, found) -> bool:
    return expected is None or expected != found
