"""Puts the faults of `mutants.toml` into the code one at a time and runs what has to find each: `make mutations`.

    python tests/mutations.py            # all
    python tests/mutations.py median     # those whose name or file has the word in it

Each is put into a copy of the repository. Before that the tests are run without any fault: one that fails by itself
would find everything.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """A fault, and what has to find it."""

    name: str
    path: str
    tests: str  # of pytest, separated by spaces
    old: str  # stands once in the file
    new: str


MUTANTS = [Mutant(**one) for one in tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]]
PRELOADED = [
    "pytest",
    "jax",
    "jax.numpy",
    "flax.linen",
    "optax",
    "optax.contrib",
    "scipy.stats",
    "e3nn_jax",
    "ml_collections",
    "ase.data",
]
"""What takes long to import and does not change; not jax-md, which starts the backend."""
LIMIT_S = 300
PASSED, FAILED = 0, 1
"""What pytest returns."""


def main() -> None:
    """Print which faults are found and which survive."""
    chosen = [mutant for mutant in MUTANTS if all(word in f"{mutant.path} {mutant.name}" for word in sys.argv[1:])]
    began, survivors = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "*.egg-info", "__pycache__"))
        _set_up(copy, programs=Path(folder) / "programs")
        code, shown = run_tests(copy, sorted({test for mutant in chosen for test in mutant.tests.split()}))
        if code != PASSED:
            sys.exit(f"tests do not pass without any fault:\n{shown}")
        for mutant in chosen:
            start = time.monotonic()
            is_found = found(mutant, copy)
            survivors += [] if is_found else [mutant.name]
            outcome = "found   " if is_found else "SURVIVES"
            print(f"{outcome} {time.monotonic() - start:5.1f} s  {mutant.name}", flush=True)
    took = time.monotonic() - began
    print(f"{len(chosen)} mutations, {len(survivors)} survive, {took:.0f} s", *survivors, sep="\n  ")
    sys.exit(bool(survivors))


def found(mutant: Mutant, copy: Path) -> bool:
    """Whether its test fails with the fault; the file is as it was afterwards."""
    path = copy / mutant.path
    text = path.read_text()
    if text.count(mutant.old) != 1:
        sys.exit(f"{mutant.name}: its text stands {text.count(mutant.old)} times in {mutant.path}: rewrite it.")
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        code, shown = run_tests(copy, ["-x", *mutant.tests.split()])
    finally:
        path.write_text(text)
    if code not in (PASSED, FAILED):
        sys.exit(f"{mutant.name}: tests could not be run ({code}):\n{shown}")
    return code == FAILED


def run_tests(copy: Path, arguments: list[str]) -> tuple[int | None, str]:
    """What pytest returns, and the end of what it says; None where it takes too long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    output = copy.parent / "output"
    process = context.Process(target=_run_pytest, args=(copy, arguments, output))
    process.start()
    limit_s = LIMIT_S + 30 * len(arguments)
    process.join(limit_s)
    if process.exitcode is None:
        process.kill()
        return None, f"longer than {limit_s} s"
    return process.exitcode, output.read_text()[-3000:]


def _run_pytest(copy: Path, arguments: list[str], output: Path) -> None:
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path) not in (ROOT, ROOT / "tests"))]
    import pytest

    with output.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        # e3nn-jax imports Equinox where it is installed, and that jaxtyping, whose assertions need no rewriting.
        ignored = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
        code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", ignored, *arguments])
    sys.exit(int(code))


def _set_up(copy: Path, programs: Path) -> None:
    """The copy is imported, programs are compiled fast, and once where a fault does not change them."""
    os.environ["PYTHONPATH"] = str(copy)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(programs)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["XLA_FLAGS"] = (
        "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true"
    )


if __name__ == "__main__":
    main()
