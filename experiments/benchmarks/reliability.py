"""Can a run be trusted? It is killed, damaged, given wrong input, and left running for long.

    python -m experiments.benchmarks.reliability
    python -m experiments.benchmarks.reliability --parts=kills --num_kills=5
    python -m experiments.benchmarks.reliability --parts=soak --soak_steps=1000000

`kills`: a run that is killed at random moments in all stages, against one that was not. `faults`: damaged files, full
disks, signals, wrong settings, a row for each with what is right. `fuzz`: random data files. `soak`: speed, memory and
handles of a process over millions of steps. Each part replaces its rows in the record, and keeps those of the others.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments import cli, provenance
from experiments.benchmarks import faults, kills, records
from experiments.benchmarks.kills import Timeline
from experiments.benchmarks.runs import ROOT, Runner
from experiments.benchmarks.scene import Scene

PARTS = ("kills", "faults", "fuzz", "soak")


@contextmanager
def uninterrupted() -> Iterator[tuple[Runner, Path, Timeline]]:
    """Where runs are started, and an uninterrupted one to compare with."""
    with tempfile.TemporaryDirectory() as folder:
        runner, expected = Runner(Path(folder)), Path(folder) / "reference"
        # The first one compiles: its times are not those of the others.
        runner.run(Path(folder) / "first")
        yield runner, expected, kills.reference(runner, expected)


def run_kills(given: argparse.Namespace) -> list[dict]:
    """Rows of a run that is killed."""
    with uninterrupted() as (runner, expected, timeline):
        rows = kills.run(runner, expected, timeline, given.num_kills, given.seed, _say)
    return [*rows, {"metric": "run_s", "value": timeline.end_s, "unit": "s"}]


def run_faults(given: argparse.Namespace) -> list[dict]:
    """Rows of faults."""
    with uninterrupted() as (runner, expected, timeline):
        return faults.run(Scene(runner, expected, timeline), given.only, _say)


def run_fuzz(given: argparse.Namespace) -> list[dict]:
    """Rows of random data files, configs and command lines."""
    from experiments.benchmarks import fuzz  # as the others do not need hypothesis

    return fuzz.rows_of(fuzz.fuzz(given.fuzz_cpu_s, given.seed))


def run_soak(given: argparse.Namespace) -> list[dict]:
    """Rows of a long simulation."""
    # Imported here: importing jax-md starts the backend, which fixes the number of devices.
    from experiments.benchmarks import soak

    return soak.run(given.soak_steps, given.soak_hours, given.seed)


RUN: dict[str, Callable[[argparse.Namespace], list[dict]]] = {
    "kills": run_kills,
    "faults": run_faults,
    "fuzz": run_fuzz,
    "soak": run_soak,
}


def merge(path: Path, part: str, rows: list[dict], *, keeps_faults: bool = False) -> list[dict]:
    """The rows of a record with those of a part replaced, which say the commit that they are of.

    Args:
      path: of the record, which may not be there yet.
      part: that the rows are of.
      rows: new ones.
      keeps_faults: whether rows of other faults than those of `rows` stay.
    """
    again = {row.get("fault") for row in rows}
    known = records.others(
        path, lambda row: row["part"] == part and not (keeps_faults and row.get("fault") not in again)
    )
    new = [row | {"part": part, "commit": provenance.commit()} for row in rows]
    return sorted(known + new, key=lambda row: PARTS.index(row["part"]))


def _say(message: str) -> None:
    print(message, flush=True)


def main() -> None:
    """Run the parts and write the record after each."""
    parser = records.parser(__doc__ or "")
    parser.set_defaults(json=ROOT / "experiments" / "results" / "reliability.json")
    parser.add_argument("--parts", type=records.names(PARTS), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--num_kills", type=int, default=20, help="kills of a run, over all its stages")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="words: faults with one of them")
    parser.add_argument("--fuzz_cpu_s", type=float, default=600.0, help="CPU seconds of random data files")
    parser.add_argument("--soak_steps", type=int, default=10_000_000, help="replica-steps")
    parser.add_argument("--soak_hours", type=float, default=2.0, help="at the most")
    given = parser.parse_args()
    cli.configure(host_devices=1)
    for part in given.parts:
        rows = RUN[part](given)
        records.show(rows)
        records.keep(given, "benchmarks.reliability", merge(given.json, part, rows, keeps_faults=bool(given.only)))


if __name__ == "__main__":
    main()
