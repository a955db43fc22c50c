"""Imports that wait until they are needed, also where that is in the middle of a trace."""

from __future__ import annotations

import importlib
from typing import Any

import jax


def imported(name: str) -> Any:
    """The module of that name. Constants that it makes when it is imported are none of a trace that is under way."""
    with jax.ensure_compile_time_eval():
        return importlib.import_module(name)
