"""Further forms of a potential: with longer lists, and as a function of some of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from stablejax.potential import Potential
from stablejax.types import Params


def with_longer_lists(potential: Potential, factor: float = 2.0) -> Potential:
    """The potential with a larger capacity of its neighbor lists, at most all pairs.

    Args:
      potential: with lists.
      factor: on the capacity.

    Raises:
      ValueError: there are no lists.
    """
    if potential.lists is None or potential.skin is None:
        raise ValueError("`with_longer_lists`: expected a potential with lists: use `with_lists` first.")
    most = potential.num_atoms * (potential.num_atoms - 1) // 2
    return potential.with_lists(skin=potential.skin, num_pairs=min(int(factor * potential.lists.num_pairs), most))


def of_prepared(potential: Potential) -> Potential:
    """The potential as a function of what `prepare` makes of its parameters, such as tables of radial networks.

    With these as parameters, many frames are differentiated without the networks that are tabulated; one transpose of
    `potential.prepare` then gives the derivative with respect to the parameters themselves.

    Args:
      potential: as a function of its parameters.
    """
    return replace(
        potential,
        init=lambda key: potential.prepare(potential.init(key)),
        prepare=lambda prepared: prepared,
        bound=None,
        tabulated=None,
    )


def ensemble(potential: Potential) -> Potential:
    """The mean of several sets of parameters, as a potential of their stack: every leaf has the member on axis 0.

    Args:
      potential: of one set.
    """

    def mean_of(parts: tuple[Callable, Callable]) -> tuple[Callable, Callable]:
        prepare, evaluate = parts

        def mean(prepared, position, pairs):
            return jnp.mean(jax.vmap(evaluate, (0, None, None))(prepared, position, pairs), axis=0)

        return jax.vmap(prepare), mean

    def from_tables(num_intervals):
        assert potential.tabulated is not None
        return mean_of(potential.tabulated(num_intervals))

    prepare, evaluate = mean_of((potential.prepare, potential.evaluate))
    return replace(
        potential,
        init=lambda key: jax.tree.map(lambda leaf: leaf[None], potential.init(key)),
        prepare=prepare,
        evaluate=evaluate,
        bound=None,
        tabulated=None if potential.tabulated is None else from_tables,
    )


def trainable(potential: Potential, params: Params, is_trainable: Callable[[str], bool]) -> tuple[Potential, Params]:
    """The potential as a function of some of its parameters; the others keep their values.

    Args:
      potential: as a function of all.
      params: all parameters.
      is_trainable: takes the path of a leaf, such as `params/readout_out/kernel`.

    Returns:
      The potential and its parameters: those given, with None for each leaf that is held fixed.

    Raises:
      ValueError: no leaf is trainable.
    """
    leaves = by_name(params)
    chosen_names = [name for name in leaves if is_trainable(name)]
    if not chosen_names:
        raise ValueError(
            f"`trainable`: expected at least one trainable leaf, got none of {', '.join([*leaves][:4])}, …: "
            "check `is_trainable`."
        )
    kept = [leaf if name in chosen_names else None for name, leaf in leaves.items()]
    subset = jax.tree.unflatten(jax.tree.structure(params), kept)

    def from_tables(num_intervals):
        prepare, evaluate = potential.tabulated(num_intervals)
        return lambda chosen: prepare(merged(chosen, params)), evaluate

    part = replace(
        potential,
        init=lambda _: subset,
        prepare=lambda chosen: potential.prepare(merged(chosen, params)),
        bound=None,
        tabulated=None if potential.tabulated is None else from_tables,
    )
    return part, subset


def by_name(params: Params) -> dict[str, Any]:
    """Leaves by their paths, such as `params/readout_out/kernel`, in the order of the tree."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def merged(part: Params, whole: Params) -> Params:
    """A part of a tree, which is None elsewhere, with the leaves of the whole in the places of None.

    Args:
      part: of the structure of `whole`.
      whole: any tree.
    """
    return jax.tree.map(lambda one, other: other if one is None else one, part, whole, is_leaf=lambda x: x is None)
