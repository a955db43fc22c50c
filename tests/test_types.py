"""What annotations say is checked in a test run, and all of them can be read."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from stablejax import types
from stablejax.observables import structure
from stablejax.space import safe_norm

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path for path in (ROOT / "stablejax").rglob("*.py") if path.name != "__init__.py")
PROTOCOLS = [types.EnergyFn, types.ObservableFn, types.FrameCriterion]


@pytest.mark.parametrize("wrong", [jnp.ones((5, 2)), jnp.ones((5, 3), int)], ids=["shape", "dtype"])
def test_wrong_arrays_are_refused_where_the_annotation_says_so(wrong):
    """Without the hook (`--jaxtyping-packages`) both are computed."""
    with pytest.raises(TypeCheckError, match="vector"):
        safe_norm(wrong)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_protocols_are_checkable(protocol, spring):
    assert isinstance(spring.potential().energy, protocol)
    assert not isinstance(spring.start, protocol)


def test_functions_that_are_none_are_refused():
    with pytest.raises(TypeCheckError, match="values_fn"):
        structure.density(jnp.ones(3), jnp.ones(3), smearing=0.1)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_annotations_can_be_read(path):
    """The hook passes over what it cannot read, in silence: a name that is not there, a shape that is not quoted."""
    names = vars(importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)))
    for annotation in annotations(ast.parse(path.read_text())):
        eval(ast.unparse(annotation), names)


def annotations(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield node.returns
