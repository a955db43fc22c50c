"""What benchmarks print and keep."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from experiments import runtime


def numbers(text: str) -> list[int]:
    """`40,640` as a list, for a command line."""
    return [int(number) for number in text.split(",")]


def config_of(given: argparse.Namespace) -> dict:
    """What was chosen on the command line, without where the record goes."""
    return {name: value for name, value in vars(given).items() if name != "json"}


def show(rows: list[dict], **where) -> None:
    """Print the rows that are about `where`, one figure a line."""
    for row in rows:
        if all(row.get(name) == value for name, value in where.items()):
            about = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("metric", "value", "unit"))
            print(f"{row['metric']:32} {row['value']:12.4g} {row.get('unit', ''):4} {about}", flush=True)


def write(path: Path, name: str, config: dict, rows: list[dict]) -> None:
    """The record of a run as one JSON object; a value that is not finite is null."""
    finite = [row if math.isfinite(row["value"]) else row | {"value": None} for row in rows]
    record = {"name": name, "config": config, "rows": finite} | runtime.about()
    path.write_text(json.dumps(record, indent=1) + "\n")
