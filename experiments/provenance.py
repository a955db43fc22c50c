"""Provenance of figures: command, commit, versions and machine, for every record."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax

from experiments.data.sources import without_folders

PACKAGES = ("jax", "jaxlib", "jax-md", "flax", "optax", "numpy", "scipy")

RECORDS = "experiments/results"
"""Folder of records, from the top of the repository."""
HERE = Path(__file__).resolve().parent

ENVIRONMENT = ("XLA_FLAGS", "GLIBC_TUNABLES")
"""Environment variables that affect the speed of a run."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def about() -> dict[str, object]:
    """The provenance in every record."""
    return {
        "command": command(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the result."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


def machine() -> dict[str, object]:
    """Cores, processor and accelerator, without names of hosts or people."""
    device = jax.devices()[0]
    return {
        "cores": available_cores(),
        "cpu": _cpu_name(),
        "accelerator": None if device.platform == "cpu" else device.device_kind,
        "devices": len(jax.devices()),
    }


def commit(folder: Path = HERE) -> str:
    """The commit of the working tree, marked where it has uncommitted changes; "unknown" outside of git.

    Records are not code: one that is being renewed is no change.
    """
    try:
        known = _git(folder, "describe", "--always", "--abbrev=12", "--match=")
        others = ("--", ":(top)", f":(top,exclude){RECORDS}")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", *others)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{known}-dirty" if changed else known


def _git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def command() -> str:
    """The command that runs this experiment, without paths of this machine."""
    spec = sys.modules["__main__"].__spec__
    module = f"-m {spec.name}" if spec else Path(sys.argv[0]).name
    return " ".join([f"python {module}", *map(_without_folder, sys.argv[1:])])


def _without_folder(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    parts = [without_folders(part) if Path(part).is_absolute() else part for part in value.split(",")]
    return f"{option}{equals}{','.join(parts)}"


def _cpu_name() -> str:
    return _cpu_entry("model name") or platform.processor() or platform.machine()


def cpu_features() -> str:
    """Model and instruction sets of this processor."""
    return f"{_cpu_name()} {_cpu_entry('flags')}"


def _cpu_entry(name: str) -> str:
    """Entry of the first core in Linux's list; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
