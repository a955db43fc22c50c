"""The benchmarks at their smallest size: what they compare is the same, and what they print is there."""

from __future__ import annotations

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import systems
from experiments.benchmarks import (
    commits,
    estimator,
    md_accuracy,
    md_methods,
    md_throughput,
    models,
    records,
    scaling,
    training,
    unrolled,
)
from experiments.configs import aspirin_paper
from stablejax import bind


def by_metric(rows, name, **where):
    return [row["value"] for row in rows if row["metric"] == name and all(row.get(key) == where[key] for key in where)]


@pytest.mark.slow
def test_estimator_and_its_rivals_give_the_same_gradient():
    rows = estimator.run([8], chunk_size=4, repeats=1)
    differences = by_metric(rows, "relative_difference")
    assert len(differences) == 3
    assert max(differences) < 1e-4
    assert len(by_metric(rows, "time_s")) == len(by_metric(rows, "peak_memory_bytes")) == 5


def test_backpropagation_needs_memory_for_every_step_and_the_estimator_does_not():
    rows = unrolled.run([20, 200], num_replicas=8, num_estimates=100, repeats=1)
    memory = {name: by_metric(rows, "peak_memory_bytes", method=name) for name in ("boltzmann", "direct")}
    assert memory["direct"][1] > 3 * memory["direct"][0]
    assert memory["boltzmann"][1] < 0.3 * memory["direct"][1]
    bias, error = (
        by_metric(rows, name, method="boltzmann") for name in ("gradient_bias", "gradient_bias_standard_error")
    )
    assert bias == pytest.approx([0.0, 0.0], abs=4 * max(error))
    short = by_metric(rows, "gradient_bias", method="direct", num_steps=20)[0]
    exact = by_metric(rows, "exact_gradient")[0]
    assert short == pytest.approx(-exact, rel=0.2)  # too short for the ensemble to follow the potential


def test_what_is_not_finite_is_null_in_the_record(tmp_path):
    rows = [{"metric": "a", "value": 1.0}, {"metric": "b", "value": float("nan")}]
    records.write(tmp_path / "record.json", "name", {}, rows)
    written = json.loads((tmp_path / "record.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert [row["value"] for row in written["rows"]] == [1.0, None]


def test_operations_of_matrix_products_are_counted_in_loops_too():
    def fn(x):
        return jax.lax.scan(lambda y, _: (jax.checkpoint(jnp.matmul)(y, x), None), x[:2], None, length=3)[0]

    assert models.num_operations(jax.make_jaxpr(fn)(jnp.ones((5, 5))).jaxpr) == 3 * 2 * (2 * 5 * 5)


def test_models_are_timed_for_every_number_of_frames_and_for_a_known_list():
    rows = models.run(argparse.Namespace(systems=["aspirin"], models=["schnet"], frames=[1, 2], repeats=1))
    assert [(row["frames"], row["is_known"]) for row in rows if row["metric"] == "time_ms"] == [
        (1, False),
        (2, False),
        (1, True),
    ]
    rate, time = by_metric(rows, "gflop_per_s"), by_metric(rows, "time_ms")
    operations = np.multiply(rate, time)
    np.testing.assert_allclose(operations, operations[0] * np.array([1, 2, 1]), rtol=1e-6)


def test_water_of_the_benchmark_is_water():
    case = models.water(2)
    molecule = case.position.reshape(2, 64, 3, 3)
    np.testing.assert_allclose(np.linalg.norm(molecule[:, :, 1:] - molecule[:, :, :1], axis=-1), 0.96, atol=0.01)
    pairs = models.near_pairs(case, 5.0)
    expected = 192 / 2 * (192 / 12.42**3) * 4 / 3 * np.pi * 5.0**3
    assert (pairs.first < 192).sum(axis=1) == pytest.approx(expected, rel=0.1)


def test_names_that_a_benchmark_does_not_know_are_refused():
    assert records.names(("a", "b"))("b,a") == ["b", "a"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"knows a, b, got c\."):
        records.names(("a", "b"))("a,c")


@pytest.mark.slow
@pytest.mark.parametrize("name", training.SETTINGS)
def test_every_model_learns_in_the_training_benchmark(name):
    config = aspirin_paper.get_config()
    config.data.path, config.data.energy_unit = str(models.DATA / "aspirin_gfn2.npz"), "eV"
    config.data.num_train, config.data.num_validation, config.data.num_test = 100, 20, 1
    errors = [row["value"] for row in training.train(name, config, minutes=0.3)]
    assert len(errors) > 1
    assert errors[-1] < errors[0]


class FakeWorker:
    """Takes so many seconds for a step of one replica."""

    def __init__(self, seconds, replicas):
        self.seconds, self.replicas = seconds, replicas

    def ask(self, name, num_steps):
        assert name == "run"
        return num_steps * self.replicas, num_steps * self.replicas * self.seconds


def test_rates_of_dynamics_and_their_ratios():
    workers = {"fast": FakeWorker(0.001, 4), "plain": FakeWorker(0.003, 4), "matrix": FakeWorker(0.5, 1)}
    rates = md_throughput.take_turns(workers, seconds=2.0, repeats=3)
    assert rates["fast"] == pytest.approx([1000] * 3)
    assert rates["matrix"] == pytest.approx([2] * 3)
    rows = md_throughput.figures(rates, 1e6, {"system": "aspirin"})
    assert by_metric(rows, "speedup_vs_plain") == pytest.approx([3])
    peak = 2 * 1024**3 * 10 * 2
    assert by_metric(rows, "fraction_of_floor") == pytest.approx([1000 * 1e6 / peak])


def aspirin_task(num_replicas):
    case = models.aspirin(num_replicas)
    model = models.build_model("schnet", case.species)
    params = jax.tree.map(np.asarray, bind(model, case.species).init(jax.random.key(0)))
    return md_methods.Task("schnet", params, case.species, case.position, None, 0.02, True)


@pytest.mark.slow
def test_methods_take_the_steps_they_say():
    task = aspirin_task(2)
    for method in ("fast", "fast_on_one", "plain"):
        runner = md_methods.METHODS[method](task)
        assert [runner(3), runner(2)] == [6, 4]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # PyTorch Geometric
def test_rival_of_pytorch_is_the_same_potential():
    torch = pytest.importorskip("torch", reason="needs the extra [bench]")
    task = aspirin_task(3)
    forces = md_methods.torch_forces(task)(torch.tensor(task.position, dtype=torch.float32)).numpy()
    potential = bind(models.build_model("schnet", task.species), task.species, scale=task.scale)
    expected = -jax.vmap(jax.grad(potential.energy, argnums=1), (None, 0))(task.params, task.position)
    assert np.abs(expected).max() > 0.001
    np.testing.assert_allclose(forces, expected, atol=1e-6)
    assert md_methods.METHODS["pyg"](task)(2) == 6


def test_drift_and_spread_of_a_line_with_noise():
    time = np.linspace(0, 2, 1001)
    energy = 0.003 * time + 0.001 * np.sqrt(2) * np.sin(200 * time)
    drift, spread = md_accuracy.drift_and_spread(np.stack([energy, energy]), 2.0)
    assert (drift, spread) == (pytest.approx(3.0, abs=0.1), pytest.approx(1.0, abs=0.02))


@pytest.mark.slow
def test_accuracy_of_the_fast_form(monkeypatch):
    config = tiny.get_config()
    system = systems.build(config)
    params = system.problem.potential.init(jax.random.key(0))
    monkeypatch.setattr(md_throughput, "pretrained_aspirin", lambda: (system, params))
    given = argparse.Namespace(replicas=4, force_replicas=2, force_ps=0.01, nve_ps=0.05, horizon_ps=0.01)
    rows = md_accuracy.run(given)
    (error,) = by_metric(rows, "max_force_error_eV_per_A")
    assert 0 < error < 0.1  # 128 intervals
    assert len(by_metric(rows, "energy_drift_meV_per_ps")) == len(by_metric(rows, "median_first_passage_ps")) == 2


@pytest.mark.slow
def test_epochs_of_learning_shared_between_devices():
    given = argparse.Namespace(
        devices=[1, 2], computed=[1, 2, 4], replicas=2, samples=4, qm_frames=2, steps=200, stride=100, repeats=1
    )
    rows = scaling.run(argparse.Namespace(**vars(given), latency_us=10.0, gigabytes_per_s=1.0))
    times = {(row["part"], row["devices"]): row["value"] for row in rows if row["metric"] == "time_s"}
    assert times.keys() == {(part, n) for part in ("simulate", "gradient", "qm_gradient") for n in (1, 2)}
    talking = by_metric(rows, "all_reduce_s")
    size = sum(by_metric(rows, "all_reduce_bytes"))
    assert talking == pytest.approx([0, 2 * (2 * 10e-6) + size / 1e9, 2 * (4 * 10e-6) + 1.5 * size / 1e9])
    (alone,) = by_metric(rows, "epoch_s", devices=1, how="replicas shared")
    assert alone == pytest.approx(sum(times[part, 1] for part in ("simulate", "gradient", "qm_gradient")))
    assert len(by_metric(rows, "epoch_s", devices=4)) == 1  # more devices than replicas
    assert by_metric(rows, "parallel_efficiency", devices=1) == pytest.approx([1, 1])


def version(folder, seconds):
    """A repository whose benchmark writes the seconds of each of its runs, in order."""
    package = folder / "experiments" / "benchmarks"
    package.mkdir(parents=True)
    for part in (package.parent, package):
        (part / "__init__.py").touch()
    (package / "line.py").write_text(
        "import json, pathlib, sys\n"
        f"times = {seconds}\n"
        "done = pathlib.Path('done')\n"
        "number = int(done.read_text()) if done.exists() else 0\n"
        "done.write_text(str(number + 1))\n"
        "rows = [{'metric': 'time_s', 'value': times[number], 'low': 0.0, 'unit': 's', 'method': m} for m in 'ab']\n"
        "rows.append({'metric': 'speedup', 'value': 1.0})\n"
        "rows[1]['size'] = sys.argv[1]\n"
        "pathlib.Path(sys.argv[sys.argv.index('--json') + 1]).write_text(json.dumps({'rows': rows}))\n"
    )
    return folder


def test_versions_are_compared_pair_by_pair(tmp_path, monkeypatch):
    before, after = version(tmp_path / "before", [1.0, 2.0, 8.0]), version(tmp_path / "after", [3.0, 2.0, 2.0])
    monkeypatch.setattr(commits, "HERE", after)
    record = tmp_path / "record.json"
    command = f"commits --before {before} --json {record} line 7".split()
    monkeypatch.setattr("sys.argv", command)
    commits.main()
    about = {"metric": "time_s_ratio", "value": 1.0, "low": 0.25, "high": 3.0}
    written = json.loads(record.read_text())
    assert written["rows"] == [about | {"method": "a"}, about | {"method": "b", "size": "7"}]
    assert written["config"]["before"] == "unknown"


def test_versions_without_a_common_figure_are_refused(tmp_path, monkeypatch, capsys):
    before, after = version(tmp_path / "before", [1.0]), version(tmp_path / "after", [1.0])
    monkeypatch.setattr(commits, "HERE", after)
    for command, message in (("", "got none"), ("other", "has no benchmark other"), ("line 7", "no figure of flops")):
        monkeypatch.setattr("sys.argv", f"commits --before {before} --pairs 1 --metrics flops {command}".split())
        with pytest.raises(SystemExit):
            commits.main()
        assert message in capsys.readouterr().err
