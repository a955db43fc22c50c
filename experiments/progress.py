"""Progress of a run: one live line per stage, and the same figures as JSON lines, each once however often resumed."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from experiments import disk


class Progress:
    """Prints a line per update, rewritten in place on a terminal, and appends every update to a JSON-lines file.

    A silent instance measures time only.

    Args:
      metrics_path: of the JSON-lines file.
      stream: of the lines. None: standard output.
      seconds_between_lines: where they are not rewritten in place.
      is_silent: neither prints nor writes.
      invocation: number of this start of the run; it stands in every line of the file.
      on_wall: called with the seconds spent in each stage so far, at every update.
    """

    def __init__(
        self,
        metrics_path: Path,
        stream: TextIO | None = None,
        seconds_between_lines: float = 10.0,
        *,
        is_silent: bool = False,
        invocation: int = 1,
        on_wall: Callable[[dict[str, float]], None] = lambda _: None,
    ):
        if is_silent:
            metrics_path, stream = Path(os.devnull), _Nowhere()
        self._metrics_path = metrics_path
        self._num_lines = len(_lines(metrics_path))
        self._is_stale = False  # whether the file has more than these
        self._fraction_begun = 0.0  # of the stage, done before this invocation
        self._invocation, self._on_wall = invocation, on_wall
        self._stream = stream or sys.stdout
        self._is_terminal = self._stream.isatty()
        self._seconds_between_lines = seconds_between_lines
        self._begun = self._stage_begun = time.monotonic()
        self._stage = ""
        self._last_line_at = -float("inf")
        self.stage_wall_s: dict[str, float] = {}

    @property
    def num_lines(self) -> int:
        """Lines of the file: what a checkpoint keeps, to go on from."""
        return self._num_lines

    def resume_at(self, num_lines: int) -> None:
        """The next line follows the first `num_lines`: those after them are of work that is repeated."""
        lines = _lines(self._metrics_path)
        self._num_lines = min(num_lines, len(lines))
        self._is_stale = self._num_lines < len(lines)
        last = json.loads(lines[self._num_lines - 1]) if self._num_lines else {}
        self._fraction_begun = last["fraction_done"] if last.get("stage") == self._stage else 0.0

    def stage(self, name: str) -> None:
        """Begin a stage, which ends the previous one."""
        self._finish_stage()
        self._stage, self._stage_begun, self._last_line_at = name, time.monotonic(), -float("inf")
        self._fraction_begun = 0.0

    def update(self, message: str, fraction_done: float, **metrics: float | int | str | bool | None) -> None:
        """Report the progress of the stage; `metrics` go to the file.

        Args:
          message: shown on the line.
          fraction_done: 0 to 1, from which the remaining time of this stage is estimated.
          metrics: numbers by name.
        """
        now = time.monotonic()
        elapsed = now - self._stage_begun
        entry = {"stage": self._stage, "wall_s": round(now - self._begun, 2), "fraction_done": round(fraction_done, 4)}
        self._append(entry | {"invocation": self._invocation} | metrics)
        self._on_wall(self._wall(now))
        is_due = now - self._last_line_at >= (0.5 if self._is_terminal else self._seconds_between_lines)
        if not is_due and fraction_done < 1:
            return
        self._last_line_at = now
        mine = fraction_done - self._fraction_begun
        left = f" · {_duration(elapsed * (1 - fraction_done) / mine)} left" if fraction_done > 0.02 and mine > 0 else ""
        line = f"[{_duration(now - self._begun):>7}] {self._stage}: {message}{'' if fraction_done >= 1 else left}"
        self._write(line, is_final=not self._is_terminal)

    def say(self, message: str) -> None:
        """Print a line that stays."""
        self._write(f"[{_duration(time.monotonic() - self._begun):>7}] {message}", is_final=True)

    def wall_s(self) -> float:
        """Seconds spent in the present stage, also before the run was resumed."""
        return self._wall(time.monotonic())[self._stage]

    def close(self) -> None:
        """End the last stage."""
        self._finish_stage()
        self._stage = ""

    def _finish_stage(self) -> None:
        if not self._stage:
            return
        self.stage_wall_s = self._wall(time.monotonic())
        self._on_wall(self.stage_wall_s)
        if self._is_terminal:
            self._stream.write("\n")

    def _wall(self, now: float) -> dict[str, float]:
        """Seconds spent in each stage until now."""
        before = self.stage_wall_s.get(self._stage, 0.0)
        return self.stage_wall_s | {self._stage: before + now - self._stage_begun}

    def _append(self, entry: dict) -> None:
        with disk.writing(self._metrics_path):
            if self._is_stale:
                disk.write_text(self._metrics_path, b"".join(_lines(self._metrics_path)[: self._num_lines]).decode())
                self._is_stale = False
            with self._metrics_path.open("a") as file:
                file.write(disk.to_json(entry) + "\n")
        self._num_lines += 1

    def _write(self, line: str, *, is_final: bool) -> None:
        self._stream.write(f"\r\033[K{line}" if self._is_terminal else line)
        if is_final:
            self._stream.write("\n")
        self._stream.flush()


def silent(stage: str) -> Progress:
    """Progress that is shown nowhere and measures time, with a stage begun.

    Args:
      stage: its name.
    """
    progress = Progress(Path(os.devnull), is_silent=True)
    progress.stage(stage)
    return progress


def _lines(path: Path) -> list[bytes]:
    """Lines of the file; the last one may be cut, by the end of a process."""
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


class _Nowhere(io.StringIO):
    """A stream that discards what is written."""

    def write(self, text: str) -> int:
        return len(text)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"
