"""Output and records of benchmarks."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

from experiments import provenance


def numbers(text: str) -> list[int]:
    """`40,640` as a list, for a command line."""
    return [int(number) for number in text.split(",")]


def names(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    """`a,b` as a list of known names, for a command line."""

    def parse(text: str) -> list[str]:
        given = text.split(",")
        if unknown := sorted(set(given) - set(known)):
            raise argparse.ArgumentTypeError(f"knows {', '.join(known)}, got {', '.join(unknown)}.")
        return given

    return parse


def parser(description: str, *, repeats: int | None = None) -> argparse.ArgumentParser:
    """The command line of a benchmark, with the options of all; no `repeats` where calls are not repeated."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repeats is not None:
        made.add_argument("--repeats", type=int, default=repeats, help="timed calls of each method, interleaved")
    made.add_argument("--json", type=Path, help="file for the record")
    return made


def keep(given: argparse.Namespace, name: str, rows: list[dict], **fixed) -> None:
    """Write the record if `--json` is given; its config is the command line and `fixed`."""
    if given.json:
        config = {key: value for key, value in vars(given).items() if key != "json"}
        write(given.json, name, config | fixed, rows)


def show(rows: list[dict], **where) -> None:
    """Print the rows that match `where`, one figure per line."""
    for row in rows:
        if all(row.get(name) == value for name, value in where.items()):
            about = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("metric", "value", "unit"))
            print(f"{row['metric']:32} {row['value']:12.4g} {row.get('unit', ''):4} {about}", flush=True)


def others(path: Path, is_replaced: Callable[[dict], bool]) -> list[dict]:
    """Rows of a record that stay when some are measured again; none where there is no record yet.

    Args:
      path: of the record.
      is_replaced: whether a row is one of those that are new.
    """
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in known if not is_replaced(row)]


def write(path: Path, name: str, config: dict, rows: list[dict]) -> None:
    """The record of a run as one JSON object; a value that is not finite is null."""
    finite = [
        row if row["value"] is not None and math.isfinite(row["value"]) else row | {"value": None} for row in rows
    ]
    record = {"name": name, "config": config, "rows": finite} | provenance.about()
    path.write_text(json.dumps(record, indent=1) + "\n")
