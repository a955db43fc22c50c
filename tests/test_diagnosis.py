"""What a report says of failures, and what it advises."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from experiments import report
from experiments.report import diagnosis


def failure(involved, *, when="at"):
    atoms = Atoms("OCH2", positions=np.zeros((4, 3)), info={"when": when})
    atoms.arrays["involved"] = np.isin(np.arange(4), involved)
    return atoms


def test_failures_are_named_by_their_atoms_the_most_frequent_first():
    frames = [failure([0, 1]), failure([1, 3]), failure([1, 3]), failure([1, 2], when="before")]
    assert diagnosis.what_fails(frames) == "of 3 failures that were kept, most are of C1-H3 (2), O0-C1 (1)"


def test_failures_of_the_whole_system_are_not_named():
    class Many(Atoms):
        pass

    whole = Atoms("H9", positions=np.zeros((9, 3)), info={"when": "at"})
    whole.arrays["involved"] = np.ones(9, bool)
    assert diagnosis.what_fails([whole]) == diagnosis.what_fails([]) == ""


def record(ratio=12.0, kind="at least", p=1e-6, change=0.01, train=0.09, error=0.15, censored=False):
    return {
        "rows": [
            {"metric": "ratio_median_first_passage", "value": ratio, "kind": kind},
            {"metric": "logrank_p", "value": p},
            {"metric": "force_mae_change", "value": change},
            {"metric": "median_first_passage_ps", "phase": "before", "value": 2.0, "censored": censored},
            {"metric": "force_mae_eV_per_A", "phase": "before", "value": error},
            {"metric": "train_force_mae_eV_per_A", "value": train},
            {"metric": "mean_force_eV_per_A", "value": 1.0},
        ]
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"ratio": 2.0}, "little was gained: allow more cycles"),
        ({"p": 0.01}, "little was gained: allow more cycles"),
        ({"kind": "unknown", "ratio": None}, "little was gained: allow more cycles"),
        ({"change": 0.08}, "stability was dear: allow more cycles"),
        (
            {"ratio": 2.0, "train": 0.05},
            "little was gained, and the force error is 0.050 eV/Å on training frames and 0.15",
        ),
        (
            {"ratio": 2.0, "error": 0.4, "train": 0.3},
            "little was gained, and the force error is 40 % of the mean force",
        ),
        ({"ratio": 1.0, "censored": True}, ""),
    ],
)
def test_advice_is_given_where_the_outcome_asks_for_it(changes, expected):
    found = diagnosis.advice(record(**changes))
    assert found.startswith(expected) and bool(found) == bool(expected)


def test_a_potential_beyond_repair_is_said_to_be_so_before_learning():
    assert report.beyond_repair(0.05, 0.4, 1.0).startswith(
        "this potential fails within 0.05 ps, and its force error is 40 %"
    )
    assert report.beyond_repair(0.2, 0.4, 1.0) == report.beyond_repair(0.05, 0.2, 1.0) == ""


def test_a_diagnosis_is_part_of_the_record_and_of_its_summary():
    found = report.diagnosed(record(ratio=2.0), {"before": [failure([0, 1])], "after": []})
    assert found["what_fails"] == {"before": "of 1 failures that were kept, most are of O0-C1 (1)", "after": ""}
    assert found["advice"].startswith("little was gained")
