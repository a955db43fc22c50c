"""GemNet-T (Gasteiger, Becker and Günnemann, NeurIPS 2021): directional messages between edges, in Flax.

Triplets are never materialized: the angular basis depends on the angle alone, so by the addition theorem of spherical
harmonics the sum over the other edges of an atom is a sum at the atom, minus the edge's own term.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from stablejax.models import basis
from stablejax.models.edges import Edges, make_edges
from stablejax.models.gemnet_blocks import Block, Output, Scales, Shared, WithAtoms, he_orthogonal, linear
from stablejax.models.protocol import ModelData
from stablejax.space import Pairs, all_pairs, safe_norm
from stablejax.types import Array, Float, Params, Species

NUM_FITTED = 8
"""Frames that the scale factors are fitted to."""


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
    num_species: int = 83  # rows of the embedding, starting at hydrogen
    # Factors of the radial products of all blocks, then of triplet sums, atom updates and outputs, of which the first
    # precedes the blocks. None: 1. See `fit_scales`.
    scales: tuple[float | Float[Array, ""], ...] | None = None

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
        # A scan, so that no block recomputes sums of earlier ones; cheap intermediates are recomputed, not stored.
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
        """Scale of the first output, and scales of each block."""
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
        circular = self.param("circular", he_orthogonal, shape)
        return Shared(
            triplet=linear(self.radial_size, "radial_triplet")(radial),
            circular=circular,
            atom=linear(self.radial_size, "radial_atom")(radial),
            output=linear(self.radial_size, "radial_output")(radial),
        )


def _uniform(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -(3**0.5), 3**0.5)


def fit_scales(
    model: GemNetT, params: Params, species: Species, pairs: Pairs, vectors: Float[Array, "frame pair 3"]
) -> GemNetT:
    """The model with scale factors that preserve the variance of its features, fitted to a few frames.

    Factors are fitted sequentially, in the order of the network: each gives the product or sum that it multiplies the
    variance of its input. For initial parameters, before training; the factors are not trained.

    Args:
      model: GemNet-T; its factors are replaced.
      params: initial parameters.
      species: atomic numbers.
      pairs: of all frames.
      vectors: of the pairs, Å.
    """

    @jax.jit
    def ratios(scales, vector):
        scaled = model.clone(scales=tuple(scales))
        sown = scaled.apply(params, species, pairs, vector, mutable=["variance_ratio"])[1]["variance_ratio"]
        blocks, outputs = sown["blocks"], [sown["output"]["sum"]["sum"], sown["blocks"]["output"]["sum"]["sum"]]
        triplets = [blocks["triplets"][name] for name in ("radial_product", "triplet_sum")]
        return jnp.concatenate([jnp.atleast_1d(x) for (x,) in (*triplets, blocks["atom_update"]["sum"], *outputs)])

    scales = np.ones(4 * model.num_blocks + 1)
    # A factor depends only on those before it, so each iteration fixes one more.
    for _ in scales:
        scales /= np.sqrt(np.mean([ratios(scales, vector) for vector in vectors], axis=0))
    return model.clone(scales=tuple(scales.tolist()))


def with_fitted_scales(model: GemNetT, data: ModelData) -> GemNetT:
    """The model with scale factors fitted to the first frames of the data, with initial parameters.

    Args:
      model: GemNet-T; its factors are replaced.
      data: that it is built for.
    """
    species, space, pairs = data.species, data.space, all_pairs(len(data.species))
    params = jax.jit(model.init)(data.key, species, pairs, jnp.ones((len(pairs.first), 3)))
    position = jnp.asarray(data.position[:NUM_FITTED], jnp.float32)
    return fit_scales(model, params, species, pairs, jax.vmap(lambda x: space.vectors(x, pairs))(position))


def from_sizes(
    data: ModelData,
    *,
    num_blocks: int,
    atom_size: int,
    edge_size: int,
    triplet_size: int,
    bilinear_size: int,
    num_spherical: int,
    num_radial: int,
    cutoff: float,
) -> GemNetT:
    """GemNet-T for the data, its scale factors fitted to the first frames.

    Args:
      data: that it is built for.
      num_blocks: interactions.
      atom_size: features of an atom.
      edge_size: features of a directed edge.
      triplet_size: of messages between edges.
      bilinear_size: of the bilinear layer.
      num_spherical: Legendre polynomials of the angle.
      num_radial: Gaussians of the distance.
      cutoff: Å.
    """
    model = GemNetT(
        num_blocks=num_blocks,
        atom_size=atom_size,
        edge_size=edge_size,
        triplet_size=triplet_size,
        bilinear_size=bilinear_size,
        num_degrees=num_spherical,
        gaussian_center=basis.equal_centers(num_radial, cutoff=1.0),
        cutoff=cutoff,
    )
    return with_fitted_scales(model, data)


_TORCH_NAMES = (  # applied in this order, to names with the scopes joined by dots
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
    """Path in our parameters, joined by dots and without the index of the block, and the array in our layout."""
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
