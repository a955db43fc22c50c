"""Faults of every kind, each with what is right and what happened."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from experiments.benchmarks import fault_cases as cases
from experiments.benchmarks.fault_cases import STABLE
from experiments.benchmarks.scene import Scene, Verdict

REFUSED = "exit 2 and one sentence"
NEWEST_GOOD = "the newest good state is used and the damaged file named; same results to the last bit"
SAME = "same results to the last bit"
SAME_OR_REFUSED = f"{SAME}, or {REFUSED}"
JSON = ("config.json", "invocations.json")
DAMAGES = {"truncated": cases.cut, "emptied": cases.empty, "one bit flipped": cases.flip}


class Fault(NamedTuple):
    """One fault."""

    name: str
    right: str
    inject: Callable[[Scene], Verdict]


def all_faults() -> list[Fault]:
    """Every fault, those of one kind together."""
    return [*_of_files(), *_of_directories(), *_of_signals(), *_of_settings(), *_of_data()]


def _of_files() -> list[Fault]:
    newest = [
        Fault(f"newest checkpoint {how} in {stage}", NEWEST_GOOD, partial(cases.damaged_checkpoint, stage, damage))
        for stage, chosen in (
            (STABLE, tuple(DAMAGES)),
            ("pretraining", ("truncated",)),
            ("evaluation before", ("emptied",)),
        )
        for how, damage in DAMAGES.items()
        if how in chosen
    ]
    pretrained = partial(cases.damaged_checkpoint, STABLE, cases.flip, name="pretrained.npz")
    return [
        *newest,
        Fault(f"pretrained.npz with one bit flipped in {STABLE}", NEWEST_GOOD, pretrained),
        *(
            Fault(f"{name} cut short", f"{SAME}, or {REFUSED} that names it", partial(cases.damaged_json, name))
            for name in JSON
        ),
        Fault("last line of metrics.jsonl cut short", f"{SAME}, every line once", cases.damaged_metrics),
        Fault("compiled programs cut short", SAME, cases.damaged_programs),
        Fault("config.json deleted", SAME_OR_REFUSED, cases.no_config),
        Fault(
            "config.json deleted and the learning rate changed",
            REFUSED,
            lambda scene: cases.no_config(scene, "--config.stable.learning_rate=0.5"),
        ),
        Fault("data changed under the same path", REFUSED, cases.other_data),
        Fault("another host_devices", f"{SAME}, or it is said, or {REFUSED}", cases.other_devices),
    ]


def _of_directories() -> list[Fault]:
    return [
        Fault("two runs in one directory", f"the second: {REFUSED}", cases.second_run),
        Fault("a file where the directory should be", REFUSED, cases.file_as_directory),
        Fault("read-only directory", REFUSED, cases.read_only),
        Fault("disk full", f"{REFUSED}; later {SAME}", cases.full_disk),
    ]


def _of_signals() -> list[Fault]:
    return [
        Fault(
            f"{number.name} in {stage}",
            f"exit {128 + number}, no traceback; resumed: {SAME}",
            partial(cases.ended_by, number, 128 + number, stage),
        )
        for number, stage in (
            (signal.SIGTERM, "pretraining"),
            (signal.SIGTERM, STABLE),
            (signal.SIGINT, "evaluation after"),
        )
    ]


def _of_settings() -> list[Fault]:
    def wrong(*fields: str, words: tuple[str, ...] = ()) -> Callable[[Scene], Verdict]:
        return lambda scene: cases.wrong_input(scene, *fields, words=words)

    nan, misspelt = "--config.stable.learning_rate=nan", "--config.stable.learnig_rate=1"
    return [
        Fault(
            "learning rate of 1", "rolled back; force error at most max_force_error times as large", cases.rate_of_one
        ),
        Fault("learning rate NaN", REFUSED, wrong(nan, words=("learning_rate",))),
        Fault(
            "misspelt field", f"{REFUSED} that says which was meant", wrong(misspelt, words=("stable.learning_rate",))
        ),
        Fault(
            "negative number of replicas", REFUSED, wrong("--config.evaluate.num_replicas=-1", words=("num_replicas",))
        ),
        Fault("text for a number", REFUSED, wrong("--config.seed=one")),
        Fault("config file with a syntax error", REFUSED, partial(cases.broken_config, "def get_config(:\n")),
        Fault("config file that fails", REFUSED, partial(cases.broken_config, "def get_config():\n    return 1 / 0\n")),
        Fault("empty config file", REFUSED, partial(cases.broken_config, "")),
    ]


def _of_data() -> list[Fault]:
    def nan_in(name: str) -> Callable[[dict], dict]:
        return lambda arrays: (
            arrays | {name: np.where(np.arange(arrays[name].size).reshape(arrays[name].shape), arrays[name], np.nan)}
        )

    def kept(arrays: dict) -> dict:
        return arrays

    changes = {
        "NaN in the forces": nan_in("F"),
        "NaN in the energies": nan_in("E"),
        "infinite position": lambda arrays: (
            arrays | {"R": np.where(arrays["R"] == arrays["R"].max(), np.inf, arrays["R"])}
        ),
        "one energy too few": lambda arrays: arrays | {"E": arrays["E"][1:]},
        "forces of fewer atoms": lambda arrays: arrays | {"F": arrays["F"][:, 1:]},
        "no forces": lambda arrays: {name: array for name, array in arrays.items() if name != "F"},
        "no frames": lambda arrays: arrays | {name: arrays[name][:0] for name in ("R", "E", "F", "V", "trajectory")},
    }
    faults = [
        Fault(f"data: {name}", REFUSED, partial(cases.wrong_data, fn, kept_bytes)) for name, fn in changes.items()
    ]
    return faults + [
        Fault(f"data: file {how}", REFUSED, partial(cases.wrong_data, kept, damage)) for how, damage in DAMAGES.items()
    ]


def kept_bytes(content: bytes) -> bytes:
    """A file as it is."""
    return content


def run(scene: Scene, words: list[str], say: Callable[[str], None] = print) -> list[dict]:
    """Rows of the record, one for each fault whose name has one of the words.

    Args:
      scene: provides the runs.
      words: empty: all faults.
      say: told of every fault.
    """
    rows = []
    for fault in all_faults():
        if words and not any(word in fault.name for word in words):
            continue
        try:
            verdict = fault.inject(scene)
        except Exception as error:  # the others are still wanted
            verdict = Verdict(False, f"not tried, {type(error).__name__}: {error}")
        row = {"fault": fault.name, "right": fault.right, "happened": verdict.happened}
        rows.append({"metric": "is_right", "value": int(verdict.is_ok)} | row)
        say(f"{'right' if verdict.is_ok else 'WRONG'}: {fault.name}: {verdict.happened}")
    return rows
