"""What `--help` prints: the options of an experiment and every field of its config, with its value and meaning."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.configs import check, meanings

COLUMN, WIDEST, NARROWEST = 0.45, 48, 40
"""Share of the width that names may take and its most, and a width below which lines are not wrapped further."""


def text(
    config: ConfigDict, *, about: str, file: str, systems: Sequence[str] = (), system: str | None = None, width: int
) -> str:
    """The whole text, with lines of at most `width` characters where words allow it.

    Args:
      config: whose fields are listed with their values.
      about: the experiment, in paragraphs.
      file: of the config.
      systems: to choose from by `--system`.
      system: that the fields are of.
      width: of the terminal.
    """
    width = max(width, NARROWEST)
    options = {"--config=FILE": f"file of the config; {_from_here(file)} unless given"}
    if systems:
        options["--system=NAME"] = f"one of {', '.join(systems)}: has to be given"
    options |= {
        "--config.FIELD=VALUE": "a field of the config: all of them are below, with their values",
        "--dry_run": "check data, config and memory, say what would be done and how long it would take, and end",
        "--help, -h": "this text",
    }
    lines = [*_paragraphs(about, width), "", "Options:", ""]
    for name, meaning in options.items():
        lines += _entry(name, meaning, width)
    lines += ["", f"Fields of --system={system}:" if system else "Fields:"]
    return "\n".join([*lines, *_fields(config, width)]) + "\n"


def _fields(config: ConfigDict, width: int) -> list[str]:
    """All fields by their sections, in the order of the files that they are from."""
    meant, values = meanings.meanings(config), dict(check.fields(config))
    order = [*meant, *(name for name in values if name not in meant)]
    sections: dict[str, list[str]] = {}
    for name in (name for name in order if name in values):
        sections.setdefault(name.rpartition(".")[0], []).append(name)
    lines = []
    for section, names in sections.items():
        title = f"{section}: {meant[section]}" if section in meant else section
        lines += ["", *_wrapped(title, width)]
        for name in names:
            lines += _entry(f"--config.{name}={_shown(values[name])}", _meaning(name, values, meant), width)
    return lines


def _meaning(name: str, values: dict[str, Any], meant: dict[str, str]) -> str:
    return meant.get(name, "") + (" (has to be given)" if values[name] is None else "")


def _from_here(file: str) -> str:
    """A path, relative to the present folder where it is in it."""
    path = Path(file).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _shown(value: Any) -> str:
    """A value as it is written on a command line."""
    return "…" if value is None else str(value)


def _entry(name: str, meaning: str, width: int) -> list[str]:
    """A name and its meaning beside it, or below it where the name is long."""
    column = min(int(COLUMN * width), WIDEST)
    if len(name) + 4 <= column:
        return _wrapped(meaning, width, f"  {name}".ljust(column), " " * column)
    return [f"  {name}", *_wrapped(meaning, width, " " * 6, " " * 6)]


def _paragraphs(about: str, width: int) -> list[str]:
    """Text wrapped to the width; indented lines, of code, stay as they are."""
    lines: list[str] = []
    for block in textwrap.dedent(about).strip().split("\n\n"):
        lines += ["", *(block.split("\n") if block.startswith(" ") else _wrapped(block, width))]
    return lines[1:]


def _wrapped(text: str, width: int, first: str = "", others: str = "") -> list[str]:
    """Lines, whole words each, after an indent; at least one."""
    lines = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return lines or [first.rstrip()]
