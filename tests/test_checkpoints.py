"""What is kept on disk: pytrees and JSON, whole or not at all."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import checkpoints


class State(NamedTuple):
    md: dict[str, Any]
    step: jax.Array


def state():
    return State({"x": jnp.arange(3.0), "key": jax.random.key(1)}, jnp.int32(4))


def test_checkpoints_keep_keys_and_refuse_others(tmp_path):
    tree, path = state(), tmp_path / "state.npz"
    checkpoints.save(path, tree)
    loaded = checkpoints.load(path, jax.eval_shape(state))
    np.testing.assert_array_equal(jax.random.normal(loaded.md["key"]), jax.random.normal(tree.md["key"]))
    np.testing.assert_array_equal(loaded.md["x"], tree.md["x"])
    assert (int(loaded.step), loaded.step.dtype) == (4, jnp.int32)
    with pytest.raises(ValueError, match="holds another kind of checkpoint"):
        checkpoints.load(path, {"x": jnp.arange(3.0)})
    with pytest.raises(ValueError, match=r"`md/x` has shape \(3,\), expected \(4,\)"):
        checkpoints.load(path, tree._replace(md=tree.md | {"x": jnp.arange(4.0)}))
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


def test_a_file_is_whole_after_an_interrupted_write(tmp_path, monkeypatch):
    path, text = tmp_path / "state.npz", tmp_path / "course.json"
    checkpoints.save(path, state())
    checkpoints.write_text(text, "[1]")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(path, state()._replace(step=jnp.int32(5)))
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_text(text, "[1, 2]")
    assert int(checkpoints.load(path, state()).step) == 4
    assert text.read_text() == "[1]"


def test_json_has_no_numbers_that_are_not_finite():
    nested = {"rows": [{"value": float("inf")}, {"value": 1.5, "count": 2}], "pair": (float("nan"), None, True)}
    assert (
        checkpoints.to_json(nested)
        == '{"rows": [{"value": null}, {"value": 1.5, "count": 2}], "pair": [null, null, true]}'
    )
