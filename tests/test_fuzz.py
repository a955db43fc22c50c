"""A few seconds of what `experiments.benchmarks.fuzz` does for minutes, and that it would notice what it looks for."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import cli
from experiments.benchmarks import fuzz
from experiments.data import checks, loaders


def test_damaged_inputs_are_used_or_refused_in_a_sentence():
    """The same inputs in every run."""
    result = fuzz.fuzz(60.0, seed=0, max_rounds=4)
    assert not result["faults"], "\n\n".join(result["faults"])
    assert result["tracebacks"] == result["accepted_non_finite"] == 0
    assert result["tries"] > 350  # some are drawn and not tried: Hypothesis has drawn them before
    assert all(tries for tries, _ in result["by_kind"].values())
    assert 0 < result["accepted"] < result["tries"]
    assert result["longest_s"] < 5


def test_a_traceback_is_counted_and_described(monkeypatch):
    def broken(*_, **__):
        raise KeyError("ours")

    monkeypatch.setattr(loaders, "load", broken)
    monkeypatch.setattr(cli, "load_config", broken)
    result = fuzz.fuzz(60.0, seed=0, max_rounds=1)
    assert result["tracebacks"] > 0 and result["accepted"] == 0
    assert any("KeyError in test_fuzz.py" in fault for fault in result["faults"])
    assert sum(tries for tries, _ in result["by_kind"].values()) == result["tries"]
    assert len(result["faults"]) <= fuzz.SHOWN


def test_what_is_not_finite_is_counted(monkeypatch):
    position = np.full((12, 3, 3), np.nan)
    dataset = loaders.Dataset(np.array([8, 1, 1]), position, np.zeros(12), position, None, None, None)
    monkeypatch.setattr(loaders, "load", lambda *_, **__: dataset)
    assert fuzz.fuzz(60.0, seed=0, max_rounds=1)["accepted_non_finite"] > 0


@pytest.mark.parametrize("name", ["motion_msd", "R", "E", "F", "V"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_no_number_of_a_data_set_is_without_bound(name, value, tmp_path):
    """Also what becomes infinite where it is converted."""
    from test_data_cases import NUM, refused, saved, water

    content = water() | {"motion_msd": np.ones((2, 3)), "V": np.zeros((NUM, 3, 3))}
    content[name] = content[name].copy()
    content[name].flat[-1] = value
    if name == "motion_msd" and np.isfinite(value):
        return
    refused("is not finite|no result of a calculation|has to be finite numbers", saved(tmp_path, **content))
    assert checks.LARGEST**2 < np.finfo(np.float32).max
