"""Pytrees and JSON on disk, written whole or not at all; a pytree is one .npz, leaves by their path."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import processes


def save(path: Path, tree: Any) -> None:
    """Write a pytree of arrays (PRNG keys included). All processes have to call it; the first one writes.

    Args:
      path: of the file.
      tree: any pytree.
    """
    leaves = jax.tree_util.tree_leaves_with_path(processes.to_host(tree))
    if not processes.is_first():
        return
    arrays: dict[str, Any] = {_name(key): leaf for key, leaf in leaves}
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)


def load(path: Path, like: Any) -> Any:
    """Read a pytree.

    Args:
      path: of the file.
      like: of the same structure, shapes and types: arrays, or the result of `jax.eval_shape`.

    Raises:
      ValueError: the file holds something else.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    with np.load(path, allow_pickle=False) as file:
        expected, found = {_name(key) for key, _ in leaves}, set(file.files)
        if expected != found:
            raise ValueError(
                f"{path}: holds another kind of checkpoint (differs in {', '.join(sorted(expected ^ found)[:3])}): "
                "remove the run's directory or choose another with config.run_dir."
            )
        return jax.tree.unflatten(
            treedef, [_from_numpy(path, _name(key), file[_name(key)], leaf) for key, leaf in leaves]
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Args:
      path: of the file.
      text: its content.
    """
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Standard JSON: numbers that are not finite are null.

    Args:
      value: of types that JSON supports.
      indent: of nested lines. None: all in one line.
    """
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not support."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _name(key) -> str:
    return jax.tree_util.keystr(key, simple=True, separator="/")


def _from_numpy(path, name, array, like):
    expected = jax.eval_shape(jax.random.key_data, like) if processes.is_key(like) else like
    if array.shape != np.shape(expected):
        raise ValueError(
            f"{path}: `{name}` has shape {array.shape}, expected {np.shape(expected)}: "
            "the checkpoint is of a run with other settings."
        )
    return jax.random.wrap_key_data(array) if processes.is_key(like) else jax.numpy.asarray(array, like.dtype)
