"""Many devices and several processes: the same results, no more communication than planned."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from experiments import checkpoints, systems
from experiments.stages import stabilize
from stablejax import stable
from stablejax.learn import static_batch

ROOT = Path(__file__).resolve().parents[1]
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(?:-start)?\("
)


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


@pytest.mark.slow
def test_one_two_and_eight_devices_give_the_same():
    program = [sys.executable, str(ROOT / "tests" / "on_eight_devices.py")]
    given = environment() | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = subprocess.run(program, env=given, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    exact = np.array(found["exact"])
    size = np.linalg.norm(exact, axis=1)
    assert size.min() > 0
    one = found["devices"]["1"]
    assert min(one["step"]) > 0
    for num_devices, seen in found["devices"].items():
        assert seen["devices"] == int(num_devices)
        assert seen["step"] == one["step"]
        np.testing.assert_allclose(seen["position"], one["position"], atol=1e-5)
        # Sums of means that traveled in one piece would be 1e-4 off.
        error = np.linalg.norm(np.array(seen["gradient"]) - exact, axis=1) / size
        assert np.sqrt(np.mean(error**2)) < 2e-5


def sizes(shape):
    """Numbers in each array of a shape as HLO prints it: `(f32[8,8]{1,0}, s32[])` has 64 and 1."""
    return [int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\w+\[([\d,]*)\]", shape)]


@pytest.fixture(scope="module")
def stable_training():
    config = tiny.get_config()
    system = systems.build(config)
    params = system.problem.potential.init(jax.random.key(0))
    settings = stabilize.settings_of(config, system)
    state = stabilize.start(settings, system, params, num_replicas=config.stable.num_replicas)
    made = stable.stable_training(system.problem, settings, execution=system.execution)
    return system, params, state, made, settings


def test_learning_step_holds_the_planned_collectives_only(stable_training):
    """One all-reduce of the mean observable, one of the gradient, one of five counts of replicas and samples."""
    system, params, state, made, settings = stable_training
    frames = static_batch(system.problem, settings.learning, seed=0, cycle=0, epoch=0)
    compiled = jax.jit(made.learn).lower(state, frames).compile().as_text()
    found = [match.groups() for match in COLLECTIVE.finditer(compiled)]
    assert [kind for _, kind in found] == ["all-reduce"] * 3
    observables = sum(leaf.size for leaf in jax.tree.leaves(system.problem.observables.reference))
    # Of the tables and of what is not tabulated: the radial networks are differentiated after the sum.
    untabulated, table = jax.eval_shape(system.problem.potential.fast(system.table_intervals).prepare, params)
    untabulated = {name: leaves for name, leaves in untabulated["params"].items() if "filter" not in name}
    num_params = sum(leaf.size for leaf in jax.tree.leaves((untabulated, table.coefficient)))
    # Which of the two that the count of broken samples travels with is up to XLA.
    counts, *others = sorted(sum(sizes(shape)) for shape, _ in found)
    assert counts == 5 and sum(others) == 2 * observables + 3 + num_params + 1
    assert abs(max(others) - max(2 * observables + 3, num_params)) <= 1


def test_simulation_step_sums_counts_only(stable_training):
    _, _, state, made, _ = stable_training
    compiled = jax.jit(made.simulate).lower(state).compile().as_text()
    found = [match.groups() for match in COLLECTIVE.finditer(compiled)]
    assert {kind for _, kind in found} == {"all-reduce"}
    assert sum(sum(sizes(shape)) for shape, _ in found) <= 6  # steps and failures of the search are two of them


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


RESULTS = ("pretrained", "evaluation_before", "refined", "evaluation_after")


def arrays(path):
    with np.load(path) as file:
        return {name: array for name, array in file.items() if name != checkpoints.ABOUT}


def start(run_dir, num_processes, *, num_devices=2):
    """A run on two devices, of one process or of two."""
    coordinator = f"localhost:{free_port()}"
    started = []
    for process in range(num_processes):
        options = {
            "config": ROOT / "tests" / "tiny.py",
            "config.run_dir": run_dir,
            "config.host_devices": num_devices // num_processes,
            "config.cluster.num_processes": num_processes,
            "config.cluster.process": process,
            "config.cluster.coordinator": coordinator,
        }
        command = [
            sys.executable,
            "-m",
            "experiments.aspirin",
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        with run_dir.with_suffix(f".{process}.log").open("w") as log:
            given = environment() | {"XLA_FLAGS": ""}
            started.append(subprocess.Popen(command, cwd=ROOT, env=given, stdout=log, stderr=subprocess.STDOUT))
    return started


def finish(processes, run_dir):
    codes = [process.wait(timeout=600) for process in processes]
    logs = sorted(run_dir.parent.glob(f"{run_dir.name}.*.log"))
    assert not any(codes), "\n".join(path.read_text() for path in logs)


def kill_once_it_learns(processes, run_dir):
    while not list((run_dir / "checkpoints").glob("stable-*.npz")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.wait()
    assert not (run_dir / "refined.npz").exists()


def rows(run_dir):
    record = json.loads((run_dir / "record.json").read_text())
    return {
        (row["metric"], row.get("phase")): row["value"]
        for row in record["rows"]
        if not row["metric"].endswith("wall_s")
    }


@pytest.mark.slow
def test_the_same_run_in_two_processes_is_the_same_to_the_bit_and_on_one_device_to_rounding(tmp_path):
    folders = [tmp_path / name for name in ("first", "second", "one_device")]
    for folder, num_devices in zip(folders, (2, 2, 1), strict=True):
        finish(start(folder, 1, num_devices=num_devices), folder)
    first, second, other = ({name: arrays(folder / f"{name}.npz") for name in RESULTS} for folder in folders)
    for name in RESULTS:
        assert first[name].keys() == second[name].keys() == other[name].keys()
        for key, array in first[name].items():
            assert array.tobytes() == second[name][key].tobytes(), (name, key)
            np.testing.assert_allclose(other[name][key], array, rtol=1e-4, atol=1e-5)
    assert any(first["refined"][key].tobytes() != array.tobytes() for key, array in other["refined"].items())


@pytest.mark.slow
def test_two_processes_and_one_go_on_from_each_others_checkpoints(tmp_path):
    alone = tmp_path / "alone"
    finish(start(alone, 1), alone)
    expected = rows(alone)
    for first, then in ((1, 2), (2, 1)):
        run_dir = tmp_path / f"{first}_then_{then}"
        kill_once_it_learns(start(run_dir, first), run_dir)
        finish(start(run_dir, then), run_dir)
        found = rows(run_dir)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_processes": 2, "process": 2}, "config.cluster.process has to be one of 0 to 1, got 2"),
        ({"num_processes": 2, "process": 1}, "config.cluster.num_processes = 2 needs config.cluster.coordinator"),
    ],
)
def test_processes_that_cannot_meet_are_refused(settings, message):
    from experiments import processes

    config = tiny.get_config()
    config.cluster.update(settings)
    with pytest.raises(ValueError, match=re.escape(message)):
        processes.join(config.cluster)
