"""The potential of one system: energies, forces, and the forms of it that molecular dynamics runs.

Everything that decides an energy (model, species, space, scale) is said once, in `bind` or in the function a potential
is made from; its fast form and the one over neighbor lists are derived from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from stablejax import tabulate
from stablejax.neighbors import NeighborList, NeighborLists, neighbor_lists
from stablejax.space import OPEN, Pairs, Space, all_pairs, safe_norm
from stablejax.types import Array, EnergyFn, Float, Int, Key, Params, Position, Species


@dataclass(frozen=True, kw_only=True)
class Potential:
    """Potential energy U_θ of a system, eV, as a function of parameters and one frame; made by `bind` or `from_energy`.

    `energy`, `atom_energies`, `forces` and `energy_and_forces` take parameters. Where parameters stay and positions
    move, `prepare` does once what depends on parameters alone, and `prepared_energy` the rest at every step.
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
    lists: NeighborLists | None = None  # of the pairs that are evaluated; None: all
    skin: float | None = None  # of the lists, Å
    tabulated: Callable[[int], tuple[Callable, Callable]] | None = None  # intervals -> (prepare, evaluate)

    def energy(self, params: Params, position: Position, pairs: Pairs | None = None) -> Float[Array, ""]:
        """Potential energy, eV, relative to `offset`. Differentiable in parameters and position.

        Args:
          params: θ.
          position: Å.
          pairs: those that may be within the cutoff, padded or not. None: the potential finds them.

        Raises:
          ValueError: positions of another shape.
        """
        return jnp.sum(self._of_frame(params, position, pairs))

    def atom_energies(self, params: Params, position: Position, pairs: Pairs | None = None) -> Float[Array, " atom"]:
        """Energy of each atom, eV: they sum to `energy`.

        Args:
          params: θ.
          position: Å.
          pairs: see `energy`.

        Raises:
          ValueError: positions of another shape; the potential was made from a total energy.
        """
        if not self.has_atom_energies:
            raise ValueError(
                "`Potential.atom_energies`: expected a potential with energies of atoms, got one made from a total "
                "energy: use `from_atom_energies`, or the global estimator, which needs the total only."
            )
        return self._of_frame(params, position, pairs)

    def energy_and_forces(self, params: Params, position: Position) -> tuple[Float[Array, ""], Float[Array, "atom 3"]]:
        """Energy, eV, and forces −∂U/∂position, eV/Å.

        Args:
          params: θ.
          position: Å.
        """
        return energy_and_forces(self.energy)(params, position)

    def forces(self, params: Params, position: Position) -> Float[Array, "atom 3"]:
        """−∂U/∂position, eV/Å.

        Args:
          params: θ.
          position: Å.
        """
        return self.energy_and_forces(params, position)[1]

    def prepared_energy(
        self, prepared: Any, position: Position, listed: NeighborList | None = None
    ) -> Float[Array, ""]:
        """Potential energy, eV, as molecular dynamics evaluates it. Differentiable.

        Not a number where the list has overflowed or an atom has moved further than it covers.

        Args:
          prepared: what `prepare` gave for the parameters.
          position: Å.
          listed: from `lists`, where the potential has any.

        Raises:
          ValueError: a list is missing, or given to a potential without lists; positions of another shape.
        """
        if (self.lists is None) != (listed is None):
            expected, advice = (
                ("no neighbor list", "leave it out, or use `with_lists`")
                if self.lists is None
                else ("a neighbor list", "pass `potential.lists.init(position)`")
            )
            raise ValueError(
                f"`Potential.prepared_energy`: expected {expected}, got {type(listed).__name__}: {advice}."
            )
        if listed is None or self.lists is None:
            return jnp.sum(self._checked(prepared, position, None))
        is_whole = self.lists.covers(listed, position) & ~listed.did_overflow
        # As a factor, so that forces are not a number either.
        return jnp.sum(self._checked(prepared, position, listed.pairs)) * jnp.where(is_whole, 1.0, jnp.nan)

    def fast(self, num_intervals: int = 1024) -> Potential:
        """The same potential with its radial networks read from tables, made once per set of parameters.

        The force error falls as `num_intervals`⁻³ down to float32 rounding: for SchNet of the paper's size and aspirin,
        1,024 intervals give forces within 5e-5 eV/Å of the exact ones. A potential without radial networks is
        returned as it is.

        Args:
          num_intervals: pieces of each table; 0: no tables, the potential as it is.
        """
        if self.tabulated is None or not num_intervals:
            return self
        prepare, evaluate = self.tabulated(num_intervals)
        return replace(self, prepare=prepare, evaluate=evaluate, tabulated=None)

    def with_lists(self, *, skin: float, num_pairs: int) -> Potential:
        """The same potential over the pairs of neighbor lists, which pays where most pairs are beyond the cutoff.

        >>> import jax, numpy as np
        >>> from stablejax import SchNet, bind, periodic
        >>> model, species = SchNet(num_blocks=1, cutoff=4.5), np.tile([8, 1, 1], 27)
        >>> potential = bind(model, species, space=periodic(10.0 * np.eye(3)))
        >>> listed = potential.with_lists(skin=0.5, num_pairs=2500)
        >>> params, position = potential.init(jax.random.key(0)), 10 * jax.random.uniform(jax.random.key(1), (81, 3))
        >>> bool(abs(listed.energy(params, position) - potential.energy(params, position)) < 1e-3)
        True

        Args:
          skin: Å; see `neighbors.neighbor_lists`.
          num_pairs: capacity; see `neighbors.most_pairs`.

        Raises:
          ValueError: the cutoff is not known, or the potential takes no pairs; the cell is too small for cutoff + skin.
        """
        if self.cutoff is None or not self.takes_pairs:
            raise ValueError(
                "`Potential.with_lists`: expected a potential of pairs with a cutoff, got one without: make it by "
                "`from_atom_energies`."
            )
        lists = neighbor_lists(self.num_atoms, cutoff=self.cutoff, skin=skin, num_pairs=num_pairs, space=self.space)
        return replace(self, lists=lists, skin=skin)

    def with_longer_lists(self, factor: float = 2.0) -> Potential:
        """The same with more capacity in its lists, all pairs at the most.

        Args:
          factor: on the capacity.

        Raises:
          ValueError: there are no lists.
        """
        if self.lists is None or self.skin is None:
            raise ValueError("`Potential.with_longer_lists`: expected a potential with lists: use `with_lists` first.")
        most = self.num_atoms * (self.num_atoms - 1) // 2
        return self.with_lists(skin=self.skin, num_pairs=min(int(factor * self.lists.num_pairs), most))

    def trainable(self, params: Params, is_trainable: Callable[[str], bool]) -> tuple[Potential, Params]:
        """The potential as a function of some of its parameters; the others keep their values.

        Args:
          params: all parameters.
          is_trainable: of the path of a leaf, as `params/readout_out/kernel`.

        Returns:
          The potential and its parameters: those given, with None for each leaf that is held fixed.

        Raises:
          ValueError: no leaf is trainable.
        """
        paths, structure = jax.tree_util.tree_flatten_with_path(params)
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
        leaves = [leaf if is_trainable(name) else None for name, (_, leaf) in zip(names, paths, strict=True)]
        if all(leaf is None for leaf in leaves):
            raise ValueError(
                f"`Potential.trainable`: expected at least one trainable leaf, got none of {', '.join(names[:4])}, …: "
                "check `is_trainable`."
            )
        subset = jax.tree.unflatten(structure, leaves)

        def merged(chosen):
            return jax.tree.map(lambda c, p: p if c is None else c, chosen, params, is_leaf=lambda x: x is None)

        def tabulated(num_intervals):
            prepare, evaluate = self.tabulated(num_intervals)
            return lambda chosen: prepare(merged(chosen)), evaluate

        part = replace(
            self,
            init=lambda _: subset,
            prepare=lambda chosen: self.prepare(merged(chosen)),
            tabulated=None if self.tabulated is None else tabulated,
        )
        return part, subset

    def _of_frame(self, params, position, pairs):
        """Of a frame that comes alone, for which any list is made anew."""
        if pairs is not None or self.lists is None:
            return self._checked(self.prepare(params), position, pairs)
        listed = self.lists.init(lax.stop_gradient(self._shaped(position)))
        energies = self._checked(self.prepare(params), position, listed.pairs)
        return energies * jnp.where(listed.did_overflow, jnp.nan, 1.0).astype(energies.dtype)

    def _checked(self, prepared, position, pairs):
        return self.evaluate(prepared, self._shaped(position), pairs)

    def _shaped(self, position):
        if jnp.shape(position) != (self.num_atoms, 3):
            raise ValueError(
                f"`Potential`: expected positions of one frame, ({self.num_atoms}, 3), got {jnp.shape(position)}: pass "
                "the frames of this system, and several of them by `jax.vmap`."
            )
        return position


def bind(
    model: nn.Module,
    species: Species,
    *,
    space: Space = OPEN,
    scale: float | Float[np.ndarray, " atom"] = 1.0,
    offset: float = 0.0,
) -> Potential:
    """A model for one system.

    Args:
      model: see `models.protocol.Model`; with radial filters (`models.protocol.RadialFilters`) it has a `fast` form.
      species: atomic numbers.
      space: open boundaries, or a cell that reaches as far as the cutoff.
      scale: eV that 1 of the model stands for, for all atoms or for each.
      offset: eV that the labels were lowered by, kept in double precision beside the potential: thousands of eV would
        not fit into float32.

    Raises:
      ValueError: species are not integers in a row, or not known to the model; the cell is too small for the cutoff.
    """
    species = _known_species(model, species)
    space.check_reach("bind", model.cutoff)
    every_pair, scale = all_pairs(len(species)), np.asarray(scale)

    def init(key: Key) -> Params:
        return model.init(key, species, every_pair, jnp.ones((len(every_pair.first), 3)))

    def evaluate(params, position, pairs):
        pairs = every_pair if pairs is None else pairs
        energies = _apply(model)(params, species, pairs, space.vectors(position, pairs))
        return energies * scale.astype(energies.dtype)

    def tabulated(num_intervals: int):
        return _tabulated(model, species, every_pair, space, scale, num_intervals)

    return Potential(
        num_atoms=len(species),
        init=init,
        prepare=lambda params: params,
        evaluate=evaluate,
        space=space,
        cutoff=model.cutoff,
        offset=float(offset),
        tabulated=tabulated if hasattr(model, "energies_from_filters") else None,
    )


def from_energy(
    energy_fn: EnergyFn,
    *,
    num_atoms: int,
    space: Space = OPEN,
    init: Callable[[Key], Params] | None = None,
    offset: float = 0.0,
) -> Potential:
    """A potential from any JAX function of parameters and positions. The global estimator needs no more.

    >>> import jax, jax.numpy as jnp
    >>> well = from_energy(lambda k, x: 0.5 * k * jnp.sum(x**2), num_atoms=1)
    >>> print(well.forces(2.0, jnp.array([[1.0, 0.0, 0.5]])))
    [[-2. -0. -1.]]

    Args:
      energy_fn: `(params, position) -> eV`, with the boundaries of `space`.
      num_atoms: of the system.
      space: what the function takes for its boundaries; thermostats count the degrees of freedom by it.
      init: `key -> params`. None: parameters come from elsewhere.
      offset: see `bind`.
    """
    return Potential(
        num_atoms=num_atoms,
        init=init or _no_init,
        prepare=lambda params: params,
        evaluate=lambda params, position, _: energy_fn(params, position),
        has_atom_energies=False,
        takes_pairs=False,
        space=space,
        offset=float(offset),
    )


def from_atom_energies(
    atom_energies_fn: Callable[[Params, Position, Pairs], Float[Array, " atom"]],
    *,
    num_atoms: int,
    cutoff: float,
    space: Space = OPEN,
    init: Callable[[Key], Params] | None = None,
    offset: float = 0.0,
) -> Potential:
    """A potential from any JAX function that gives energies of atoms, as the localized estimator needs.

    Args:
      atom_energies_fn: `(params, position, pairs) -> [atom]`, eV. It takes distances by `space`, and gives nothing for
        pairs beyond the cutoff or in padding.
      num_atoms: of the system.
      cutoff: Å.
      space: in which the function takes distances.
      init: `key -> params`. None: parameters come from elsewhere.
      offset: see `bind`.

    Raises:
      ValueError: the cell is too small for the cutoff.
    """
    space.check_reach("from_atom_energies", cutoff)
    every_pair = all_pairs(num_atoms)

    def evaluate(params, position, pairs):
        return atom_energies_fn(params, position, every_pair if pairs is None else pairs)

    return Potential(
        num_atoms=num_atoms,
        init=init or _no_init,
        prepare=lambda params: params,
        evaluate=evaluate,
        space=space,
        cutoff=float(cutoff),
        offset=float(offset),
    )


def energy_and_forces(
    energy_fn: EnergyFn,
) -> Callable[[Params, Position], tuple[Float[Array, ""], Float[Array, "atom 3"]]]:
    """`(params, position) -> (energy, forces)`, eV and eV/Å, forces = −∂U/∂position, of any energy function."""

    def energy_and_forces_fn(params, position):
        energy, gradient = jax.value_and_grad(energy_fn, argnums=1)(params, position)
        return energy, -gradient

    return energy_and_forces_fn


def _tabulated(model, species, every_pair: Pairs, space: Space, scale, num_intervals: int):
    """`prepare` and `evaluate` with the radial filters of all blocks in one table."""

    def filters(params: Params, distance) -> Any:
        return _apply(model)(params, distance, method="filters")

    def prepare(params: Params):
        of_all = lambda distance: jnp.concatenate(filters(params, distance), axis=1)  # noqa: E731
        return params, tabulate.radial_table(of_all, cutoff=model.cutoff, num_intervals=num_intervals)

    def evaluate(prepared, position, pairs):
        params, table = prepared
        pairs = every_pair if pairs is None else pairs
        vector = space.vectors(position, pairs)
        values = tabulate.evaluate(table, safe_norm(vector))
        sizes = [one.shape[1] for one in jax.eval_shape(filters, params, vector[:, 0])]
        split = jnp.split(values, np.cumsum(sizes)[:-1], axis=1)
        energies = _apply(model)(params, species, pairs, vector, split, method="energies_from_filters")
        return energies * scale.astype(energies.dtype)

    return prepare, evaluate


def _apply(model: nn.Module) -> Callable[..., Array]:
    # Without mutable collections `apply` gives what the method gives.
    return cast(Callable[..., Array], model.apply)


def _no_init(_: Key) -> Params:
    raise ValueError(
        "`Potential.init`: expected `init` where the potential was made, got none: pass parameters instead."
    )


def _known_species(model, species: Species) -> Int[Array, " atom"]:
    is_traced = isinstance(species, jax.core.Tracer)
    species = species if is_traced else np.asarray(species)
    if species.ndim != 1 or not jnp.issubdtype(species.dtype, jnp.integer):
        raise ValueError(
            f"`species` must be one-dimensional integers, got shape {species.shape} of {species.dtype}: "
            "pass the atomic number of each atom."
        )
    if not is_traced and (unknown := set(species.tolist()) - set(model.elements)):
        raise ValueError(
            f"`species` has atomic number {min(unknown)}, which the model does not know: it knows {model.elements}."
        )
    return species.astype(np.int32)
