"""The potential of one system: energies, forces, and the forms of it that molecular dynamics runs.

Everything that determines an energy (model, species, space, scale) is specified once, in `bind` or in the function a
potential is made from; its fast form and the one over neighbor lists are derived from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from stablejax.models import protocol, tabulated
from stablejax.models.protocol import Model, RadialFilters
from stablejax.neighbors import NeighborList, NeighborLists, neighbor_lists
from stablejax.space import OPEN, Pairs, Space, all_pairs
from stablejax.types import Array, EnergyFn, Float, Int, Key, Params, Position, Shaped


class Bound(NamedTuple):
    """A model and what it was bound to: from these, other systems of the same elements get the same potential."""

    model: Model
    species: Int[Array, " atom"]  # atomic numbers
    scale: Float[np.ndarray, "..."]  # eV per unit of the model's output, for all atoms or for each


@dataclass(frozen=True, kw_only=True)
class Potential:
    """Potential energy U_θ of a system, eV, as a function of parameters and one frame; made by `bind` or `from_energy`.

    `energy`, `atom_energies`, `forces` and `energy_and_forces` take parameters. For fixed parameters, as
    in dynamics, `prepare` computes once what depends on them alone, and `prepared_energy` the rest at every step.
    """

    num_atoms: int
    init: Callable[[Key], Params]
    prepare: Callable[[Params], Any]  # once per set of parameters
    evaluate: Callable[[Any, Position, Pairs | None], Array]  # prepared -> [atom], or the total, eV; None: all pairs
    has_atom_energies: bool = True
    takes_pairs: bool = True
    space: Space = OPEN
    cutoff: float | None = None  # Å; None: not known
    offset: float = 0.0  # eV, in double precision: what labels are relative to; `energy` does not include it
    bound: Bound | None = None  # None: not of a model, or of other parameters than a model's
    lists: NeighborLists | None = None  # of the pairs that are evaluated; None: all
    skin: float | None = None  # of the lists, Å
    tabulated: Callable[[int], tuple[Callable, Callable]] | None = None  # intervals -> (prepare, evaluate)

    def energy(self, params: Params, position: Float[Array, "..."], pairs: Pairs | None = None) -> Float[Array, ""]:
        """Potential energy, eV, relative to `offset`. Differentiable in parameters and position.

        Args:
          params: θ.
          position: of one frame, [atom, 3] Å.
          pairs: those that may be within the cutoff, padded or not. None: the potential finds them.

        Raises:
          ValueError: positions of the wrong shape.
        """
        return jnp.sum(_of_frame(self, params, position, pairs))

    def atom_energies(
        self, params: Params, position: Float[Array, "..."], pairs: Pairs | None = None
    ) -> Float[Array, " atom"]:
        """Energy of each atom, eV: they sum to `energy`.

        Args:
          params: θ.
          position: of one frame, [atom, 3] Å.
          pairs: see `energy`.

        Raises:
          ValueError: positions of the wrong shape; the potential was made from a total energy.
        """
        _check_has_atom_energies(self)
        return _of_frame(self, params, position, pairs)

    def energy_and_forces(
        self, params: Params, position: Float[Array, "..."]
    ) -> tuple[Float[Array, ""], Float[Array, "atom 3"]]:
        """Energy, eV, and forces −∂U/∂position, eV/Å.

        Args:
          params: θ.
          position: of one frame, [atom, 3] Å.
        """
        return energy_and_forces(self.energy)(params, position)

    def forces(self, params: Params, position: Float[Array, "..."]) -> Float[Array, "atom 3"]:
        """−∂U/∂position, eV/Å.

        Args:
          params: θ.
          position: of one frame, [atom, 3] Å.
        """
        return self.energy_and_forces(params, position)[1]

    def prepared_energy(
        self, prepared: Any, position: Float[Array, "..."], listed: NeighborList | None = None
    ) -> Float[Array, ""]:
        """Potential energy, eV, as molecular dynamics evaluates it. Differentiable.

        NaN where the list has overflowed or an atom has moved further than it covers.

        Args:
          prepared: from `prepare`.
          position: of one frame, [atom, 3] Å.
          listed: from `lists`, where the potential has any.

        Raises:
          ValueError: a list is missing, or given to a potential without lists; positions of the wrong shape.
        """
        position = _one_frame(self.num_atoms, position)
        if self.lists is None or listed is None:
            _check_unlisted(self.lists, listed)
            return jnp.sum(self.evaluate(prepared, position, None))
        is_whole = self.lists.covers(listed, position) & ~listed.did_overflow
        # As a factor, so that forces are NaN too.
        return jnp.sum(self.evaluate(prepared, position, listed.pairs)) * jnp.where(is_whole, 1.0, jnp.nan)

    def fast(self, num_intervals: int = 1024) -> Potential:
        """The same potential with its radial networks read from tables, made once per set of parameters.

        The force error falls as `num_intervals`⁻³ down to float32 rounding: for SchNet of the paper's size and aspirin,
        1,024 intervals give forces within 5e-5 eV/Å of the exact ones. Without radial networks: as it is.

        Args:
          num_intervals: of each table; 0: no tables, the potential as it is.
        """
        if self.tabulated is None or not num_intervals:
            return self
        prepare, evaluate = self.tabulated(num_intervals)
        return replace(self, prepare=prepare, evaluate=evaluate, tabulated=None)

    def with_lists(self, *, skin: float, num_pairs: int) -> Potential:
        """The same potential over the pairs of neighbor lists, which pays where most pairs are beyond the cutoff.

        Args:
          skin: Å; see `neighbors.neighbor_lists`.
          num_pairs: capacity; see `neighbors.most_pairs`.

        Raises:
          ValueError: the cutoff is not known, or the potential takes no pairs; the cell is too small for cutoff + skin.
        """
        cutoff = _cutoff_of_pairs(self)
        lists = neighbor_lists(self.num_atoms, cutoff=cutoff, skin=skin, num_pairs=num_pairs, space=self.space)
        return replace(self, lists=lists, skin=skin)


def bind(
    model: nn.Module,
    species: Shaped[Array, "..."] | Sequence[int],
    *,
    space: Space = OPEN,
    scale: float | Float[np.ndarray, " atom"] = 1.0,
    offset: float = 0.0,
) -> Potential:
    """A model for one system.

    >>> import jax, numpy as np
    >>> from stablejax import SchNet, periodic
    >>> model, species = SchNet(num_blocks=1, cutoff=4.5), np.tile([8, 1, 1], 27)
    >>> potential = bind(model, species, space=periodic(10.0 * np.eye(3)))
    >>> listed = potential.with_lists(skin=0.5, num_pairs=2500)
    >>> params, position = potential.init(jax.random.key(0)), 10 * jax.random.uniform(jax.random.key(1), (81, 3))
    >>> bool(abs(listed.energy(params, position) - potential.energy(params, position)) < 1e-3)
    True

    Args:
      model: see `models.protocol.Model`; with radial filters (`models.protocol.RadialFilters`) it has a `fast` form.
      species: atomic numbers.
      space: open boundaries, or a cell that reaches as far as the cutoff.
      scale: eV per unit of the model's output, for all atoms or for each.
      offset: eV that was subtracted from the labels, kept in double precision beside the potential: float32 does not
        resolve energies of thousands of eV.

    Raises:
      ValueError: the model lacks a member; species are not one-dimensional integers, or not supported by the model; the
        cell is too small for the cutoff.
    """
    known = protocol.check_model(model)
    of_atom = protocol.check_species(known, species)
    space.check_reach("bind", known.cutoff)
    every_pair, factor = all_pairs(len(of_atom)), np.asarray(scale)

    def init(key: Key) -> Params:
        return known.init(key, of_atom, every_pair, jnp.ones((len(every_pair.first), 3)))

    def on_frames(atom_energies_fn):
        def evaluate(prepared, position, pairs):
            pairs = every_pair if pairs is None else pairs
            energies = atom_energies_fn(prepared, pairs, space.vectors(position, pairs))
            return energies * factor.astype(energies.dtype)

        return evaluate

    def from_tables(num_intervals: int):
        assert isinstance(known, RadialFilters)
        prepare, atom_energies_fn = tabulated.tabulated(known, of_atom, num_intervals=num_intervals)
        return prepare, on_frames(atom_energies_fn)

    return Potential(
        num_atoms=len(of_atom),
        init=init,
        prepare=lambda params: params,
        evaluate=on_frames(lambda params, pairs, vector: known.apply(params, of_atom, pairs, vector)),
        space=space,
        cutoff=known.cutoff,
        offset=float(offset),
        bound=Bound(known, of_atom, factor),
        tabulated=from_tables if isinstance(known, RadialFilters) else None,
    )


def energy_and_forces(
    energy_fn: EnergyFn,
) -> Callable[[Params, Position], tuple[Float[Array, ""], Float[Array, "atom 3"]]]:
    """`(params, position) -> (energy, forces)`, eV and eV/Å, forces = −∂U/∂position, of any energy function."""

    def energy_and_forces_fn(params, position):
        energy, gradient = jax.value_and_grad(energy_fn, argnums=1)(params, position)
        return energy, -gradient

    return energy_and_forces_fn


def _of_frame(potential: Potential, params: Params, position: Float[Array, "..."], pairs: Pairs | None):
    """Energy or energies of a single frame, for which any list is built from scratch."""
    position = _one_frame(potential.num_atoms, position)
    if pairs is not None or potential.lists is None:
        return potential.evaluate(potential.prepare(params), position, pairs)
    listed = potential.lists.init(lax.stop_gradient(position))
    energies = potential.evaluate(potential.prepare(params), position, listed.pairs)
    return energies * jnp.where(listed.did_overflow, jnp.nan, 1.0).astype(energies.dtype)


def _one_frame(num_atoms: int, position: Float[Array, "..."]) -> Position:
    if jnp.shape(position) != (num_atoms, 3):
        raise ValueError(
            f"`Potential`: expected positions of one frame, ({num_atoms}, 3), got {jnp.shape(position)}: pass "
            "one frame of this system, and map over several with `jax.vmap`."
        )
    return position


def _check_has_atom_energies(potential: Potential) -> None:
    if not potential.has_atom_energies:
        raise ValueError(
            "`Potential.atom_energies`: expected a potential with energies of atoms, got one made from a total "
            "energy: use `from_atom_energies`, or the global estimator, which needs the total only."
        )


def _cutoff_of_pairs(potential: Potential) -> float:
    if potential.cutoff is None or not potential.takes_pairs:
        raise ValueError(
            "`Potential.with_lists`: expected a potential of pairs with a cutoff, got one without: make it by "
            "`from_atom_energies`."
        )
    return potential.cutoff


def _check_unlisted(lists: NeighborLists | None, listed: NeighborList | None) -> None:
    """No lists, and none given."""
    if lists is not None:
        raise ValueError(
            "`Potential.prepared_energy`: expected a neighbor list, got NoneType: pass "
            "`potential.lists.init(position)`."
        )
    if listed is not None:
        raise ValueError(
            f"`Potential.prepared_energy`: expected no neighbor list, got {type(listed).__name__}: leave it out, or "
            "use `with_lists`."
        )
