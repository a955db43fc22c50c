"""Fixtures and small systems that several tests use."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
# Whole runs are started again and again in tests: programs are compiled once in this process and those that it starts.
os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{tempfile.gettempdir()}/stablejax-tests-{os.getpid()}"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax.energy_functions import from_energy
from stablejax.space import OPEN, Pairs

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_unconfigure():
    """The cache goes with the process that made it."""
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference figures and data that are not in the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference data in {SHARED.name}/ beside the repository")
    return SHARED


class Spring:
    """A tetrahedron of unlike atoms held by springs: a molecule whose energy is known and cheap."""

    mass = jnp.array([1.008, 12.011, 15.999, 1.008], jnp.float32)
    pairs = Pairs(np.array([0, 0, 0, 1, 1, 2]), np.array([1, 2, 3, 2, 3, 3]))
    length = 1.2  # Å
    start = jnp.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], jnp.float32) * (1.2 / 8**0.5)

    @staticmethod
    def energy(stiffness, position):
        """½ k Σ (r − r₀)², eV."""
        return 0.5 * stiffness * jnp.sum((OPEN.distances(position, Spring.pairs) - Spring.length) ** 2)

    @classmethod
    def potential(cls):
        """The same as a potential."""
        return from_energy(cls.energy, num_atoms=len(cls.mass))


@pytest.fixture
def spring() -> type[Spring]:
    """See `Spring`."""
    return Spring


def standard_error(samples: np.ndarray, num_blocks: int = 20) -> float:
    """Standard error of the mean of correlated samples along axis 0, from means of blocks."""
    blocks = np.array([block.mean() for block in np.array_split(np.asarray(samples, float), num_blocks)])
    return float(blocks.std(ddof=1) / np.sqrt(num_blocks))


@pytest.fixture
def x64():
    """Double precision inside the test only."""
    with jax.enable_x64(True):
        yield
