"""Memory is known before a program is launched, and what would not fit is refused with a way out."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
import tiny

from experiments import memory, pipeline, systems
from experiments.stages import evaluate
from experiments.systems import base
from stablejax import dynamics


def pairwise(x):
    """Needs 8 n² bytes or so."""
    return jnp.sort(jnp.sin(x[:, None] * x[None, :]), axis=0).sum()


def compiled(number):
    return jax.jit(pairwise).lower(jax.ShapeDtypeStruct((1000 * number,), jnp.float32)).compile()


def test_program_needs_what_its_arrays_take():
    assert 4e6 < memory.program_bytes(compiled(1)) < 20e6
    assert 3.5 < memory.program_bytes(compiled(2)) / memory.program_bytes(compiled(1)) < 4.5


def test_free_memory_is_that_of_the_host_within_its_container_shared_by_its_devices(monkeypatch):
    files = {"/proc/meminfo": ["MemTotal: 9000000 kB", "MemAvailable: 4000000 kB"]}
    monkeypatch.setattr(memory, "_lines", lambda path: files.get(path, []))
    assert memory.available_bytes() == 1024 * 4_000_000 / jax.local_device_count()
    files |= {"/sys/fs/cgroup/memory.max": ["3000000000"], "/sys/fs/cgroup/memory.current": ["1000000000"]}
    assert memory.available_bytes() == 2e9 / jax.local_device_count()


def test_what_does_not_fit_is_refused_with_a_way_out(monkeypatch):
    fn, argument = jax.jit(pairwise), (jnp.ones(2000),)
    needed = memory.check("the test", fn, argument, "use less")
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    with pytest.raises(ValueError, match=r"the test needs 0\.0\d GB on each of 2 devices, .* 80 %: use less"):
        memory.check("the test", fn, argument, "use less")
    monkeypatch.setattr(memory, "available_bytes", lambda: 2 * needed)
    assert memory.check("the test", fn, argument, "use less") == needed


@pytest.mark.parametrize(("available", "expected"), [(1e15, 50), (0, 1), (5e6, 5)])
def test_as_many_items_as_fit(available, expected, monkeypatch):
    def program(number):
        return jax.jit(lambda x: jnp.sort(x, axis=0)).lower(jnp.zeros((number, 100_000))).compile()

    monkeypatch.setattr(memory, "available_bytes", lambda: available)
    assert memory.largest_that_fits(program, 50) == expected


def test_chunks_follow_the_memory_of_an_accelerator(monkeypatch):
    config = tiny.get_config()
    system = systems.build(config)
    potential = system.problem.potential
    form = potential.fast(128)
    assert memory.estimator_chunk(potential) == memory.CPU_CHUNK
    assert memory.replica_batch(form, most=64) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert memory.estimator_chunk(potential) == memory.MOST_CHUNK
    assert memory.replica_batch(form, most=64) == 64
    monkeypatch.setattr(memory, "available_bytes", lambda: 2_000_000)
    few = memory.estimator_chunk(potential)
    assert 1 <= few < memory.MOST_CHUNK
    assert 1 <= memory.replica_batch(form, most=64) < 64
    monkeypatch.setattr(memory, "available_bytes", lambda: 4_000_000)
    assert memory.estimator_chunk(potential) > few
    assert base.execution(potential, form=form, num_replicas=4).batch_size is None


def test_experiment_that_does_not_fit_ends_in_one_sentence(tmp_path, monkeypatch):
    config = tiny.get_config()
    config.run_dir = str(tmp_path)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    message = "pretraining needs 0.00 GB on each of 2 devices"
    with pytest.raises(ValueError, match=re.escape(message) + ".*lower config.pretrain.batch_size"):
        pipeline.run(config)


def test_memory_of_simulation_grows_with_frames_not_with_steps():
    config = tiny.get_config()
    system = systems.build(config)
    form = system.problem.potential.fast(128)
    integrator = system.thermostat(form, system.problem.mass, kT=system.problem.kT)
    prepared = jax.eval_shape(form.prepare, jax.eval_shape(form.init, jax.random.key(0)))
    position = jax.ShapeDtypeStruct((21, 3), jnp.float32)
    replica = jax.eval_shape(
        lambda *given: dynamics.init_replica(integrator, *given), jax.random.key(0), position, prepared
    )

    def needed(num_frames, steps_per_frame):
        def run(prepared, replica):
            lengths = dict(num_frames=num_frames, steps_per_frame=steps_per_frame)
            return dynamics.sample(integrator, system.problem.criterion, prepared, replica, **lengths)

        return memory.program_bytes(jax.jit(run).lower(prepared, replica).compile())

    few = needed(10, 10)
    assert needed(10, 1000) == few
    frame = (3 * 21 * 3 + 1) * 4 + 1  # position, velocity, force and energy, and whether they count
    assert needed(1010, 10) - few == pytest.approx(1000 * frame, rel=0.1)


def test_buffers_of_replicas_are_given_up_to_the_next_chunk():
    config = tiny.get_config()
    system = systems.build(config)
    params = system.problem.potential.init(jax.random.key(0))
    evaluator = evaluate.build(evaluate.schedule_of(config), system)
    prepared = evaluator.prepare(params)
    replicas = evaluator.start(prepared)
    evaluator.run_chunk(prepared, replicas)
    assert replicas.md.position.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(prepared))
