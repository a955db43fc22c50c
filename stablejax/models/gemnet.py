"""GemNet-T (Gasteiger, Becker and Günnemann, NeurIPS 2021): directional messages between edges, in Flax.

Triplets are never materialized: the angular basis depends on the angle alone, so by the addition theorem of spherical
harmonics the sum over the other edges of an atom is a sum at the atom, less the edge's own term.
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

from stablejax.models import basis
from stablejax.models.edges import Edges, make_edges, sum_over_other_edges
from stablejax.space import Pairs, safe_norm
from stablejax.types import Array, Float, Params, Species

_ROOT_HALF = 0.5**0.5


class Shared(NamedTuple):
    """What all blocks share: weights of the angular basis, and projections of the radial one."""

    circular: Float[Array, "degree radial circular"]
    triplet: Float[Array, "edge small"]
    atom: Float[Array, "edge small"]
    output: Float[Array, "edge small"]


class Scales(NamedTuple):
    """Factors of a block."""

    radial_product: Float[Array, ""]
    triplet_sum: Float[Array, ""]
    atom_update: Float[Array, ""]
    output: Float[Array, ""]


def scaled_silu(x: Array) -> Array:
    return jax.nn.silu(x) / 0.6


def _he_orthogonal(key, shape, dtype=jnp.float32):
    """Orthogonal, every output then standardized over its inputs and scaled by 1/√fan_in; outputs are the last axis."""
    fan_in = int(np.prod(shape[:-1]))
    matrix = nn.initializers.orthogonal()(key, (fan_in, shape[-1]), dtype)
    deviation = matrix - jnp.mean(matrix, axis=0)
    return (deviation / jnp.sqrt((jnp.var(matrix, axis=0, ddof=1) + 1e-6) * fan_in)).reshape(shape)


def _linear(size: int, name: str) -> nn.Dense:
    return nn.Dense(size, use_bias=False, kernel_init=_he_orthogonal, name=name)


def _dense(x: Float[Array, "n feature"], size: int, name: str) -> Float[Array, "n size"]:
    """Linear, then the activation."""
    return scaled_silu(_linear(size, name)(x))


def _add(x: Array, y: Array) -> Array:
    return (x + y) * _ROOT_HALF


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
        return _add(x, _dense(_dense(x, size, "dense_0"), size, "dense_1"))


class WithAtoms(nn.Module):
    """A layer over the features of source, target and edge beside each other; those of atoms are multiplied once."""

    size: int

    @nn.compact
    def __call__(self, atom, x, edges: Edges) -> Float[Array, "edge size"]:
        width = atom.shape[-1]
        kernel = self.param("kernel", _he_orthogonal, (2 * width + x.shape[-1], self.size))
        source, target, own = jnp.split(kernel, [width, 2 * width])
        return scaled_silu((atom @ source)[edges.source] + (atom @ target)[edges.target] + x @ own)


class AtomSum(nn.Module):
    """Messages of the edges that end at an atom, weighted by distance, then a residual network."""

    size: int

    @nn.compact
    def __call__(self, message, radial, scale, edges: Edges) -> Float[Array, "atom size"]:
        x = edges.sum_at_target(message * _linear(message.shape[-1], "radial")(radial)) * scale
        _observe(self, "sum", x, None, message, edges.is_near)
        x = _dense(x, self.size, "dense")
        return Residual(name="residual_1")(Residual(name="residual_0")(x))


class Triplets(nn.Module):
    """Messages from the other edges of the target, by the angle between them."""

    triplet_size: int
    bilinear_size: int

    @nn.compact
    def __call__(self, message, scales: Scales, shared: Shared, edges: Edges) -> Float[Array, "edge feature"]:
        size = message.shape[-1]
        sent = _dense(message, size, "dense")
        x = sent * _linear(size, "radial")(shared.triplet) * scales.radial_product
        _observe(self, "radial_product", x, edges.is_near, sent, edges.is_near)
        sent = _dense(x, self.triplet_size, "down")
        shape = (shared.circular.shape[-1], self.triplet_size, self.bilinear_size)
        weight = jnp.einsum("lri,iko->lkro", shared.circular, self.param("bilinear", _he_orthogonal, shape))
        x = sum_over_other_edges(sent, weight, edges) * scales.triplet_sum
        num_triplets = edges.is_near * (edges.sum_at_target(edges.is_near)[edges.target] - 1)
        _observe(self, "triplet_sum", x, edges.is_near, sent, num_triplets)
        forward, backward = _dense(x, size, "up"), _dense(x, size, "up_reverse")
        return _add(forward, edges.reverse(backward))


class Output(nn.Module):
    """Energies of the atoms from messages."""

    size: int

    @nn.compact
    def __call__(self, message, scale, shared: Shared, edges: Edges) -> Float[Array, " atom"]:
        x = AtomSum(self.size, name="sum")(message, shared.output, scale, edges)
        return _linear(1, "energy")(x)[:, 0]


class Block(nn.Module):
    """Update of messages, atoms and their energies."""

    triplet_size: int
    bilinear_size: int

    @nn.compact
    def __call__(self, state, scales: Scales, shared: Shared, edges: Edges):
        atom, message, energy = state
        size = message.shape[-1]
        triplets = Triplets(self.triplet_size, self.bilinear_size, name="triplets")
        x = _add(_dense(message, size, "dense"), triplets(message, scales, shared, edges))
        message = _add(message, Residual(name="before_skip")(x))
        message = Residual(name="after_skip")(message)
        update = AtomSum(atom.shape[-1], name="atom_update")
        atom = _add(atom, update(message, shared.atom, scales.atom_update, edges))
        x = WithAtoms(size, name="concat")(atom, message, edges)
        message = _add(message, Residual(name="residual")(x))
        energy = energy + Output(atom.shape[-1], name="output")(message, scales.output, shared, edges)
        return (atom, message, energy), None


class GemNetT(nn.Module):
    """GemNet-T with one energy per atom; defaults are the paper's for water (Table 1, 1,891,008 parameters).

    Forces are the gradient of the energy. There is no neighbor cap.
    """

    num_blocks: int = 4
    atom_size: int = 128
    edge_size: int = 128
    triplet_size: int = 64
    bilinear_size: int = 64
    radial_size: int = 16
    circular_size: int = 16
    num_degrees: int = 7
    gaussian_center: tuple[float, ...] = basis.equal_centers(6, cutoff=1.0)  # of r over the cutoff
    cutoff: float = 5.0  # Å
    envelope_exponent: int = 5
    num_species: int = 83  # rows of the embedding, from hydrogen on
    # Factors of the radial products of all blocks, then of triplet sums, atom updates and outputs, of which the first
    # comes before the blocks. None: 1. See `fit_scales`.
    scales: tuple[float, ...] | None = None

    @property
    def elements(self) -> range:
        """Atomic numbers that can occur."""
        return range(1, self.num_species + 1)

    @nn.compact
    def __call__(self, species: Species, pairs: Pairs, vector: Float[Array, "pair 3"]) -> Float[Array, " atom"]:
        """Energy of each atom, eV; see `SchNet`."""
        edges = self._edges(pairs, vector, len(species))
        shared = self._shared(edges.radial)
        embedding = nn.Embed(self.num_species, self.atom_size, embedding_init=_uniform, name="embedding")
        atom = embedding(species - 1).astype(vector.dtype)
        message = WithAtoms(self.edge_size, name="edge_embedding")(atom, edges.radial, edges)
        scales = jnp.asarray(self.scales or (1.0,) * (4 * self.num_blocks + 1), vector.dtype)
        first, scales_of_blocks = self._scales_of_blocks(scales)
        energy = Output(self.atom_size, name="output")(message, first, shared, edges)
        # A loop, so that no block computes sums of those before it again; what is cheap is computed twice, not kept.
        blocks = nn.scan(
            nn.remat(Block, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False),
            variable_axes={"params": 0, "variance_ratio": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.num_blocks,
        )(self.triplet_size, self.bilinear_size, name="blocks")
        (_, _, energy), _ = blocks((atom, message, energy), scales_of_blocks, shared, edges)
        return energy

    def _scales_of_blocks(self, scales) -> tuple[Float[Array, ""], Scales]:
        """Of the first output, and of each block."""
        products, sums, updates, (first, *outputs) = jnp.split(scales, [n * self.num_blocks for n in (1, 2, 3)])
        return first, Scales(products, sums, updates, jnp.asarray(outputs))

    def _edges(self, pairs: Pairs, vector, num_atoms: int) -> Edges:
        distance = safe_norm(vector)
        envelope = basis.polynomial_envelope(distance, cutoff=self.cutoff, exponent=self.envelope_exponent)
        radial = basis.gaussian_basis(distance / self.cutoff, self.gaussian_center) * envelope[:, None]
        return make_edges(
            pairs, vector, radial, num_atoms=num_atoms, max_degree=self.num_degrees - 1, cutoff=self.cutoff
        )

    def _shared(self, radial) -> Shared:
        shape = (self.num_degrees, radial.shape[-1], self.circular_size)
        # [degree, radial, circular], standardized over the first two as in the original.
        circular = self.param("circular", _he_orthogonal, shape)
        return Shared(
            triplet=_linear(self.radial_size, "radial_triplet")(radial),
            circular=circular,
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
        seen = scaled.apply(params, species, pairs, vector, mutable=["variance_ratio"])[1]["variance_ratio"]
        blocks, outputs = seen["blocks"], [seen["output"]["sum"]["sum"], seen["blocks"]["output"]["sum"]["sum"]]
        triplets = [blocks["triplets"][name] for name in ("radial_product", "triplet_sum")]
        return jnp.concatenate([jnp.atleast_1d(x) for (x,) in (*triplets, blocks["atom_update"]["sum"], *outputs)])

    scales = np.ones(4 * model.num_blocks + 1)
    # A factor depends on those before it only, so each time one more is right.
    for _ in scales:
        scales /= np.sqrt(np.mean([ratios(scales, vector) for vector in vectors], axis=0))
    return model.clone(scales=tuple(scales.tolist()))


_TORCH_NAMES = (  # in this order, over names with the scopes joined by dots
    (r"^atom_emb\.embeddings$", "embedding"),
    (r"^edge_emb\.dense", "edge_embedding"),
    (r"^mlp_rbf3", "radial_triplet"),
    (r"^mlp_rbf_h", "radial_atom"),
    (r"^mlp_rbf_out", "radial_output"),
    (r"^mlp_cbf3$", "circular"),
    (r"^out_blocks\.0", "output"),
    (r"^out_blocks\.\d+", "blocks.output"),
    (r"^int_blocks\.\d+", "blocks"),
    (r"\.out_energy", ".energy"),
    (r"^(output|blocks\.output)\.(?!energy)", r"\1.sum."),
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
    num_blocks = len({name.split(".")[1] for name in state_dict if name.startswith("int_blocks.")})
    found: dict[str, list[np.ndarray]] = {}
    scales: dict[str, float] = {}
    for name in sorted(state_dict, key=lambda name: (len(name), name)):  # block 2 before 10
        array = np.asarray(state_dict[name])
        if name.endswith(".scale_factor"):
            scales[name.removesuffix(".scale_factor")] = float(array)
        elif not _TORCH_IGNORED.fullmatch(name):
            path, array = _from_torch_leaf(name, array)
            found.setdefault(path, []).append(array)
    for path, some in found.items():
        if len(shapes := {array.shape for array in some}) > 1:
            raise ValueError(
                f"`from_torch`: expected one shape of `{path}` in all blocks, got {sorted(shapes)}: pass the state "
                "dict of a GemNet-T of the paper's sizes."
            )
    given = {path: np.stack(some) if path.startswith("blocks.") else some[0] for path, some in found.items()}
    model = GemNetT(num_blocks=num_blocks)
    _check_shapes(model, given)
    scale_names = [f"int_blocks.{block}.{name}" for name in _TORCH_SCALES for block in range(num_blocks)]
    scale_names += [f"out_blocks.{block}.scale_sum" for block in range(num_blocks + 1)]
    if missing := sorted(set(scale_names) - scales.keys()):
        raise ValueError(
            f"`from_torch`: expected `{missing[0]}.scale_factor`, which is missing: pass the whole state dict."
        )
    params = traverse_util.unflatten_dict(given, sep=".")
    return model.clone(scales=tuple(scales[name] for name in scale_names)), {"params": params}


def _check_shapes(model: GemNetT, given: Mapping[str, np.ndarray]) -> None:
    pairs, vector = Pairs(np.array([0]), np.array([1])), jnp.ones((1, 3))
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.ones(2, int), pairs, vector)["params"]
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(expected, sep=".").items()}
    found = {path: array.shape for path, array in given.items()}
    if differing := sorted(path for path in shapes | found if shapes.get(path) != found.get(path)):
        first = differing[0]
        raise ValueError(
            f"`from_torch`: expected `{first}` of shape {shapes.get(first)}, got {found.get(first)}: pass the state "
            "dict of a GemNet-T of the paper's sizes, without a prefix such as `module.`."
        )


def _from_torch_leaf(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Path in our parameters, joined by dots and without the number of the block, and the array as it stands there."""
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
