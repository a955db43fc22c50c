"""What an experiment sets up before JAX starts: devices, warnings, and the process's own record of itself."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
from absl import app
from ml_collections import ConfigDict, config_flags

from experiments import processes

PACKAGES = ("jax", "jaxlib", "jax-md", "flax", "optax", "numpy", "scipy")

ENVIRONMENT = ("XLA_FLAGS", "GLIBC_TUNABLES")
"""Variables that change how fast a run is."""


def start(name: str, build: Callable) -> None:
    """The command line of an experiment: `--config=FILE`, `experiments/configs/NAME.py` unless given, and its fields.

    Args:
      name: of the config file.
      build: `config -> systems.System`.
    """
    default = Path(__file__).parent / "configs" / f"{name}.py"
    config = config_flags.DEFINE_config_file("config", str(default))
    app.run(lambda _: main(config.value, build))


def main(config: ConfigDict, build: Callable) -> None:
    """Run an experiment from the command line: what is wrong with the input is one sentence, not a traceback.

    Args:
      config: of the experiment.
      build: `config -> systems.System`.
    """
    configure(host_devices=config.host_devices)
    try:
        processes.join(config.cluster)
        # Not before: jax-md starts the backend when it is imported, and the number of devices is fixed then.
        from experiments import pipeline

        pipeline.run(config, build)
    except ValueError as error:
        sys.exit(f"error: {error}")


def configure(*, host_devices: int, has_threads: bool = False, keeps_programs: bool = True) -> None:
    """One XLA device per core of the host (0: as many as it has), unless a device `has_threads` on all of them.

    Replicas are shared between devices, so this is how the cores of a CPU are used; it changes nothing on a GPU or TPU.
    Compiled programs are kept on disk for the next run, unless told otherwise. It has to be called before JAX computes
    anything.
    """
    # jax-md asks for float64 in places and is given float32, as it should be without x64.
    warnings.filterwarnings("ignore", message="Explicitly requested dtype", category=UserWarning)
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    # It says so when it makes its list of fonts, once on every new machine.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
    if not has_threads:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")
    jax.config.update("jax_num_cpu_devices", host_devices or available_cores())
    if keeps_programs and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))


def cache_folder() -> Path:
    """Where compiled programs are kept for the next run; a folder of its own for each kind of processor.

    `JAX_COMPILATION_CACHE_DIR` chooses another one.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = hashlib.sha256(_cpu_features().encode()).hexdigest()[:12]
    return base / "stablejax" / "xla" / kind


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def about() -> dict[str, object]:
    """What every record says of its run."""
    return {
        "command": command(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the result."""
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


def commit() -> str:
    """The commit of the working tree, marked where it has uncommitted changes; "unknown" outside of git."""
    here = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--match="],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def command() -> str:
    """The command that runs this experiment, without paths of this machine."""
    spec = sys.modules["__main__"].__spec__
    module = f"-m {spec.name}" if spec else Path(sys.argv[0]).name
    return " ".join([f"python {module}", *map(_without_folder, sys.argv[1:])])


def _without_folder(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name if Path(value).is_absolute() else value}"


def _cpu_name() -> str:
    return _cpu_entry("model name") or platform.processor() or platform.machine()


def _cpu_features() -> str:
    """What code compiled for this processor may use."""
    return f"{_cpu_name()} {_cpu_entry('flags')}"


def _cpu_entry(name: str) -> str:
    """What Linux says of the first core; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
