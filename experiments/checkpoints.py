"""Pytrees on disk: one .npz each, leaves by their path, and beside them what they were made from.

A zip file has a checksum of every entry, so that damage is found when it is read.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import disk, processes

ABOUT = "__about__"
"""Name of the entry, JSON as bytes, that says what a pytree was made from."""
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, KeyError, ValueError),
    *(RuntimeError, NotImplementedError, OverflowError, MemoryError, TypeError, SyntaxError),
)
"""What reading damaged bytes raises."""


class Damaged(ValueError):
    """A file does not hold what was written."""


def save(path: Path, tree: Any, about: dict[str, Any] | None = None) -> None:
    """Write a pytree of arrays (PRNG keys included). All processes have to call it; the first one writes.

    Args:
      path: of the file.
      tree: any pytree.
      about: what it was made from, as JSON.

    Raises:
      ValueError: it cannot be written.
    """
    leaves = jax.tree_util.tree_leaves_with_path(processes.to_host(tree))
    if not processes.is_first():
        return
    arrays: dict[str, Any] = {_name(key): leaf for key, leaf in leaves}
    arrays[ABOUT] = np.frombuffer(disk.to_json(about or {}).encode(), np.uint8)
    with disk.whole(path) as file:
        np.savez(file, **arrays)


def load(path: Path, like: Any) -> Any:
    """Read a pytree.

    Args:
      path: of the file.
      like: of the same structure, shapes and types: arrays, or the result of `jax.eval_shape`. Where it has NumPy
        arrays the result has them.

    Raises:
      Damaged: the file does not hold what was written.
      ValueError: the file holds something else.
    """
    return load_with_about(path, like)[0]


def load_with_about(path: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """Read a pytree, and what it was made from.

    Args:
      path: of the file.
      like: see `load`.

    Raises:
      Damaged: the file does not hold what was written.
      ValueError: the file holds something else.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    arrays = _read(path)
    about = _about(arrays)
    expected, found = {_name(key) for key, _ in leaves}, set(arrays)
    if expected != found:
        raise ValueError(
            f"{path}: holds another kind of checkpoint (differs in {', '.join(sorted(expected ^ found)[:3])}): "
            "remove the run's directory or choose another with config.run_dir."
        )
    tree = jax.tree.unflatten(
        treedef, [_from_numpy(path, _name(key), arrays[_name(key)], leaf) for key, leaf in leaves]
    )
    return tree, about


def about(path: Path) -> dict[str, Any]:
    """What a pytree was made from; empty where that was not written.

    Args:
      path: of the file.

    Raises:
      Damaged: the file does not hold what was written.
    """
    return _about(_read(path, only=ABOUT))


def _about(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return json.loads(arrays.pop(ABOUT).tobytes()) if ABOUT in arrays else {}


def _read(path: Path, *, only: str | None = None) -> dict[str, np.ndarray]:
    """Arrays by name; each entry is read to its end, where its checksum is compared."""
    try:
        with zipfile.ZipFile(path) as file:
            names = {name.removesuffix(".npy"): name for name in file.namelist()}
            wanted = names if only is None else names.keys() & {only}
            entries = {name: io.BytesIO(file.read(names[name])) for name in wanted}
        return {name: np.lib.format.read_array(entry, allow_pickle=False) for name, entry in entries.items()}
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise Damaged(f"{path} is damaged ({type(error).__name__}: {' '.join(str(error).split())})") from error


def _name(key) -> str:
    return jax.tree_util.keystr(key, simple=True, separator="/")


def _from_numpy(path, name, array, like):
    expected = jax.eval_shape(jax.random.key_data, like) if processes.is_key(like) else like
    if array.shape != np.shape(expected):
        raise ValueError(
            f"{path}: `{name}` has shape {array.shape}, expected {np.shape(expected)}: "
            "the checkpoint is of a run with other settings."
        )
    if isinstance(like, np.ndarray | np.generic):
        return array.astype(like.dtype)
    return jax.random.wrap_key_data(array) if processes.is_key(like) else jax.numpy.asarray(array, like.dtype)
