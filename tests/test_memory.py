"""Memory is known before a program is launched, and what would not fit is refused with a way out."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
import tiny

from experiments import evaluation, memory, pipeline, systems
from experiments.aspirin import build
from stablejax import dynamics


def pairwise(x):
    """Needs 8 n² bytes or so."""
    return jnp.sort(jnp.sin(x[:, None] * x[None, :]), axis=0).sum()


def compiled(number):
    return jax.jit(pairwise).lower(jax.ShapeDtypeStruct((1000 * number,), jnp.float32)).compile()


def test_program_needs_what_its_arrays_take():
    assert 4e6 < memory.program_bytes(compiled(1)) < 20e6
    assert 3.5 < memory.program_bytes(compiled(2)) / memory.program_bytes(compiled(1)) < 4.5


def test_free_memory_is_that_of_the_machine_shared_by_its_devices():
    assert 1e8 < memory.available_bytes() * jax.local_device_count() < 1e14


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
    system = build(config)
    assert memory.estimator_chunk(system.potential, 21) == memory.CPU_CHUNK
    assert memory.replica_batch(system.md_form, system.potential, 21, most=64) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert memory.estimator_chunk(system.potential, 21) == memory.MOST_CHUNK
    assert memory.replica_batch(system.md_form, system.potential, 21, most=64) == 64
    monkeypatch.setattr(memory, "available_bytes", lambda: 2_000_000)
    few = memory.estimator_chunk(system.potential, 21)
    assert 1 <= few < memory.MOST_CHUNK
    assert 1 <= memory.replica_batch(system.md_form, system.potential, 21, most=64) < 64
    monkeypatch.setattr(memory, "available_bytes", lambda: 4_000_000)
    assert memory.estimator_chunk(system.potential, 21) > few
    assert systems._replica_batch(config, system.md_form, system.potential, 21) is None


def test_experiment_that_does_not_fit_ends_in_one_sentence(tmp_path, monkeypatch):
    config = tiny.get_config()
    config.run_dir = str(tmp_path)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    message = "pretraining needs 0.00 GB on each of 2 devices"
    with pytest.raises(ValueError, match=re.escape(message) + ".*lower config.pretrain.batch_size"):
        pipeline.run(config, build)


def test_memory_of_simulation_grows_with_frames_not_with_steps():
    config = tiny.get_config()
    system = build(config)
    prepared = jax.eval_shape(system.md_form.prepare, jax.eval_shape(system.potential.init, jax.random.key(0)))
    position = jax.ShapeDtypeStruct((21, 3), jnp.float32)
    replica = jax.eval_shape(
        lambda *given: dynamics.init_replica(system.integrator, *given), jax.random.key(0), prepared, position
    )

    def needed(num_frames, steps_per_frame):
        def run(prepared, replica):
            return dynamics.sample(
                system.integrator,
                system.train_criterion,
                prepared,
                replica,
                num_frames=num_frames,
                steps_per_frame=steps_per_frame,
            )

        return memory.program_bytes(jax.jit(run).lower(prepared, replica).compile())

    few = needed(10, 10)
    assert needed(10, 1000) == few
    frame = 2 * 21 * 3 * 4 + 1
    assert needed(1010, 10) - few == pytest.approx(1000 * frame, rel=0.1)


def test_buffers_of_replicas_are_given_up_to_the_next_chunk():
    config = tiny.get_config()
    system = build(config)
    params = system.potential.init(jax.random.key(0))
    looks = evaluation.build_evaluation(config, system)
    prepared = looks.prepare(params)
    replicas = looks.start(prepared)
    looks.look(prepared, replicas)
    assert replicas.md.position.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(prepared))
