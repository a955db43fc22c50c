"""A directory has one run at a time, and a process that dies leaves it free."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from experiments import locks, pipeline, processes

ROOT = Path(__file__).resolve().parents[1]
HOLDS = """
import sys, time
from pathlib import Path
from experiments import locks
with locks.exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_run", lambda run_dir, *_: (run_dir / "record.json").touch())
    config = tiny.get_config()
    config.run_dir = str(tmp_path)
    with locks.exclusive(tmp_path), pytest.raises(ValueError, match="is in use by another run: wait until it ends"):
        pipeline.run(config)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []


def test_a_process_that_is_killed_leaves_the_directory_free(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="in use"), locks.exclusive(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with locks.exclusive(tmp_path):
        pass


def test_only_the_first_process_takes_the_lock(tmp_path, monkeypatch):
    with locks.exclusive(tmp_path):
        monkeypatch.setattr(processes, "is_first", lambda: False)
        with locks.exclusive(tmp_path):
            pass
        monkeypatch.setattr(processes, "agree", lambda fact: True)  # the first one was refused
        with pytest.raises(ValueError, match="in use"), locks.exclusive(tmp_path):
            pass
