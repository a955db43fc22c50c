"""Damaged data files, configs and command lines by the thousand: each has to be used, or refused in one sentence.

    python -m experiments.benchmarks.fuzz --cpu-seconds 600

Hypothesis draws the inputs. What counts as a traceback is what `experiments.cli.main` would show as one: any exception
but a ValueError or OSError with a message of one line for each mistake, which for data names the file.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from absl import flags
from hypothesis import strategies as st

from experiments import cli
from experiments.benchmarks import fuzz_inputs, records
from experiments.configs import check
from experiments.data import loaders
from experiments.data.dataset import log as loaders_log

TRIES_OF_A_ROUND = 100
MAX_BYTES = 1e8
KINDS = ("data", "several files", "config", "command line", "name")
SHOWN = 20
"""Most different faults that are described in the result."""


class Refused(Exception):
    """The input was refused as it should be."""


def fuzz(cpu_seconds: float, seed: int, *, max_rounds: float = math.inf) -> dict[str, Any]:
    """Try damaged inputs of all kinds until the time is used up.

    Args:
      cpu_seconds: of this process.
      seed: of the inputs.
      max_rounds: of `TRIES_OF_A_ROUND` tries; the same inputs in every run where the time suffices for them.

    Returns:
      Numbers of `tries`, of those `accepted`, of `tracebacks` and of data sets with numbers that are not finite
      (`accepted_non_finite`); the CPU seconds of the longest try (`longest_s`), the largest memory of the process
      (`peak_memory_GB`), numbers by kind of input (`by_kind`), and what the first `SHOWN` faults were (`faults`).
    """
    result: dict[str, Any] = dict(tries=0, accepted=0, tracebacks=0, accepted_non_finite=0, longest_s=0.0)
    result |= {"by_kind": {kind: [0, 0] for kind in KINDS}, "faults": []}
    began, number = time.process_time(), 0
    with tempfile.TemporaryDirectory() as folder, _quiet():
        inside = os.getcwd()
        os.chdir(folder)
        try:
            while number < max_rounds and time.process_time() - began < cpu_seconds:
                _round(result, seed + number * 1_000_003, lambda: time.process_time() - began < cpu_seconds)
                number += 1
        finally:
            os.chdir(inside)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return result | {"cpu_s": time.process_time() - began, "peak_memory_GB": peak / 1e9}


def rows_of(result: dict[str, Any]) -> list[dict]:
    """Rows of a record.

    Args:
      result: from `fuzz`.
    """
    units = {"longest_s": {"unit": "s"}, "cpu_s": {"unit": "s"}, "peak_memory_GB": {"unit": "GB"}}
    numbers = {name: value for name, value in result.items() if isinstance(value, int | float)}
    rows: list[dict] = [{"metric": name, "value": value} | units.get(name, {}) for name, value in numbers.items()]
    for kind, (tries, accepted) in result["by_kind"].items():
        rows += [
            {"metric": "tries", "value": tries, "of": kind},
            {"metric": "accepted", "value": accepted, "of": kind},
        ]
    return rows


def _round(result: dict[str, Any], seed: int, is_time_left: Callable[[], bool]) -> None:
    """A number of tries, all determined by the seed."""

    @hypothesis.settings(
        max_examples=TRIES_OF_A_ROUND,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.seed(seed)
    @hypothesis.given(st.data())
    def tries(data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from((*KINDS, "data", "data", "data", "several files")))
        action, what = _drawn(kind, data)  # also when the time is used up: what is drawn must not depend on it
        if is_time_left():
            _count(result, kind, action, what)

    tries()


def _drawn(kind: str, data: st.DataObject) -> tuple[Callable[[], None], str]:
    """What is to be tried, and its description."""
    if kind in ("data", "several files"):
        files = [data.draw(fuzz_inputs.file()) for _ in range(1 if kind == "data" else 2)]
        names = [f"{letter}{suffix}" for letter, (suffix, _) in zip("ab", files, strict=False)]
        for name, (_, content) in zip(names, files, strict=True):
            Path(name).write_bytes(content)
        return lambda: load(",".join(names)), ",".join(names)
    if kind == "config":
        text = data.draw(fuzz_inputs.config_file())
        return lambda: read_config(text), text
    if kind == "command line":
        arguments = data.draw(fuzz_inputs.arguments())
        return lambda: command_line(arguments), repr(arguments)
    name = data.draw(st.one_of(st.text(max_size=12), st.text("a*?[]!,:./h5-", max_size=12)))
    return lambda: load(name, must_name=False), repr(name)


def _count(result: dict[str, Any], kind: str, action: Callable[[], None], what: str) -> None:
    result["tries"] += 1
    result["by_kind"][kind][0] += 1
    began = time.process_time()
    try:
        action()
    except Refused:
        pass
    except AssertionError as error:
        result["accepted_non_finite"] += 1
        _note(result, f"{kind}: {error}: {what}")
    except BaseException as error:  # noqa: BLE001
        if isinstance(error, KeyboardInterrupt | hypothesis.errors.HypothesisException):
            raise
        result["tracebacks"] += 1
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        _note(result, f"{kind}: {type(error).__name__} in {place}: {error}"[:500] + f" {what}")
    else:
        result["accepted"] += 1
        result["by_kind"][kind][1] += 1
    took = time.process_time() - began
    if took > result["longest_s"]:
        result |= {"longest_s": took, "longest": f"{kind}: {what[:300]}"}


def _note(result: dict[str, Any], fault: str) -> None:
    is_new = fault[:80] not in {known[:80] for known in result["faults"]}
    if is_new and len(result["faults"]) < SHOWN:
        result["faults"].append(fault)


def load(path: str, *, must_name: bool = True) -> None:
    """Load a data set and split it.

    Args:
      path: of the file or files.
      must_name: whether a refusal has to name a file.

    Raises:
      Refused: in a sentence.
      AssertionError: it was accepted with numbers that are not finite.
    """
    try:
        dataset = loaders.load(path, energy_unit="eV", length_unit="angstrom", max_bytes=MAX_BYTES)
    except (ValueError, OSError) as error:
        if "\n" in str(error) or must_name and not any(name in str(error) for name in path.split(",")):
            raise RuntimeError(f"not one sentence that names the file: {error}") from error
        raise Refused from error
    arrays = {name: value for name, value in dataset._asdict().items() if isinstance(value, np.ndarray)}
    for name, array in (arrays | (dataset.motion or {})).items():
        assert np.isfinite(array).all(), f"{name} is not finite"
    with contextlib.suppress(ValueError):
        split = loaders.split(dataset, num_train=4, num_validation=2, num_test=2, seed=0)
        loaders.reference_frames(dataset, split, num=0, seed=0)


def read_config(text: str) -> None:
    """Read a config and check it.

    Args:
      text: of the file.

    Raises:
      Refused: in a line for each mistake.
    """
    path = Path(f"config_{time.perf_counter_ns()}.py")  # Python keeps what it compiled by name and time
    path.write_text(text, encoding="utf-8")
    try:
        config = cli.load_config(str(path))
        cli.check_given(config)
        check.check(config)
    except (ValueError, OSError) as error:
        raise Refused from error
    finally:
        path.unlink()


def command_line(arguments: list[str]) -> None:
    """Read a command line as the experiments do, and check its config.

    Args:
      arguments: the program and its arguments.

    Raises:
      Refused: in a line for each mistake.
    """
    values = flags.FlagValues()
    try:
        config, left, *_ = cli.define("aspirin", arguments, values=values)
        cli.parse(left, values)
        cli.check_given(config)
        check.check(config)
    except (ValueError, OSError, flags.Error) as error:
        raise Refused from error
    except SystemExit as error:
        if error.code != 2:
            raise
        raise Refused from error


@contextlib.contextmanager
def _quiet():
    """Nothing is printed: notes and messages are thousands."""
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    level = loaders_log.level
    loaders_log.setLevel("CRITICAL")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.dont_write_bytecode = bytecode
        loaders_log.setLevel(level)


def main() -> None:
    """Print and write the figures."""
    parser = records.parser(__doc__ or "")
    parser.add_argument("--cpu-seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    result = fuzz(given.cpu_seconds, given.seed)
    rows = rows_of(result)
    records.show(rows)
    print(f"longest: {result.get('longest')}", *result["faults"], sep="\n\n")
    records.keep(given, "fuzz", rows)
    sys.exit(bool(result["faults"]))


if __name__ == "__main__":
    main()
