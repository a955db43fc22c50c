"""What is kept on disk: pytrees and JSON, whole or not at all, and damage is found."""

from __future__ import annotations

import errno
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import checkpoints, disk


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


def test_arrays_of_numpy_stay_in_double_precision(tmp_path):
    tree = {"sum": np.array(1 / 3), "count": np.array(2**40)}
    checkpoints.save(tmp_path / "sums.npz", tree, {"course": [1.5, None]})
    loaded, about = checkpoints.load_with_about(tmp_path / "sums.npz", jax.tree.map(np.zeros_like, tree))
    assert (loaded["sum"].item(), loaded["count"].item()) == (1 / 3, 2**40)
    assert about == checkpoints.about(tmp_path / "sums.npz") == {"course": [1.5, None]}


def test_no_flipped_bit_and_no_cut_gives_other_numbers(tmp_path):
    """Of every byte of the file one bit, and the file cut at every length: the same as was written, or refused."""
    path, tree = tmp_path / "state.npz", {"x": np.arange(3.0), "n": np.int32(4)}
    checkpoints.save(path, tree, {"made_from": 1})
    whole, num_refused = path.read_bytes(), 0
    flipped = [whole[:i] + bytes([byte ^ 1 << i % 8]) + whole[i + 1 :] for i, byte in enumerate(whole)]
    for damaged in flipped + [whole[:length] for length in range(len(whole))]:
        path.write_bytes(damaged)
        try:
            loaded, about = checkpoints.load_with_about(path, tree)
        except ValueError:  # Damaged, or another kind of checkpoint where a name is hit
            num_refused += 1
            continue
        assert loaded["x"].tobytes() == tree["x"].tobytes() and loaded["n"] == 4 and about in ({"made_from": 1}, {})
    assert num_refused > 0.9 * len(whole)


def test_a_file_is_whole_after_an_interrupted_write(tmp_path, monkeypatch):
    path, text = tmp_path / "state.npz", tmp_path / "course.json"
    checkpoints.save(path, state())
    disk.write_text(text, "[1]")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(path, state()._replace(step=jnp.int32(5)))
    with pytest.raises(KeyboardInterrupt):
        disk.write_text(text, "[1, 2]")
    assert int(checkpoints.load(path, state()).step) == 4
    assert text.read_text() == "[1]"


def test_json_has_no_numbers_that_are_not_finite():
    nested = {"rows": [{"value": float("inf")}, {"value": 1.5, "count": 2}], "pair": (float("nan"), None, True)}
    assert disk.to_json(nested) == '{"rows": [{"value": null}, {"value": 1.5, "count": 2}], "pair": [null, null, true]}'


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "there is no space left for it: make room"),
        (errno.EROFS, "it may not be written there"),
        (errno.EIO, "Input/output error: mend that"),
    ],
)
def test_what_is_wrong_with_the_disk_is_one_sentence_and_nothing_is_left(number, reason, tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    checkpoints.save(path, state())

    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(ValueError, match=rf"state.npz cannot be written, {reason}.* give the same command again"):
        checkpoints.save(path, state()._replace(step=jnp.int32(5)))
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]
    assert int(checkpoints.load(path, state()).step) == 4


def test_a_link_in_place_of_a_new_file_is_not_followed(tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("kept")
    (tmp_path / "course.json.partial").symlink_to(other)
    disk.write_text(tmp_path / "course.json", "[1]")
    assert (other.read_text(), (tmp_path / "course.json").read_text()) == ("kept", "[1]")
    assert not (tmp_path / "course.json").is_symlink()


def test_damaged_json_is_named(tmp_path):
    for content in (b'{"a": ', b"", b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config.json is damaged, expected JSON, got: .*; remove it\."):
            disk.read_json(tmp_path / "config.json", use="remove it")
