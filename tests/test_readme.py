"""What the README tells a newcomer to run does run."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_estimator_example_gives_what_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert float(names["mean"](2.0, names["samples"])) == pytest.approx(0.25, abs=0.02)
    assert float(jax.grad(names["mean"])(2.0, names["samples"])) == pytest.approx(-0.125, abs=0.02)
    assert float(names["gradient"]) == pytest.approx(2 * 0.05 * -0.125, abs=0.01)


def test_commands_and_files_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake (?!and\b)([a-z-]+)", README)) - {"them"}
    assert {"aspirin", "test"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)
    for linked in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / linked).exists(), linked
