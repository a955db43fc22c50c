"""Faults that are put into the files of a run, its directory, its signals and its settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.benchmarks import kills, runs
from experiments.benchmarks.runs import TRACEBACK
from experiments.benchmarks.scene import Scene, Verdict, mounted
from experiments.configs import aspirin

STABLE = "StABlE training"
DISK = "64k"
"""Room for the files of a run that fills its disk: less than its checkpoints need."""


def cut(content: bytes) -> bytes:
    """The first half of a file."""
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    """Nothing of a file."""
    return content[:0]


def flip(content: bytes) -> bytes:
    """A file with one bit in its middle changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def damaged_checkpoint(stage: str, damage: Callable[[bytes], bytes], scene: Scene, name: str = "") -> Verdict:
    """The newest checkpoint of an interrupted run is damaged, or the one of a name.

    Args:
      stage: in which the run was interrupted.
      damage: what is done to the content.
      scene: provides the run.
      name: of the file.
    """
    run_dir = scene.interrupted(stage)
    found = sorted(run_dir.rglob(name or "*.npz"), key=lambda path: path.stat().st_mtime)
    if not found:
        return Verdict(False, "there is no checkpoint")
    found[-1].write_bytes(damage(found[-1].read_bytes()))
    return scene.same(scene.runner.run(run_dir), run_dir, found[-1].name)


def damaged_json(name: str, scene: Scene) -> Verdict:
    """A file of JSON of an interrupted run is cut short."""
    run_dir = scene.interrupted(STABLE)
    path = run_dir / name
    path.write_bytes(cut(path.read_bytes()))
    return scene.same_or_refused(scene.runner.run(run_dir), run_dir, name)


def damaged_metrics(scene: Scene) -> Verdict:
    """The last line of the metrics of an interrupted run is cut short."""
    run_dir = scene.interrupted(STABLE)
    path = run_dir / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    verdict = scene.same(scene.runner.run(run_dir), run_dir)
    lost, doubled = runs.lost_and_doubled(runs.lines_of(scene.expected), runs.lines_of(run_dir))
    return Verdict(
        verdict.is_ok and lost == doubled == 0, f"{verdict.happened}, {lost} lines lost and {doubled} doubled"
    )


def damaged_programs(scene: Scene) -> Verdict:
    """Compiled programs are cut short, as by a kill while they are written."""
    # In their place: their names depend on the folder.
    programs = {path: path.read_bytes() for path in scene.runner.programs.glob("*-cache")}
    for path, content in programs.items():
        path.write_bytes(cut(content))
    run_dir = scene.folder()
    outcome = scene.runner.run(run_dir)
    num_whole = sum(path.read_bytes() != cut(content) for path, content in programs.items())
    for path, content in programs.items():
        path.write_bytes(content)
    verdict = scene.same(outcome, run_dir)
    said = outcome.output.count("compilation cache entry")
    happened = f"{verdict.happened}; of {len(programs)} programs {said} are said to be damaged, {num_whole} replaced"
    return Verdict(verdict.is_ok, happened)


def no_config(scene: Scene, *fields: str) -> Verdict:
    """The config of an interrupted run is deleted.

    Args:
      scene: provides the run.
      fields: of the command line that resumes it.
    """
    run_dir = scene.interrupted(STABLE)
    (run_dir / "config.json").unlink(missing_ok=True)
    outcome = scene.runner.run(run_dir, *fields)
    return scene.refused(outcome) if fields else scene.same_or_refused(outcome, run_dir)


def other_data(scene: Scene) -> Verdict:
    """The data set is another one when the run is resumed, at the same path."""
    path = scene.runner.folder / "data.npz"
    with np.load(aspirin.DATA) as file:
        arrays = dict(file)
    np.savez(path, **arrays)
    run_dir = scene.interrupted("evaluation before", f"--config.data.path={path}")
    np.savez(path, **arrays | {"F": 1.01 * arrays["F"]})
    return scene.refused(scene.runner.run(run_dir, f"--config.data.path={path}"), "data")


def other_devices(scene: Scene) -> Verdict:
    """A run is resumed with another number of devices."""
    run_dir = scene.interrupted(STABLE)
    outcome = scene.runner.run(run_dir, "--config.host_devices=2")
    verdict = scene.same_or_refused(outcome, run_dir, "device")
    is_said = outcome.code == 0 and TRACEBACK not in outcome.output and "device" in outcome.output
    return Verdict(verdict.is_ok or is_said, verdict.happened + ", and it is said" * is_said)


def file_as_directory(scene: Scene) -> Verdict:
    """There is a file where the directory of the run should be."""
    path = scene.folder()
    path.touch()
    return scene.refused(scene.runner.run(path))


def read_only(scene: Scene) -> Verdict:
    """The directory of the run cannot be written: a read-only file system, or a mode where none can be mounted."""
    folder = scene.folder()
    with mounted(folder, "ro") as is_mounted:
        if not is_mounted:
            folder.chmod(0o500)
        if os.access(folder, os.W_OK):
            return Verdict(False, "not tried: this user may write everywhere and not mount anything")
        return scene.refused(scene.runner.run(folder / "run"))


def full_disk(scene: Scene) -> Verdict:
    """The disk is full in the middle of a run, and later it is not: a small file system, or a bound on files."""
    folder = scene.folder()
    with mounted(folder, f"size={DISK}") as is_mounted:
        run_dir = folder / "run"
        limited = () if is_mounted else ("sh", "-c", 'ulimit -f 16; exec "$@"', "sh")
        full = scene.refused(scene.runner.run(run_dir, before=limited))
        if is_mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        later = scene.same(scene.runner.run(run_dir), run_dir)
    how = "a small tmpfs" if is_mounted else "a bound on the size of files"
    return Verdict(full.is_ok and later.is_ok, f"{how}; {full.happened}; resumed: {later.happened}")


def second_run(scene: Scene) -> Verdict:
    """Two runs in one directory at once."""
    run_dir = scene.folder()
    first = scene.runner.start(run_dir)
    _wait_for(scene, first, run_dir, "pretraining")
    verdict = scene.refused(scene.runner.run(run_dir), "in use")
    first.process.kill()
    first.finish()
    return verdict


def ended_by(number: signal.Signals, code: int, stage: str, scene: Scene) -> Verdict:
    """A run is sent a signal in the middle of a stage, and resumed.

    Args:
      number: of the signal.
      code: of the exit that is right.
      stage: in which it comes.
      scene: provides the results that are right.
    """
    run_dir = scene.folder()
    started = scene.runner.start(run_dir)
    _wait_for(scene, started, run_dir, stage)
    started.process.send_signal(number)
    ended = started.finish(timeout_s=120)
    resumed = scene.same(scene.runner.run(run_dir), run_dir)
    is_ok = ended.code == code and TRACEBACK not in ended.output and resumed.is_ok
    return Verdict(is_ok, f"{scene.said(ended)}; resumed: {resumed.happened}")


def rate_of_one(scene: Scene) -> Verdict:
    """StABlE training with a learning rate that no run should have."""
    run_dir = scene.folder()
    outcome = scene.runner.run(run_dir, "--config.stable.learning_rate=1")
    rows = runs.rows_of(run_dir)
    if outcome.code or rows is None:
        return Verdict(False, scene.said(outcome))
    value = {(row["metric"], row.get("phase")): row["value"] for row in rows}
    returns = value["num_rollbacks", None]
    before, after = (value["force_mae_eV_per_A", phase] for phase in ("before", "after"))
    course = json.loads((run_dir / "config.json").read_text())["config"]["stable"]
    is_ok = returns > 0 and after is not None and after <= course["max_force_error"] * before
    return Verdict(is_ok, f"{returns} returns, force MAE {before:.3f} -> {after or float('nan'):.3f} eV/Å")


def wrong_input(scene: Scene, *fields: str, words: tuple[str, ...] = ()) -> Verdict:
    """Arguments that are wrong.

    Args:
      scene: starts the run.
      fields: the arguments.
      words: that the sentence has to have.
    """
    run_dir = scene.folder()
    verdict = scene.refused(scene.runner.run(run_dir, *fields), *words)
    return Verdict(verdict.is_ok and not run_dir.exists(), verdict.happened)


def broken_config(text: str, scene: Scene) -> Verdict:
    """A file of a config that is none."""
    path = scene.folder().with_suffix(".py")
    path.write_text(text)
    return scene.refused(scene.runner.run(scene.folder(), config=path), path.name)


def wrong_data(change: Callable[[dict], dict], damage: Callable[[bytes], bytes], scene: Scene) -> Verdict:
    """A data set that no run should start with.

    Args:
      change: of the arrays of a data set.
      damage: of the file.
      scene: starts the run.
    """
    path = scene.folder().with_suffix(".npz")
    with np.load(aspirin.DATA) as file:
        np.savez(path, **change(dict(file)))
    path.write_bytes(damage(path.read_bytes()))
    return scene.refused(scene.runner.run(scene.folder(), f"--config.data.path={path}"), path.name)


def _wait_for(scene: Scene, started: runs.Started, run_dir: Path, stage: str) -> None:
    most = scene.middle(stage).num_lines
    while started.is_running() and kills.num_reached(runs.lines_of(run_dir), scene.timeline.stages) < most:
        time.sleep(runs.POLL_S)
