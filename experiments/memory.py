"""Memory, planned before a program is launched: its requirement, the free memory, and sizes that fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import processes
from stablejax.potential import Potential

SHARE = 0.8
"""Share of the free memory that a program may take: XLA's count leaves out its own buffers."""
CPU_CHUNK, MOST_CHUNK = 2, 256
"""Samples differentiated together: the number for the caches of a CPU, and the one that saturates an accelerator."""


def available_bytes() -> float:
    """Free memory per device, the smallest over all processes; CPU devices of one host share its memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return processes.smallest(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return processes.smallest(_host_bytes() / jax.local_device_count())


def _host_bytes() -> int:
    """Free memory of this host, within the limit of a container."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = 1024 * int(line.split()[1])
    limit, used = (next(iter(_lines(f"/sys/fs/cgroup/memory.{name}")), "max") for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return free


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().split("\n")
    except OSError:
        return []


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Peak memory of a program on each device by its compiler's count, arguments and result included."""
    memory: Any = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes


def check(what: str, program: Callable, arguments: tuple, advice: str, **static) -> int:
    """Compile `program`, a jitted function, and raise where it would not fit.

    Returns:
      Its peak memory on each device, bytes.

    Raises:
      ValueError: it needs more than is free; `advice` says what to change.
    """
    needed = program_bytes(program.lower(*arguments, **static).compile())  # type: ignore[attr-defined]
    free = available_bytes()
    if needed > SHARE * free:
        raise ValueError(
            f"{what} needs {needed / 1e9:.2f} GB on each of {jax.device_count()} devices, where {free / 1e9:.2f} GB "
            f"are free, of which a run may take {100 * SHARE:.0f} %: {advice}."
        )
    return needed


def largest_that_fits(program: Callable[[int], jax.stages.Compiled], most: int) -> int:
    """How many items, at most `most`, fit together on a device.

    The memory is extrapolated linearly from that of two and of four items.
    """
    if most < 4:
        return most
    two, four = (program_bytes(program(number)) for number in (2, 4))
    each = max((four - two) / 2, 1)
    return max(1, int(min(2 + (SHARE * available_bytes() - two) / each, most)))


def replica_batch(form: Potential, most: int) -> int:
    """Replicas in a batch on a device: one suits the caches of a CPU; an accelerator takes as many as fit.

    Args:
      form: of the potential, that is simulated.
      most: largest batch of a device.
    """
    if jax.default_backend() == "cpu":
        return 1
    prepared = jax.eval_shape(form.prepare, _shape_of_params(form))
    one = jax.ShapeDtypeStruct((form.num_atoms, 3), jnp.float32)
    listed = None if form.lists is None else jax.eval_shape(form.lists.init, one)

    def program(number):
        forces = jax.vmap(jax.grad(form.prepared_energy, argnums=1), (None, 0, None))
        return jax.jit(forces).lower(prepared, _positions(number, form.num_atoms), listed).compile()

    return largest_that_fits(program, most)


def estimator_chunk(potential: Potential) -> int:
    """Samples whose energies are differentiated together."""
    if jax.default_backend() == "cpu":
        return CPU_CHUNK

    def program(number):
        total = lambda params, x: jnp.sum(jax.vmap(potential.energy, (None, 0))(params, x))  # noqa: E731
        return (
            jax.jit(jax.grad(total))
            .lower(_shape_of_params(potential), _positions(number, potential.num_atoms))
            .compile()
        )

    return largest_that_fits(program, MOST_CHUNK)


def _shape_of_params(potential: Potential):
    return jax.eval_shape(potential.init, jax.random.key(0))


def _positions(number: int, num_atoms: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((number, num_atoms, 3), jnp.float32)
