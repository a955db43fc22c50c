"""A potential as a file that other programs and later versions can read, without code in it.

One file in the safetensors format: parameters by the names of their leaves, and in its header, as JSON, what the
potential is: architecture and sizes, atomic numbers, cell, scale, energy offset, units, and where it came from.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from stablejax.forms import by_name
from stablejax.models.gemnet import GemNetT
from stablejax.models.nequip import NequIP
from stablejax.models.schnet import SchNet
from stablejax.potential import Bound, Potential, bind
from stablejax.space import OPEN, periodic
from stablejax.types import Params

SUFFIX = ".safetensors"
VERSION = 1
"""Of the format: one that is read otherwise gets another number."""
HEADER = "stablejax_potential"
"""Entry of the file's header that holds the description."""
ARCHITECTURES: dict[str, Callable[..., Any]] = {model.__name__: model for model in (SchNet, NequIP, GemNetT)}
UNITS = {"energy": "eV", "length": "Å", "forces": "eV/Å"}


def save(
    path: str | Path, potential: Potential, params: Params, *, provenance: Mapping[str, Any] | None = None
) -> Path:
    """Write a potential and its parameters; a file of that name is replaced once the new one is whole.

    >>> import jax, tempfile
    >>> import stablejax
    >>> potential = stablejax.bind(stablejax.SchNet(num_blocks=1), [8, 1, 1], offset=-2075.3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = save(f"{folder}/water", potential, potential.init(jax.random.key(0)))
    ...     again, params = load(f"{folder}/water")
    >>> print(written.name, again.offset)
    water.safetensors -2075.3

    Args:
      path: with or without `.safetensors`.
      potential: made by `bind` from a model of the library; forms of it over lists or tables are saved as the potential
        itself.
      params: θ.
      provenance: what can be said of its origin, as JSON has it; see `describe`.

    Returns:
      The path of the file.

    Raises:
      ValueError: the potential is of another kind; the parameters are not those of its model.
      OSError: the file cannot be written.
    """
    bound = _bound(potential)
    leaves = by_name(params)
    _check_same(Path(path).name, by_name(_shapes(potential)), leaves, where="`save`")
    about = {
        "version": VERSION,
        "architecture": type(bound.model).__name__,
        "sizes": _sizes(bound.model),
        "species": np.asarray(bound.species).tolist(),
        "elements": np.unique(bound.species).tolist(),
        "cutoff_A": potential.cutoff,
        "cell_A": None if potential.space.cell is None else np.asarray(potential.space.cell).tolist(),
        "scale": np.asarray(bound.scale).tolist(),
        "offset_eV": potential.offset,
        "units": UNITS,
        "provenance": dict(provenance or {}),
    }
    target = _with_suffix(path)
    content = to_bytes({name: np.asarray(leaf) for name, leaf in leaves.items()}, {HEADER: json.dumps(about)})
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, target)
    return target


def can_be_saved(potential: Potential) -> bool:
    """Whether `save` takes the potential: it was made by `bind` from a model of the library."""
    bound = potential.bound
    return bound is not None and ARCHITECTURES.get(type(bound.model).__name__) is type(bound.model)


def load(path: str | Path) -> tuple[Potential, Params]:
    """The potential in a file and its parameters: the total energy, eV, is `potential.energy` plus `potential.offset`.

    Args:
      path: with or without `.safetensors`.

    Raises:
      ValueError: the file is not one of a potential, is damaged, or is of another version of the format.
      OSError: the file cannot be read.
    """
    about, leaves = _read(_with_suffix(path))
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in about["sizes"].items()}
    potential = bind(
        ARCHITECTURES[about["architecture"]](**sizes),
        about["species"],
        space=OPEN if about["cell_A"] is None else periodic(np.array(about["cell_A"])),
        scale=_scale(about["scale"]),
        offset=about["offset_eV"],
    )
    shapes = _shapes(potential)
    _check_same(Path(path).name, by_name(shapes), leaves, where="`load`")
    return potential, jax.tree.unflatten(jax.tree.structure(shapes), [leaves[name] for name in by_name(shapes)])


def describe(path: str | Path) -> dict[str, Any]:
    """What a file says of its potential, provenance and all, without its parameters.

    Args:
      path: see `load`.

    Raises:
      ValueError: see `load`.
      OSError: the file cannot be read.
    """
    return _read(_with_suffix(path))[0]


def _with_suffix(path: str | Path) -> Path:
    return Path(path) if str(path).endswith(SUFFIX) else Path(f"{path}{SUFFIX}")


def _bound(potential: Potential) -> Bound:
    bound = potential.bound
    if bound is None or not can_be_saved(potential):
        kind = "an energy function" if bound is None else type(bound.model).__name__
        raise ValueError(
            f"`save`: expected a potential made by `bind` from one of {', '.join(sorted(ARCHITECTURES))}, got one of "
            f"{kind}: a file holds no code, so keep its parameters by the means of its own library, or its compiled "
            "energies and forces by `interfaces.exported`."
        )
    return bound


def _sizes(model: Any) -> dict[str, Any]:
    """Fields of a Flax module but those of Flax."""
    fields = (field.name for field in dataclasses.fields(model) if field.init)
    return {name: getattr(model, name) for name in fields if name not in ("parent", "name")}


def _shapes(potential: Potential) -> Params:
    return jax.eval_shape(potential.init, jax.random.key(0))


def _scale(value: float | list[float]) -> float | np.ndarray:
    return np.array(value) if isinstance(value, list) else value


def _check_same(file: str, expected: dict[str, Any], found: dict[str, Any], *, where: str) -> None:
    for name in sorted({*expected, *found}):
        shapes = [str(tuple(np.shape(leaves[name]))) if name in leaves else "none" for leaves in (expected, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{where}, {file}: expected parameters of its model, `{name}` of shape {shapes[0]}, got {shapes[1]}: "
                "they are of a model of other sizes."
            )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the file of a potential, which `stablejax.save` writes; there is none."
        )
    try:
        with safe_open(path, framework="numpy") as file:
            header, leaves = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected a file in the safetensors format, got a damaged or another one ({error}): write it "
            "again."
        ) from error
    if HEADER not in header:
        raise ValueError(
            f"{path}: expected the description of a potential in its header, got {sorted(header) or 'none'}: it was "
            "not written by `stablejax.save`."
        )
    about = json.loads(header[HEADER])
    if about.get("version") != VERSION or about.get("architecture") not in ARCHITECTURES:
        raise ValueError(
            f"{path}: expected version {VERSION} of the format and one of {', '.join(sorted(ARCHITECTURES))}, got "
            f"version {about.get('version')} and {about.get('architecture')}: it is of another version of stablejax; "
            "use that one, or write the file again with this one."
        )
    return about, leaves
