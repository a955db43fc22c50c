"""Files of configs: what is wrong with one is a sentence with its line."""

from __future__ import annotations

import importlib.util
import traceback
from pathlib import Path

from ml_collections import ConfigDict


def read(path: Path, *arguments: str) -> ConfigDict:
    """The result of the `get_config` of a file.

    Args:
      path: of the file.
      arguments: of its `get_config`.

    Raises:
      ValueError: it is no Python file, fails, or makes no config.
      OSError: there is no such file.
    """
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config has to be a Python file, got {path}.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ValueError("expected a function get_config(), found none")
        config = module.get_config(*arguments)
        if not isinstance(config, ConfigDict):
            raise ValueError(f"get_config() has to return a ConfigDict, got {type(config).__name__}")
    except FileNotFoundError as error:
        if error.filename == str(path.absolute()):
            raise
        raise ValueError(_broken(path, error)) from error
    except Exception as error:
        raise ValueError(_broken(path, error)) from error
    return config


def _broken(path: Path, error: Exception) -> str:
    """What is wrong with a file of a config, in one line, and where."""
    file = str(path.absolute())  # as Python names it
    lines = [entry.lineno for entry in traceback.extract_tb(error.__traceback__) if entry.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines, text = [error.lineno], f"syntax error: {error.msg}"
    elif isinstance(error, ValueError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    where = f", line {lines[-1]}" if lines else ""
    return f"{path}{where}: {' '.join(text.split())}".rstrip(".") + "."
