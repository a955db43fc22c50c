"""The recipe on systems that nobody tuned it for, against targets, and against controls that cost as much.

    python -m experiments.benchmarks.panel
    python -m experiments.benchmarks.panel --systems=aspirin,water --seeds=0 --controls=none
    python -m experiments.benchmarks.panel --table

Every run is one that a person would start, in a directory of its own under `--folder`: an interrupted panel goes on
where it was. The record has the figures of every run and control that are finished, with the commit of each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks import records
from experiments.benchmarks.controls import CONTROLS, FOLDER
from experiments.benchmarks.runs import ROOT

SHARED = ROOT.parent / "shared" / "data"
SHIPPED = ROOT / "experiments" / "data"


class Member(NamedTuple):
    """A system of the panel."""

    module: str  # of `experiments`
    path: Path | None = None  # of its data; None: those that the module names
    fields: tuple[str, ...] = ()  # further ones of its config, FIELD=VALUE
    seeds: tuple[int, ...] = (0, 1, 2)
    max_minutes: float = 20.0  # that a run may take on two cores


def _molecule(path: Path, unit: str, *fields: str, **others) -> Member:
    return Member("molecule", path, (f"data.energy_unit={unit}", "md.temperature_K=500", *fields), **others)


MEMBERS = {
    "aspirin": Member("aspirin", max_minutes=12.0),
    "ac_ala3_nhme": Member("ac_ala3_nhme"),
    "water": Member("water"),
    "ethanol": _molecule(SHARED / "molecules" / "rmd17_ethanol.npz", "kcal/mol", max_minutes=12.0),
    "uracil": _molecule(SHARED / "molecules" / "rmd17_uracil.npz", "kcal/mol", max_minutes=12.0),
    "thiophene": _molecule(SHIPPED / "thiophene_gfn2.npz", "eV", max_minutes=12.0),
    "diethyl_ether": _molecule(SHIPPED / "diethyl_ether_gfn2.npz", "eV", max_minutes=12.0),
    "aspirin_md17": _molecule(SHARED / "aspirin_md17.npz", "kcal/mol", "data.num_train=200", seeds=(0,)),
}
"""By name. Nothing but data, sizes and temperature is set for one of them."""

RECIPE, PAPER = "recipe", "paper"
"""Names of arms: our default, and the paper's own recipe from the same potential."""
KEPT = {"stable": ("num_replicas", "num_cycles", "max_epochs", "max_simulation_ps"), "stability": (), "observable": ()}
"""Sections that the paper's recipe sets, and the sizes in them that are not its own."""


class Target(NamedTuple):
    """A figure of a run with its bound."""

    name: str
    value: float | None
    bound: float
    is_met: bool


class Arm(NamedTuple):
    """One run of the panel."""

    member: str
    seed: int
    name: str  # recipe or paper

    @property
    def folder(self) -> str:
        """Of its results."""
        return f"{self.member}_seed{self.seed}" + ("" if self.name == RECIPE else f"_{self.name}")


def fields_of(arm: Arm) -> list[str]:
    """`--config.FIELD=VALUE` of an arm.

    Args:
      arm: of the panel.
    """
    member = MEMBERS[arm.member]
    fields = [f"--config.{field}" for field in member.fields] + [f"--config.seed={arm.seed}"]
    fields += [f"--config.name={arm.member}"]
    if member.path is not None:
        fields.append(f"--config.data.path={member.path}")
    if arm.name == PAPER:
        fields += [f"--config.{name}={value}" for name, value in paper_settings(member.module).items()]
    return fields


def paper_settings(module: str) -> dict[str, Any]:
    """What the paper's recipe sets otherwise than the default of a system, but sizes.

    Args:
      module: of `experiments`.
    """
    from importlib import import_module

    from experiments.configs import ac_ala3_nhme_paper, aspirin_paper, check, water_paper

    default = dict(check.fields(import_module(f"experiments.configs.{module}").get_config()))
    papers = {"water": water_paper, "ac_ala3_nhme": ac_ala3_nhme_paper}
    paper = dict(check.fields(papers.get(module, aspirin_paper).get_config()))
    names = [
        name for name in default if (section := name.partition("."))[0] in KEPT and section[2] not in KEPT[section[0]]
    ]
    return {name: paper[name] for name in names if paper[name] != default[name]}


def targets(record: dict, max_minutes: float) -> list[Target]:
    """The figures of a run with what is wanted of them. A figure that is unknown meets nothing.

    Args:
      record: of a run.
      max_minutes: that it may take.
    """
    from experiments.report import finder

    find, found = finder(record), []

    def add(name: str, value: float | None, bound: float, *, at_most: bool) -> None:
        is_met = value is not None and (value <= bound if at_most else value >= bound)
        found.append(Target(name, value, bound, is_met))

    ratio = find("ratio_median_first_passage")
    # Where the median is beyond the horizon this is a lower bound: the horizon over the median before.
    add("times as long", ratio["value"], 10.0, at_most=False)
    add("lower end of the interval", ratio["low"], 4.0, at_most=False)
    add("log-rank p", find("logrank_p")["value"], 1e-3, at_most=True)
    add("force MAE change", find("force_mae_change")["value"], 0.03, at_most=True)
    energy = [find("energy_mae_meV_per_atom", phase)["value"] for phase in ("before", "after")]
    add("energy MAE change", energy[1] / energy[0] - 1, 0.10, at_most=True)
    for name, change, error in worse(record):
        add(f"{name} worse, in standard errors", change / error if error else None, 2.0, at_most=True)
    reference, diffusivity = (find("diffusivity_1e-9_m2_per_s", phase) for phase in ("reference", "after"))
    if reference and diffusivity:
        inside = max(reference["low"] - diffusivity["value"], diffusivity["value"] - reference["high"])
        add("diffusivity outside the reference's interval", max(inside, 0.0), 0.0, at_most=True)
    add("minutes", record["wall_s"] / 60, max_minutes, at_most=True)
    return found


def worse(record: dict) -> Iterator[tuple[str, float, float | None]]:
    """Errors of the structure, the motion and the temperature: name, change over equal times, and its standard error.

    Args:
      record: of a run.
    """
    from experiments.report import finder
    from experiments.report.record import EARLY

    rows = record["rows"]
    temperature = record["config"]["md"]["temperature_K"]
    for before in (row for row in rows if row.get("phase") == "before" and "error" in row):
        after = next(row for row in rows if row["metric"] == before["metric"] and row.get("phase") == EARLY)
        values = [row["value"] for row in (before, after)]
        if before["metric"] == "internal_temperature_K":
            values = [abs(value - temperature) for value in values]
        if before["metric"] == "bond_variance_ratio":
            values = [abs(value - 1) for value in values]
        yield before["metric"], values[1] - values[0], _joint(before["error"], after["error"])
    find = finder(record)
    vacf, spread = (
        [find(metric, phase) for phase in ("before", EARLY)] for metric in ("vacf_mae", "vacf_mae_std_over_replicas")
    )
    if all(vacf) and all(spread):
        values = [row["value"] for row in vacf]
        errors = [row["value"] / max(of["replicas"], 1) ** 0.5 for row, of in zip(spread, vacf, strict=True)]
        yield "vacf_mae", values[1] - values[0], _joint(*errors)


PHASES = ("before", "after")


def _joint(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else (first**2 + second**2) ** 0.5


def finished(folder: Path, arms: list[Arm]) -> Iterator[tuple[Arm, str, dict]]:
    """Records of the arms and controls that are there, with the name of the arm or control.

    Args:
      folder: of the panel.
      arms: of the panel.
    """
    for arm in arms:
        run_dir = folder / arm.folder
        paths = {arm.name: run_dir / "record.json"}
        if arm.name == RECIPE:
            paths |= {name: run_dir / FOLDER / f"{name}.json" for name in CONTROLS}
        for name, path in paths.items():
            if path.exists():
                yield arm, name, json.loads(path.read_text())


def rows_of(folder: Path, arms: list[Arm]) -> list[dict]:
    """Rows of the record: all figures of each run and control, and the targets of runs.

    Args:
      folder: of the panel.
      arms: of the panel.
    """
    rows = []
    for arm, name, record in finished(folder, arms):
        about = {"system": arm.member, "seed": arm.seed, "arm": name, "commit": record["commit"]}
        rows += [row | about for row in record["rows"]]
        if name in (RECIPE, PAPER):
            max_minutes = MEMBERS[arm.member].max_minutes
            rows += [
                {"metric": "target", "name": one.name, "value": one.value, "bound": one.bound, "is_met": one.is_met}
                | about
                for one in targets(record, max_minutes)
            ]
    return rows


def table(rows: list[dict]) -> str:
    """A line for each run and control, as Markdown.

    Args:
      rows: of the record.
    """
    from experiments.report import finder
    from experiments.report.words import number, with_interval, with_ratio

    lines = [
        "| system | seed | | stable (ps) before | after | times as long | p | force MAE | energy MAE | targets |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((row["system"], row["seed"], row["arm"]) for row in rows)
    for system, seed, arm in keys:
        mine = [row for row in rows if (row["system"], row["seed"], row["arm"]) == (system, seed, arm)]
        find = finder({"rows": mine})
        before, after = (with_interval(find("median_first_passage_ps", phase)) for phase in PHASES)
        energy = [find("energy_mae_meV_per_atom", phase)["value"] for phase in PHASES]
        wanted = [row for row in mine if row["metric"] == "target"]
        missed = ", ".join(row["name"] for row in wanted if not row["is_met"])
        met = f"{sum(row['is_met'] for row in wanted)} of {len(wanted)}" + (f"; missed: {missed}" if missed else "")
        cells = [
            *(system, str(seed), arm, before, after, with_ratio(find), number(find("logrank_p"), "{:.0e}")),
            number(find("force_mae_change"), "{:+.1f} %", factor=100),
            f"{100 * (energy[1] / energy[0] - 1):+.0f} %",
            met if wanted else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run(command: list[str], log: Path) -> int:
    """Run a command, its output in a file; returns its exit code."""
    with log.open("ab") as file:
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        ).returncode


def finish(arm: Arm, folder: Path, controls: list[str]) -> Iterator[None]:
    """Run what is missing of an arm and of its controls; yields after each.

    Args:
      arm: of the panel.
      folder: of the panel.
      controls: that are wanted.
    """
    member, run_dir, log = MEMBERS[arm.member], folder / arm.folder, folder / f"{arm.folder}.log"
    if member.path is not None and not member.path.exists():
        print(f"skipped {arm.folder}: its data are absent, {member.path.name}", flush=True)
        return
    # With its config as it stands: nothing is chosen from the data.
    config = f"--config=experiments/configs/{member.module}.py"
    commands = {
        run_dir / "record.json": [
            f"experiments.{member.module}",
            config,
            f"--config.run_dir={run_dir}",
            *fields_of(arm),
        ]
    }
    for name in CONTROLS if arm.name == RECIPE else ():
        if name in controls:
            command = ["experiments.benchmarks.controls", f"--run={run_dir}", f"--control={name}"]
            commands[run_dir / FOLDER / f"{name}.json"] = command
    for made, command in commands.items():
        if made.exists():
            continue
        print(f"{arm.folder}, {made.stem}: see {log}", flush=True)
        if code := run(command, log):
            print(f"{arm.folder}, {made.stem} ended with code {code}: see {log}", flush=True)
            if made.stem == "record":
                return
        yield


def main() -> None:
    """Every run and control that is not finished, one after the other; the record is written after each."""
    parser = records.parser(__doc__ or "")
    parser.set_defaults(json=ROOT / "experiments" / "results" / "panel.json")
    parser.add_argument("--folder", type=Path, default=Path("runs/panel"), help="of the runs")
    parser.add_argument(
        "--systems", type=records.names(tuple(MEMBERS)), default=list(MEMBERS), help="some of the panel"
    )
    parser.add_argument("--seeds", type=records.numbers, default=[0, 1, 2], help="of these systems")
    known = ("none", PAPER, *CONTROLS)
    parser.add_argument("--controls", type=records.names(known), default=[PAPER, *CONTROLS], help="some, or none")
    parser.add_argument("--table", action="store_true", help="print what is finished, and run nothing")
    given = parser.parse_args()
    every = [Arm(name, seed, arm) for arm in (RECIPE, PAPER) for name, one in MEMBERS.items() for seed in one.seeds]
    given.folder = given.folder.absolute()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.table:
        print(table(rows_of(given.folder, every)))
        return
    for arm in every:
        if arm.member in given.systems and arm.seed in given.seeds and arm.name in (RECIPE, *given.controls):
            for _ in finish(arm, given.folder, given.controls):
                rows = rows_of(given.folder, every)
                records.keep(argparse.Namespace(json=given.json), "benchmarks.panel", rows)


if __name__ == "__main__":
    main()
