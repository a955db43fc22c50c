"""The way data flows: a module imports only what stands before it, and nothing global is touched."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stablejax
from stablejax import named

ROOT = Path(__file__).resolve().parents[1] / "stablejax"
ORDER = (
    "_imports",
    "types",
    "units",
    "space",
    "topology",
    "neighbors",
    "tabulate",
    "models.basis",
    "models.edges",
    "models.messages",
    "models.protocol",
    "models.tabulated",
    "models.tensor_product",
    "models.gemnet_blocks",
    "models.schnet",
    "models.nequip",
    "models.gemnet",
    "potential",
    "energy_functions",
    "forms",
    "integrators",
    "dynamics",
    "failures",
    "parallel",
    "observables.structure",
    "observables.transport",
    "neighborhoods",
    "stability",
    "named",
    "reweighting",
    "collective",
    "_ensemble",
    "_inputs",
    "boltzmann",
    "uncertainty",
    "losses",
    "agreement",
    "pretrain",
    "updates",
    "buffer",
    "natural",
    "problem",
    "simulate",
    "guard",
    "learn",
    "stable",
    "survival",
    "metrics",
    "interfaces.files",
    "interfaces.ase",
    "interfaces.exported",
    "interfaces.modules",
)
MODELS = {make.__module__.removeprefix("stablejax.") for make in named.MODELS.values()}


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
        assert not (module_name(path).startswith("models.") and imported in MODELS)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_files_clocks_or_global_configuration(path):
    """But for interfaces, which write files."""
    tree = ast.parse(path.read_text())
    names = {node.names[0].name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)}
    names |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    files = set() if module_name(path).startswith("interfaces.") else {"os", "pathlib", "safetensors", "ase"}
    assert not names & ({"sys", "time", "logging", "matplotlib", "experiments"} | files)
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"open", "print", "jax.config.update"}


def test_public_names_exist_and_nothing_else_is_shown():
    """Submodules too, after `import stablejax` alone; the names stand in the stub, and there only."""
    assert set(dir(stablejax)) == set(stablejax.__all__)
    assert not [name for name in dir(stablejax) if name.startswith("_")]
    for name in stablejax.__all__:
        value = getattr(stablejax, name)
        assert name == "OPEN" or value.__doc__
    code = "import stablejax; print(stablejax.integrators.langevin.__name__, stablejax.observables.structure.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["langevin", "stablejax.observables.structure"]


def test_functions_are_short_and_classes_too():
    """Bodies of at most 40 lines, docstring aside, and classes of at most 120 with everything in them."""
    for path in [*MODULES, *(ROOT.parent / "experiments").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            is_list = path.name.startswith("generate_") or getattr(node, "name", "") == "get_config"
            if isinstance(node, ast.FunctionDef) and not is_list:
                assert body_lines(node) <= 40, f"{path.name}: {node.name} has {body_lines(node)} lines"
            if isinstance(node, ast.ClassDef):
                size = node.end_lineno - node.lineno + 1
                assert size <= 120, f"{path.name}: {node.name} has {size} lines"


def body_lines(node):
    """Lines of a function without its signature, its docstring, and the functions within it that are counted alone."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    if not body:
        return 0
    inner = [child for child in body if isinstance(child, ast.FunctionDef)]
    return body[-1].end_lineno - body[0].lineno + 1 - sum(child.end_lineno - child.lineno + 1 for child in inner)


def test_public_functions_of_several_arguments_say_what_they_take():
    """`Args` in every docstring of two or more arguments."""
    missing = []
    for path in MODULES:
        tree = ast.parse(path.read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        found = [(path.name, node) for node in tree.body] + [
            (f"{path.name} {cls.name}", node) for cls in classes for node in cls.body
        ]
        for where, node in found:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or path.name.startswith("_"):
                continue
            arguments = [a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
            if len(arguments) > 1 and "Args:" not in (ast.get_docstring(node) or ""):
                missing.append(f"{where}: {node.name}")
    assert not missing, missing


def test_the_estimator_alone_needs_neither_models_nor_a_simulation_engine():
    code = (
        "import sys; from stablejax import boltzmann_grad; print(*{'flax', 'jax_md', 'scipy.stats'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_models_and_the_estimator_come_up_without_a_simulation_engine():
    """jax-md and e3nn-jax take several times as long to import as all the rest, and jax-md starts the backend."""
    names = "boltzmann_grad, bind, SchNet, NequIP, GemNetT, langevin, Problem, stable, load"
    slow = {"jax_md", "e3nn_jax", "scipy.stats", "scipy.signal", "sympy", "ase"}
    code = f"import sys; from stablejax import {names}; print(*{slow} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_unknown_names_are_named():
    with pytest.raises(AttributeError, match="boltzman_grad"):
        stablejax.boltzman_grad  # noqa: B018
