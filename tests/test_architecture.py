"""The way data flows: a module imports only what stands before it, and nothing global is touched."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stablejax

ROOT = Path(__file__).resolve().parents[1] / "stablejax"
ORDER = (
    "types",
    "units",
    "geometry",
    "tabulate",
    "models.basis",
    "models.edges",
    "models.messages",
    "models.schnet",
    "models.nequip",
    "models.gemnet",
    "potential",
    "dynamics",
    "parallel",
    "observables.structure",
    "observables.transport",
    "neighborhoods",
    "stability",
    "reweighting",
    "collective",
    "covariance",
    "boltzmann",
    "uncertainty",
    "losses",
    "pretrain",
    "refine",
    "stable",
    "survival",
)
SHARED_BY_MODELS = ("models.basis", "models.edges", "models.messages")


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stablejax"):
            base = node.module.removeprefix("stablejax").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                yield full if full in ORDER else base
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("stablejax.") for a in node.names if a.name.startswith("stablejax"))


def test_every_module_has_its_place():
    assert {module_name(path) for path in MODULES} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_follow_the_flow(path):
    place = ORDER.index(module_name(path))
    for imported in imports(path):
        assert ORDER.index(imported) < place, f"{module_name(path)} imports {imported}"
        is_sibling_model = imported.startswith("models.") and module_name(path).startswith("models.")
        assert not is_sibling_model or imported in SHARED_BY_MODELS


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_files_clocks_or_global_configuration(path):
    tree = ast.parse(path.read_text())
    names = {node.names[0].name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)}
    assert not names & {"os", "sys", "time", "logging", "pathlib", "matplotlib"}
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"open", "print", "jax.config.update"}


def test_public_names_exist():
    for name in stablejax.__all__:
        assert getattr(stablejax, name).__doc__


def test_the_estimator_alone_needs_neither_models_nor_a_simulation_engine():
    code = (
        "import sys; from stablejax import boltzmann_grad; print(*{'flax', 'jax_md', 'scipy.stats'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_unknown_names_are_named():
    with pytest.raises(AttributeError, match="'stablejax' has no attribute 'boltzman_grad'"):
        stablejax.boltzman_grad  # noqa: B018
