"""Progress of a run: one live line per stage, and the same figures as JSON lines."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path
from typing import TextIO

from experiments import checkpoints


class Progress:
    """Prints a line per update, rewritten in place on a terminal, and appends every update to a JSON-lines file.

    A silent instance measures time only.
    """

    def __init__(
        self,
        metrics_path: Path,
        stream: TextIO = sys.stdout,
        seconds_between_lines: float = 10.0,
        *,
        is_silent: bool = False,
    ):
        if is_silent:
            metrics_path, stream = Path(os.devnull), _Nowhere()
        self._metrics_path = metrics_path
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._seconds_between_lines = seconds_between_lines
        self._begun = time.monotonic()
        self._stage_begun = self._begun
        self._stage = ""
        self._last_line_at = -float("inf")
        self.stage_wall_s: dict[str, float] = {}

    def stage(self, name: str) -> None:
        """Begin a stage, which ends the previous one."""
        self._finish_stage()
        self._stage, self._stage_begun, self._last_line_at = name, time.monotonic(), -float("inf")

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
        with self._metrics_path.open("a") as file:
            file.write(checkpoints.to_json(entry | metrics) + "\n")
        is_due = now - self._last_line_at >= (0.5 if self._is_terminal else self._seconds_between_lines)
        if not is_due and fraction_done < 1:
            return
        self._last_line_at = now
        left = "" if fraction_done <= 0.02 else f" · {_duration(elapsed * (1 / fraction_done - 1))} left"
        line = f"[{_duration(now - self._begun):>7}] {self._stage}: {message}{'' if fraction_done >= 1 else left}"
        self._write(line, is_final=not self._is_terminal)

    def say(self, message: str) -> None:
        """Print a line that stays."""
        self._write(f"[{_duration(time.monotonic() - self._begun):>7}] {message}", is_final=True)

    def close(self) -> None:
        """End the last stage."""
        self._finish_stage()
        self._stage = ""

    def _finish_stage(self) -> None:
        if not self._stage:
            return
        spent = time.monotonic() - self._stage_begun
        self.stage_wall_s[self._stage] = self.stage_wall_s.get(self._stage, 0.0) + spent
        if self._is_terminal:
            self._stream.write("\n")

    def _write(self, line: str, *, is_final: bool) -> None:
        self._stream.write(f"\r\033[K{line}" if self._is_terminal else line)
        if is_final:
            self._stream.write("\n")
        self._stream.flush()


class _Nowhere(io.StringIO):
    """A stream that discards what is written."""

    def write(self, text: str) -> int:
        return len(text)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"
