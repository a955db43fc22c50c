"""The list of faults does not rot: each can still be put in, and each is about a test that is there."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from mutations import MUTANTS

ROOT = Path(__file__).resolve().parents[1]


@cache
def text_of(path):
    return (ROOT / path).read_text()


def test_the_text_of_every_fault_stands_once_in_its_file_and_its_tests_exist():
    stale = []
    for mutant in MUTANTS:
        is_there = text_of(mutant.path).count(mutant.old) == 1 and mutant.new != mutant.old
        nodes = [node.partition("[")[0].split("::") for node in mutant.tests.split()]
        has_tests = all(re.search(rf"^ *def {name}\(", text_of(path), re.MULTILINE) for path, *_, name in nodes)
        stale += [] if is_there and has_tests else [mutant.name]
    assert not stale
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
