"""NequIP (Batzner et al., Nat. Commun. 13, 2453, 2022): E(3)-equivariant convolutions with a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from stablejax.models import basis, edges
from stablejax.models.protocol import ModelData
from stablejax.models.tensor_product import SCALAR, Features, Irrep, Path, coupled, product
from stablejax.space import Pairs, safe_norm
from stablejax.types import Array, Float, Params, Species

# 1/√E[f(z)²] over a standard normal z, as in e3nn.
_SILU_SCALE, _TANH_SCALE = 1.6791767923989418, 1.5937334472592695


class Layer(NamedTuple):
    """Representations that enter a layer, paths of its tensor product, and representations that leave it."""

    sources: tuple[Irrep, ...]
    paths: tuple[Path, ...]
    targets: tuple[Irrep, ...]

    @property
    def gated(self) -> tuple[Irrep, ...]:
        return tuple(irrep for irrep in self.targets if irrep.degree > 0)

    def num_paths(self, target: Irrep) -> int:
        return sum(path.target == target for path in self.paths)

    def num_out(self, target: Irrep, num_features: int) -> int:
        """Channels before the gate: the scalars include those of the gates.

        Args:
          target: irreducible representation.
          num_features: of each.
        """
        return num_features * (1 + len(self.gated) if target == SCALAR else 1)


@cache
def layers(num_layers: int, max_degree: int, *, has_parity: bool) -> tuple[Layer, ...]:
    """Layers of a network that starts from scalars, with all paths between features of degree up to `max_degree`.

    Args:
      num_layers: convolutions.
      max_degree: l_max.
      has_parity: whether features of both parities occur.
    """
    harmonics_parity = -1 if has_parity else 1
    made: list[Layer] = []
    sources: tuple[Irrep, ...] = (SCALAR,)
    for _ in range(num_layers):
        paths = tuple(
            Path(source, degree, Irrep(target, source.parity * harmonics_parity**degree))
            for source in sources
            for degree in range(max_degree + 1)
            for target in range(abs(source.degree - degree), min(source.degree + degree, max_degree) + 1)
        )
        targets = tuple(sorted({path.target for path in paths}, key=lambda irrep: (irrep.degree, -irrep.parity)))
        made.append(Layer(sources, paths, targets))
        sources = targets
    return tuple(made)


class Linear(nn.Module):
    """x W / √n with W of order 1, as in e3nn, so that learning rates carry over."""

    size: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch size"]:
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], self.size))
        return x @ kernel / x.shape[-1] ** 0.5


class Convolution(nn.Module):
    """One layer: messages through the tensor product, self-connection, gate."""

    layer: Layer
    num_features: int
    radial_widths: tuple[int, ...]
    num_neighbors: float

    def setup(self):
        layer, size = self.layer, self.num_features
        self.radial = [Linear(width) for width in (*self.radial_widths, size * len(layer.paths))]
        self.linear_in = {str(irrep): Linear(size) for irrep in layer.sources}
        self.linear_out = {str(irrep): Linear(layer.num_out(irrep, size)) for irrep in layer.targets}
        self.self_connection = {
            str(irrep): Linear(layer.num_out(irrep, size)) for irrep in layer.targets if irrep in layer.sources
        }

    def filters(self, radial: Float[Array, "pair basis"]) -> Float[Array, "pair filter"]:
        for inner in self.radial[:-1]:
            radial = _SILU_SCALE * jax.nn.silu(inner(radial))
        return self.radial[-1](radial)

    def __call__(self, features: Features, is_element, pairs: Pairs, harmonics, filters) -> Features:
        sent = {irrep: self.linear_in[str(irrep)](x) for irrep, x in features.items()}
        messages = self._messages(sent, pairs, harmonics, filters)
        gathered = {irrep: self.linear_out[str(irrep)](x / self.num_neighbors**0.5) for irrep, x in messages.items()}
        for irrep in [irrep for irrep in gathered if irrep in features]:
            x = features[irrep]
            # Features times one-hot elements, so that every element has weights of its own.
            by_element = (x[..., None] * is_element[:, None, None, :]).reshape(*x.shape[:-1], -1)
            gathered[irrep] = gathered[irrep] + self.self_connection[str(irrep)](by_element)
        return self._gate(gathered)

    def _messages(self, sent: Features, pairs: Pairs, harmonics, filters) -> Features:
        """Sum over neighbors of each atom, [atom, 2l + 1, path*channel] with the paths to each target in order."""
        num_atoms = len(sent[SCALAR])
        parts: dict[Irrep, list] = {irrep: [] for irrep in self.layer.targets}
        weights = jnp.split(filters[:, None, :], len(self.layer.paths), axis=-1)
        for path, weight in zip(self.layer.paths, weights, strict=True):
            x = sent[path.source]
            coupling = coupled(path, harmonics[path.degree])
            received = weight * product(coupling, x[pairs.second])
            # For the other atom the vector is reversed.
            returned = (-1) ** path.degree * weight * product(coupling, x[pairs.first])
            zero = jnp.zeros((num_atoms, *received.shape[1:]), received.dtype)
            parts[path.target].append(zero.at[pairs.first].add(received).at[pairs.second].add(returned))
        return {irrep: jnp.concatenate(some, axis=-1) for irrep, some in parts.items()}

    def _gate(self, x: Features) -> Features:
        scalars, *gates = jnp.split(x[SCALAR], 1 + len(self.layer.gated), axis=-1)
        gated: Features = {SCALAR: _SILU_SCALE * jax.nn.silu(scalars)}
        for irrep, gate in zip(self.layer.gated, gates, strict=True):
            gated[irrep] = x[irrep] * (_SILU_SCALE * jax.nn.silu(gate))
        for irrep in self.layer.targets:
            if irrep not in gated:
                gated[irrep] = _TANH_SCALE * jnp.tanh(x[irrep])
        return gated


class NequIP(nn.Module):
    """NequIP with one energy per atom; defaults are the paper's for Ac-Ala3-NHMe (Table 1, 120,984 parameters).

    The radial filters depend only on a distance and are the same for both directions of a pair, so `filters` and
    `energies_from_filters` are separate: molecular dynamics may replace the first by a table.
    """

    elements: tuple[int, ...]  # atomic numbers that can occur
    num_features: int = 32
    num_layers: int = 3
    max_degree: int = 1  # of features and harmonics
    has_parity: bool = True  # features of both parities; without, energies may change under reflection
    num_basis: int = 8
    radial_widths: tuple[int, ...] = (64, 64)
    num_hidden: int = 16  # of the readout
    cutoff: float = 5.0  # Å
    envelope_exponent: int = 6
    num_neighbors: float = 21.352514266967773  # mean over the atoms of the data

    @property
    def layers(self) -> tuple[Layer, ...]:
        return layers(self.num_layers, self.max_degree, has_parity=self.has_parity)

    def setup(self):
        self.frequency = self.param("frequency", lambda _: jnp.pi * jnp.arange(1.0, self.num_basis + 1))
        self.embedding = Linear(self.num_features)
        self.convolutions = [
            Convolution(layer, self.num_features, self.radial_widths, self.num_neighbors) for layer in self.layers
        ]
        self.readout_in, self.readout_out = Linear(self.num_hidden), Linear(1)

    def filters(self, distance: Float[Array, " pair"]) -> list[Float[Array, "pair _"]]:
        """Path weights of each layer: 0 from the cutoff on."""
        envelope = basis.polynomial_envelope(distance, cutoff=self.cutoff, exponent=self.envelope_exponent)
        radial = basis.bessel_basis(distance, self.frequency, cutoff=self.cutoff) * envelope[:, None]
        return [convolution.filters(radial) for convolution in self.convolutions]

    def energies_from_filters(
        self,
        species: Species,
        pairs: Pairs,
        vector: Float[Array, "pair 3"],
        filters: list[Float[Array, "pair _"]],
    ) -> Float[Array, " atom"]:
        """Atom energies, eV, from vectors and the filters of each pair.

        Args:
          species: atomic numbers.
          pairs: undirected, padded or not.
          vector: of the pairs, Å.
          filters: of each layer.
        """
        is_element = (species[:, None] == jnp.asarray(self.elements)).astype(vector.dtype)
        harmonics = edges.spherical_harmonics(vector, max_degree=self.max_degree, normalization="component")
        features = {SCALAR: self.embedding(is_element)[:, None, :]}
        for convolution, weights in zip(self.convolutions, filters, strict=True):
            features = convolution(features, is_element, pairs, harmonics, weights)
        return self.readout_out(self.readout_in(features[SCALAR][:, 0]))[:, 0]

    def __call__(self, species: Species, pairs: Pairs, vector: Float[Array, "pair 3"]) -> Float[Array, " atom"]:
        """Energy of each atom, eV; see `SchNet`."""
        return self.energies_from_filters(species, pairs, vector, self.filters(safe_norm(vector)))


def from_sizes(
    data: ModelData,
    *,
    num_features: int,
    num_layers: int,
    max_degree: int,
    num_basis: int,
    radial_width: int,
    cutoff: float,
) -> NequIP:
    """NequIP for the elements of the data and their mean number of neighbors.

    Args:
      data: that it is built for.
      num_features: of each irreducible representation.
      num_layers: convolutions.
      max_degree: l_max of features and harmonics.
      num_basis: Bessel functions.
      radial_width: of the two hidden layers of radial networks.
      cutoff: Å.
    """
    return NequIP(
        elements=data.elements,
        num_features=num_features,
        num_layers=num_layers,
        max_degree=max_degree,
        num_basis=num_basis,
        radial_widths=(radial_width,) * 2,
        cutoff=cutoff,
        num_neighbors=data.mean_neighbors(cutoff),
    )


def from_torch(
    state_dict: Mapping[str, np.ndarray], *, elements: tuple[int, ...], num_neighbors: float
) -> tuple[NequIP, Params]:
    """The model and its parameters from the state dict of a PyTorch NequIP of the paper's sizes.

    Args:
      state_dict: NumPy arrays by name; linear weights flat, as in e3nn. The scale and shift of the energies
        (`scale_by`, `per_species_rescale`) are skipped: they belong to `potential.bind` and to the labels.
      elements: atomic number of each of its types.
      num_neighbors: `avg_num_neighbors` of its configuration.

    Returns:
      The module and the parameters. Energies are the raw output of the network.

    Raises:
      ValueError: a name is missing or unknown, or an array has the wrong size.
    """
    model = NequIP(tuple(elements), num_neighbors=num_neighbors)
    is_kept = lambda name: name != "scale_by" and not name.startswith("per_species_rescale.")  # noqa: E731
    remaining = {name: np.asarray(array) for name, array in state_dict.items() if is_kept(name)}

    def take(name: str, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        size = sum(int(np.prod(shape)) for shape in shapes)
        if name not in remaining or remaining[name].size != size:
            found = f"{remaining[name].size}" if name in remaining else "none"
            raise ValueError(
                f"`from_torch`: expected {size} numbers in `{name}`, got {found}: pass the whole state dict."
            )
        parts = np.split(remaining.pop(name).reshape(-1), np.cumsum([np.prod(shape) for shape in shapes])[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    num, size = len(elements), model.num_features
    (frequency,) = take("radial_basis.basis.bessel_weights", [(model.num_basis,)])
    tree: dict = {"frequency": frequency}
    for ours, theirs, shape in (
        ("embedding", "chemical_embedding", (num, size)),
        ("readout_in", "conv_to_output_hidden", (size, model.num_hidden)),
        ("readout_out", "output_hidden_to_scalar", (model.num_hidden, 1)),
    ):
        (tree[ours],) = ({"kernel": kernel} for kernel in take(f"{theirs}.linear.weight", [shape]))
    for index, layer in enumerate(model.layers):
        theirs, kernels = f"layer{index}_convnet.conv", {}
        widths = (model.num_basis, *model.radial_widths, size * len(layer.paths))
        for depth, shape in enumerate(pairwise(widths)):
            (kernels[f"radial_{depth}"],) = take(f"{theirs}.fc.layer{depth}.weight", [shape])
        # e3nn sorts odd before even where irreps are summed up.
        sorted_targets = sorted(layer.targets)
        kept = [irrep for irrep in layer.targets if irrep in layer.sources]
        for ours, name, irreps, shapes in (
            ("linear_in", "linear_1", layer.sources, [(size, size) for _ in layer.sources]),
            (
                "linear_out",
                "linear_2",
                sorted_targets,
                [(size * layer.num_paths(irrep), layer.num_out(irrep, size)) for irrep in sorted_targets],
            ),
            ("self_connection", "sc", kept, [(size * num, layer.num_out(irrep, size)) for irrep in kept]),
        ):
            for irrep, kernel in zip(irreps, take(f"{theirs}.{name}.weight", shapes), strict=True):
                kernels[f"{ours}_{irrep}"] = kernel
        tree[f"convolutions_{index}"] = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    if remaining:
        raise ValueError(f"`from_torch`: expected the names of a NequIP of the paper's sizes, got `{min(remaining)}`.")
    return model, {"params": tree}
