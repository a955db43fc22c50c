"""GemNet-T (Gasteiger, Becker and Günnemann, NeurIPS 2021): directional messages between edges, in Flax.

Every undirected pair is two edges, source -> target: first -> second and, in the second half of each array, the
reverse. Triplets are never formed. The angular basis depends on the angle alone, so by the addition theorem of
spherical harmonics the sum over the other edges of an atom is a sum at the atom, less the edge's own term.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from stablejax.geometry import Pairs, safe_norm
from stablejax.models import basis
from stablejax.types import Array, Float, Params, Species

_ROOT_HALF = 0.5**0.5


class Edges(NamedTuple):
    """Directed edges, and what of them depends on the geometry alone."""

    source: Array
    target: Array
    radial: Float[Array, "edge radial"]
    harmonics: list[Float[Array, "edge m"]]  # of each degree
    is_near: Float[Array, " edge"]  # 1 within the cutoff, 0 beyond and in padding
    num_atoms: int

    def sum_at_target(self, x: Float[Array, edge * shape]) -> Float[Array, atom * shape]:
        return jax.ops.segment_sum(x, self.target, num_segments=self.num_atoms)


class Shared(NamedTuple):
    """Projections of the radial basis that all blocks share."""

    triplet: Float[Array, "edge small"]
    circular: Float[Array, "edge circular degree"]
    atom: Float[Array, "edge small"]
    output: Float[Array, "edge small"]


def scaled_silu(x: Array) -> Array:
    return jax.nn.silu(x) / 0.6


def _reverse(x: Float[Array, "edge feature"]) -> Float[Array, "edge feature"]:
    """Of each edge, the same in the other direction."""
    half = len(x) // 2
    return jnp.concatenate([x[half:], x[:half]])


def _he_orthogonal(key, shape, dtype=jnp.float32):
    """Orthogonal, every output then standardised over its inputs and scaled by 1/√fan_in; outputs are the last axis."""
    fan_in = int(np.prod(shape[:-1]))
    matrix = nn.initializers.orthogonal()(key, (fan_in, shape[-1]), dtype)
    deviation = matrix - jnp.mean(matrix, axis=0)
    return (deviation / jnp.sqrt((jnp.var(matrix, axis=0, ddof=1) + 1e-6) * fan_in)).reshape(shape)


def _linear(size: int, name: str) -> nn.Dense:
    return nn.Dense(size, use_bias=False, kernel_init=_he_orthogonal, name=name)


def _dense(x: Float[Array, "n feature"], size: int, name: str) -> Float[Array, "n size"]:
    """Linear, then the activation."""
    return scaled_silu(_linear(size, name)(x))


def _observe(module: nn.Module, name: str, x, weight, reference, reference_weight) -> None:
    """Keep the variance of x over that of a reference, for `fit_scales`; nothing happens where nobody asks."""
    if not module.is_initializing():
        module.sow("variance_ratio", name, _variance(x, weight) / _variance(reference, reference_weight))


def _variance(x: Float[Array, "n feature"], weight: Float[Array, " n"] | None) -> Float[Array, ""]:
    """Over axis 0, the mean over the features."""
    weight = jnp.ones(len(x)) if weight is None else weight
    mean = jnp.average(x, axis=0, weights=weight)
    return jnp.mean(jnp.average((x - mean) ** 2, axis=0, weights=weight))


class Residual(nn.Module):
    """Two layers and what went in."""

    @nn.compact
    def __call__(self, x: Float[Array, "n feature"]) -> Float[Array, "n feature"]:
        size = x.shape[-1]
        return (x + _dense(_dense(x, size, "dense_0"), size, "dense_1")) * _ROOT_HALF


class AtomSum(nn.Module):
    """Messages of the edges that end at an atom, weighted by distance, then a residual network."""

    size: int
    scale: float

    @nn.compact
    def __call__(self, message, radial, edges: Edges) -> Float[Array, "atom size"]:
        x = edges.sum_at_target(message * _linear(message.shape[-1], "radial")(radial)) * self.scale
        _observe(self, "sum", x, None, message, edges.is_near)
        x = _dense(x, self.size, "dense")
        return Residual(name="residual_1")(Residual(name="residual_0")(x))


class Triplets(nn.Module):
    """Messages from the other edges of the target, by the angle between them."""

    triplet_size: int
    bilinear_size: int
    scales: tuple[float, ...]  # of the product with the radial basis, of the sum

    @nn.compact
    def __call__(self, message, shared: Shared, edges: Edges) -> Float[Array, "edge feature"]:
        size, (scale_radial, scale_sum) = message.shape[-1], self.scales
        sent = _dense(message, size, "dense")
        x = sent * _linear(size, "radial")(shared.triplet) * scale_radial
        _observe(self, "radial_product", x, edges.is_near, sent, edges.is_near)
        sent = _dense(x, self.triplet_size, "down")
        summed = jnp.stack([_other_edges(harmonics, sent, edges) for harmonics in edges.harmonics], axis=1)
        mixed = jnp.einsum("eil,elk->eik", shared.circular, summed)
        shape = (mixed.shape[1], self.triplet_size, self.bilinear_size)
        x = jnp.einsum("eik,iko->eo", mixed, self.param("bilinear", _he_orthogonal, shape)) * scale_sum
        num_triplets = edges.is_near * (edges.sum_at_target(edges.is_near)[edges.target] - 1)
        _observe(self, "triplet_sum", x, edges.is_near, sent, num_triplets)
        forward, backward = _dense(x, size, "up"), _dense(x, size, "up_reverse")
        return (forward + _reverse(backward)) * _ROOT_HALF


def _other_edges(harmonics: Float[Array, "edge m"], x: Float[Array, "edge feature"], edges: Edges):
    """Σ_b Y_l(cos angle) x_b over the other edges b of the target, with Y_l = √((2l + 1)/4π) P_l."""
    norm = (4 * np.pi / harmonics.shape[1]) ** 0.5
    at_atom = edges.sum_at_target(harmonics[:, :, None] * x[:, None, :])
    return norm * jnp.sum(harmonics[:, :, None] * at_atom[edges.target], axis=1) - x / norm


class Block(nn.Module):
    """Update of messages and atoms."""

    triplet_size: int
    bilinear_size: int
    scales: tuple[float, ...]  # of the radial product, of the triplet sum, of the atom update

    @nn.compact
    def __call__(self, atom, message, shared: Shared, edges: Edges):
        size = message.shape[-1]
        triplets = Triplets(self.triplet_size, self.bilinear_size, self.scales[:2], name="triplets")
        x = (_dense(message, size, "dense") + triplets(message, shared, edges)) * _ROOT_HALF
        message = (message + Residual(name="before_skip")(x)) * _ROOT_HALF
        message = Residual(name="after_skip")(message)
        update = AtomSum(atom.shape[-1], self.scales[2], name="atom_update")
        atom = (atom + update(message, shared.atom, edges)) * _ROOT_HALF
        x = _dense(_with_atoms(atom, message, edges), size, "concat")
        return atom, (message + Residual(name="residual")(x)) * _ROOT_HALF


def _with_atoms(atom, x, edges: Edges):
    return jnp.concatenate([atom[edges.source], atom[edges.target], x], axis=-1)


class GemNetT(nn.Module):
    """GemNet-T with one energy per atom; defaults are the paper's for water (Table 1, 1,891,008 parameters).

    Forces are the gradient of the energy. The number of neighbours has no limit.
    """

    num_blocks: int = 4
    atom_size: int = 128
    edge_size: int = 128
    triplet_size: int = 64
    bilinear_size: int = 64
    radial_size: int = 16
    circular_size: int = 16
    num_degrees: int = 7
    gaussian_centre: tuple[float, ...] = basis.equal_centres(6, cutoff=1.0)  # of r over the cutoff
    cutoff: float = 5.0  # Å
    envelope_exponent: int = 5
    num_species: int = 83  # rows of the embedding, from hydrogen on
    scales: tuple[float, ...] | None = None  # 3 of each block, then one of each output; None: 1. See `fit_scales`

    @property
    def elements(self) -> range:
        """Atomic numbers that can occur."""
        return range(1, self.num_species + 1)

    @nn.compact
    def __call__(self, species: Species, pairs: Pairs, vector: Float[Array, "pair 3"]) -> Float[Array, " atom"]:
        """Energy of each atom, eV; see `SchNet`."""
        edges = self._edges(pairs, vector, len(species))
        shared = self._shared(edges.radial)
        scales = self.scales or (1.0,) * (4 * self.num_blocks + 1)
        embedding = nn.Embed(self.num_species, self.atom_size, embedding_init=_uniform, name="embedding")
        atom = embedding(species - 1).astype(vector.dtype)
        message = _dense(_with_atoms(atom, edges.radial, edges), self.edge_size, "edge_embedding")

        def output(index, message):
            x = AtomSum(self.atom_size, scales[3 * self.num_blocks + index], name=f"output_{index}")
            return _linear(1, f"energy_{index}")(x(message, shared.output, edges))[:, 0]

        energy = output(0, message)
        for index in range(self.num_blocks):
            block = Block(
                self.triplet_size, self.bilinear_size, scales[3 * index : 3 * index + 3], name=f"block_{index}"
            )
            atom, message = block(atom, message, shared, edges)
            energy = energy + output(index + 1, message)
        return energy

    def _edges(self, pairs: Pairs, vector, num_atoms: int) -> Edges:
        distance = safe_norm(vector)
        envelope = basis.polynomial_envelope(distance, cutoff=self.cutoff, exponent=self.envelope_exponent)
        radial = basis.gaussian_basis(distance / self.cutoff, self.gaussian_centre) * envelope[:, None]
        harmonics = basis.spherical_harmonics(vector, max_degree=self.num_degrees - 1, normalization="integral")
        first, second = jnp.asarray(pairs.first), jnp.asarray(pairs.second)
        return Edges(
            source=jnp.concatenate([first, second]),
            target=jnp.concatenate([second, first]),
            radial=jnp.concatenate([radial, radial]),
            # Of the reverse direction: (−1)^l.
            harmonics=[jnp.concatenate([y, y if degree % 2 == 0 else -y]) for degree, y in enumerate(harmonics)],
            is_near=jnp.tile(((distance < self.cutoff) & (first < num_atoms)).astype(distance.dtype), 2),
            num_atoms=num_atoms,
        )

    def _shared(self, radial) -> Shared:
        shape = (self.num_degrees, radial.shape[-1], self.circular_size)
        # [degree, radial, circular], standardised over the first two as in the original.
        circular = self.param("circular", _he_orthogonal, shape)
        return Shared(
            triplet=_linear(self.radial_size, "radial_triplet")(radial),
            circular=jnp.einsum("er,lri->eil", radial, circular),
            atom=_linear(self.radial_size, "radial_atom")(radial),
            output=_linear(self.radial_size, "radial_output")(radial),
        )


def _uniform(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -(3**0.5), 3**0.5)


def fit_scales(
    model: GemNetT, params: Params, species: Species, pairs: Pairs, vectors: Float[Array, "frame pair 3"]
) -> GemNetT:
    """The model with scale factors that keep the variance of its features, as fitted from a few frames.

    One factor after the other, in the order of the network: each makes the variance of what it multiplies that of what
    went into the product or sum. For new parameters, before training; they are not trained.

    Args:
      model: GemNet-T; its factors are replaced.
      params: as they start.
      species: atomic numbers.
      pairs: of all frames.
      vectors: of the pairs, Å.
    """

    @jax.jit
    def ratios(scales, vector):
        scaled = model.clone(scales=tuple(scales))
        return scaled.apply(params, species, pairs, vector, mutable=["variance_ratio"])[1]["variance_ratio"]

    scales = np.ones(4 * model.num_blocks + 1)
    # A factor depends on those before it only, so each time one more is right.
    for _ in scales:
        seen = jax.tree.map(lambda *leaves: np.mean(leaves), *(ratios(scales, vector) for vector in vectors))
        for path, ratio in traverse_util.flatten_dict(seen).items():
            scales[_place(path, model.num_blocks)] /= np.sqrt(ratio[0])
    return model.clone(scales=tuple(scales.tolist()))


def _place(path: tuple[str, ...], num_blocks: int) -> int:
    """Of a factor in `scales`, from the scope that observed it."""
    scope, index = path[0].split("_")
    if scope == "output":
        return 3 * num_blocks + int(index)
    return 3 * int(index) + ("radial_product", "triplet_sum", "sum").index(path[-1])


_TORCH_NAMES = (  # in this order, over names with the scopes joined by dots
    (r"^atom_emb\.embeddings$", "embedding"),
    (r"^edge_emb\.dense", "edge_embedding"),
    (r"^mlp_rbf3", "radial_triplet"),
    (r"^mlp_rbf_h", "radial_atom"),
    (r"^mlp_rbf_out", "radial_output"),
    (r"^mlp_cbf3$", "circular"),
    (r"^out_blocks\.(\d+)\.out_energy", r"energy_\1"),
    (r"^out_blocks\.(\d+)", r"output_\1"),
    (r"^int_blocks\.(\d+)", r"block_\1"),
    (r"\.dense_mlp\.(\d)", r".dense_\1"),
    (r"\.trip_interaction\.mlp_cbf$", ".triplets.bilinear"),
    (r"\.trip_interaction\.mlp_rbf", ".triplets.radial"),
    (r"\.trip_interaction", ".triplets"),
    (r"\.dense_rbf", ".radial"),
    (r"\.dense_(?:ca|ba)", ".dense"),
    (r"\.down_projection", ".down"),
    (r"\.up_projection_ca", ".up"),
    (r"\.up_projection_ac", ".up_reverse"),
    (r"\.layers_before_skip\.0", ".before_skip"),
    (r"\.layers_after_skip\.0", ".after_skip"),
    (r"\.residual_m\.0", ".residual"),
    (r"\.concat_layer\.dense", ".concat"),
    (r"\.layers\.0", ".dense"),
    (r"\.layers\.1", ".residual_0"),
    (r"\.layers\.2", ".residual_1"),
)
_TORCH_IGNORED = re.compile(r".*\.rbf\.offset|out_blocks\.\d+\.seq_energy\..*")
_TORCH_SCALES = ("trip_interaction.scale_rbf", "trip_interaction.scale_cbf_sum", "atom_update.scale_sum")


def from_torch(state_dict: Mapping[str, np.ndarray]) -> tuple[GemNetT, Params]:
    """The model and its parameters from the state dict of a PyTorch GemNet-T of the paper's sizes.

    Args:
      state_dict: NumPy arrays by name; linear weights are `[out, in]`.

    Returns:
      The module, with its scale factors, and the parameters. Energies are the raw output of the network.

    Raises:
      ValueError: a name is not one of GemNet-T's, or one is missing.
    """
    found: dict[str, np.ndarray] = {}
    scales: dict[str, float] = {}
    for name, array in state_dict.items():
        if name.endswith(".scale_factor"):
            scales[name.removesuffix(".scale_factor")] = float(array)
        elif not _TORCH_IGNORED.fullmatch(name):
            path, value = _from_torch_leaf(name, np.asarray(array))
            found[path] = value
    num_blocks = sum(bool(re.fullmatch(r"block_\d+\.dense\.kernel", path)) for path in found)
    scale_names = [f"int_blocks.{block}.{name}" for block in range(num_blocks) for name in _TORCH_SCALES]
    scale_names += [f"out_blocks.{block}.scale_sum" for block in range(num_blocks + 1)]
    model = GemNetT(num_blocks=num_blocks)
    pairs, vector = Pairs(np.array([0]), np.array([1])), jnp.ones((1, 3))
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.ones(2, int), pairs, vector)
    shapes = {
        ".".join(key.key for key in path[1:]): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }
    given = {path: array.shape for path, array in found.items()}
    if differing := sorted(path for path in shapes.keys() | given.keys() if shapes.get(path) != given.get(path)):
        first = differing[0]
        raise ValueError(
            f"`from_torch`: expected `{first}` of shape {shapes.get(first)}, got {given.get(first)}: pass the state "
            "dict of a GemNet-T of the paper's sizes, without a prefix such as `module.`."
        )
    if missing := sorted(set(scale_names) - scales.keys()):
        raise ValueError(
            f"`from_torch`: expected `{missing[0]}.scale_factor`, which is missing: pass the whole state dict."
        )
    params = traverse_util.unflatten_dict({tuple(path.split(".")): array for path, array in found.items()})
    return model.clone(scales=tuple(scales[name] for name in scale_names)), {"params": params}


def _from_torch_leaf(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Path in our parameters, joined by dots, and the array as it stands there."""
    path = name.removesuffix(".weight").removesuffix(".linear")
    for pattern, ours in _TORCH_NAMES:
        path = re.sub(pattern, ours, path)
    if path == "embedding":
        return "embedding.embedding", array
    if path == "circular":
        return path, array
    if path.endswith(".bilinear"):
        return path, array.transpose(1, 0, 2)
    return f"{path}.kernel", array.T
