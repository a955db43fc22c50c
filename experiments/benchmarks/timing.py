"""How benchmarks measure time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def measure(fns: Mapping[str, Callable[..., Any]], arguments: tuple, repeats: int) -> dict[str, float]:
    """Median seconds of each function, from interleaved calls."""
    times: dict[str, list[float]] = {name: [] for name in fns}
    for fn in fns.values():
        jax.block_until_ready(fn(*arguments))
    for _ in range(repeats):
        for name, fn in fns.items():
            begun = time.perf_counter()
            jax.block_until_ready(fn(*arguments))
            times[name].append(time.perf_counter() - begun)
    return {name: float(np.median(values)) for name, values in times.items()}
