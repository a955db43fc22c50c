"""SchNet (Schütt et al., J. Chem. Phys. 148, 241722, 2018): continuous-filter convolutions over pair distances."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from flax import linen as nn

from stablejax.models import basis, messages
from stablejax.models.protocol import ModelData
from stablejax.space import Pairs, safe_norm
from stablejax.types import Array, Float, Params, Species


class SchNet(nn.Module):
    """SchNet with one energy per atom; defaults are the paper's (Table 1, 117,953 parameters).

    The radial filters depend only on a distance and are the same for both directions of a pair, so `filters` and
    `energies_from_filters` are separate: molecular dynamics may replace the first by a table.
    """

    num_features: int = 64
    num_filters: int = 64
    num_blocks: int = 6
    gaussian_center: tuple[float, ...] = basis.equal_centers(25, cutoff=5.0)  # Å
    cutoff: float = 5.0  # Å
    num_species: int = 100  # rows of the embedding, indexed by atomic number

    @property
    def elements(self) -> range:
        """Atomic numbers that can occur."""
        return range(self.num_species)

    def setup(self):
        self.embedding = nn.Embed(self.num_species, self.num_features, embedding_init=nn.initializers.normal(1.0))
        blocks = range(self.num_blocks)
        init = nn.initializers.xavier_uniform()
        self.filter_in = [nn.Dense(self.num_filters, kernel_init=init) for _ in blocks]
        self.filter_out = [nn.Dense(self.num_filters, kernel_init=init) for _ in blocks]
        self.convolution_in = [nn.Dense(self.num_filters, use_bias=False, kernel_init=init) for _ in blocks]
        self.convolution_out = [nn.Dense(self.num_features, kernel_init=init) for _ in blocks]
        self.update = [nn.Dense(self.num_features, kernel_init=init) for _ in blocks]
        self.readout_in = nn.Dense(self.num_features // 2, kernel_init=init)
        self.readout_out = nn.Dense(1, kernel_init=init)

    def filters(self, distance: Float[Array, " pair"]) -> list[Float[Array, "pair _"]]:
        """Filter weights of each block, cutoff included: 0 from the cutoff on."""
        radial = basis.gaussian_basis(distance, self.gaussian_center)
        envelope = basis.cosine_envelope(distance, cutoff=self.cutoff)[:, None]
        return [
            outer(basis.shifted_softplus(inner(radial))) * envelope
            for inner, outer in zip(self.filter_in, self.filter_out, strict=True)
        ]

    def energies_from_filters(
        self,
        species: Species,
        pairs: Pairs,
        vector: Float[Array, "pair 3"],
        filters: list[Float[Array, "pair _"]],
    ) -> Float[Array, " atom"]:
        """Atom energies, eV, from the filters of each pair; directions are not used.

        Args:
          species: atomic numbers.
          pairs: undirected, padded or not.
          vector: of the pairs, Å.
          filters: of each block.
        """
        del vector
        feature = self.embedding(species).astype(filters[0].dtype)
        sum_over_neighbors = messages.neighbor_sum(pairs, len(species))
        for block in range(self.num_blocks):
            sent = self.convolution_in[block](feature)
            message = sum_over_neighbors(filters[block], sent)
            message = basis.shifted_softplus(self.convolution_out[block](message))
            feature = feature + self.update[block](message)
        return self.readout_out(basis.shifted_softplus(self.readout_in(feature)))[:, 0]

    def __call__(self, species: Species, pairs: Pairs, vector: Float[Array, "pair 3"]) -> Float[Array, " atom"]:
        """Energy of each atom, eV.

        Args:
          species: atomic numbers.
          pairs: undirected pairs, padded or not; those beyond the cutoff contribute nothing.
          vector: from the first to the second atom of each pair, Å.
        """
        return self.energies_from_filters(species, pairs, vector, self.filters(safe_norm(vector)))


def from_sizes(
    data: ModelData, *, num_features: int, num_filters: int, num_blocks: int, num_gaussians: int, cutoff: float
) -> SchNet:
    """SchNet with these sizes, independent of the data.

    Args:
      data: that it is built for.
      num_features: of an atom.
      num_filters: of a continuous-filter convolution.
      num_blocks: interactions.
      num_gaussians: radial basis.
      cutoff: Å.
    """
    del data
    return SchNet(
        num_features=num_features,
        num_filters=num_filters,
        num_blocks=num_blocks,
        gaussian_center=basis.equal_centers(num_gaussians, cutoff=cutoff),
        cutoff=cutoff,
    )


_TORCH_NAMES = (
    (r"embedding\.(?P<leaf>weight)", "embedding"),
    (r"interactions\.(\d+)\.mlp\.0\.(?P<leaf>weight|bias)", r"filter_in_\1"),
    (r"interactions\.(\d+)\.mlp\.2\.(?P<leaf>weight|bias)", r"filter_out_\1"),
    (r"interactions\.(\d+)\.conv\.lin1\.(?P<leaf>weight)", r"convolution_in_\1"),
    (r"interactions\.(\d+)\.conv\.lin2\.(?P<leaf>weight|bias)", r"convolution_out_\1"),
    (r"interactions\.(\d+)\.lin\.(?P<leaf>weight|bias)", r"update_\1"),
    (r"lin1\.(?P<leaf>weight|bias)", "readout_in"),
    (r"lin2\.(?P<leaf>weight|bias)", "readout_out"),
)
_TORCH_CENTERS = "distance_expansion.offset"
_TORCH_IGNORED = re.compile(r"atomic_mass|initial_atomref|interactions\.\d+\.conv\.nn\..*")


def from_torch(state_dict: Mapping[str, np.ndarray]) -> tuple[SchNet, Params]:
    """The model and its parameters from the state dict of a PyTorch Geometric `SchNet`.

    Args:
      state_dict: NumPy arrays by name; `Linear` weights are `[out, in]`. Atomic masses and the second name of each
        filter network are skipped.

    Returns:
      The module, with its sizes, Gaussian centers and cutoff (the last center), and the parameters. Energies are the
      raw output of the network: an offset that normalized the labels has to be added by the caller.

    Raises:
      ValueError: a name is not one of SchNet's, or one is missing.
    """
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, array in state_dict.items():
        if name == _TORCH_CENTERS or _TORCH_IGNORED.fullmatch(name):
            continue
        matches = ((re.fullmatch(pattern, name), target) for pattern, target in _TORCH_NAMES)
        match, target = next(((match, target) for match, target in matches if match), (None, ""))
        if match is None:
            raise ValueError(
                f"`from_torch`: expected the names of a PyTorch Geometric SchNet, got `{name}`: "
                "pass the model's own state dict, without a prefix such as `module.`."
            )
        module = match.expand(target)
        if module == "embedding":
            leaf, value = "embedding", np.asarray(array)
        elif match["leaf"] == "weight":
            leaf, value = "kernel", np.asarray(array).T
        else:
            leaf, value = "bias", np.asarray(array)
        tree.setdefault(module, {})[leaf] = value
    num_blocks = sum(name.startswith("filter_in_") for name in tree)
    if _TORCH_CENTERS not in state_dict or num_blocks == 0:
        missing = _TORCH_CENTERS if num_blocks else "interactions.0.mlp.0.weight"
        raise ValueError(f"`from_torch`: expected `{missing}`, which is missing: pass the whole state dict.")
    center = tuple(np.asarray(state_dict[_TORCH_CENTERS], np.float32).tolist())
    num_species, num_features = tree["embedding"]["embedding"].shape
    model = SchNet(
        num_features=num_features,
        num_filters=tree["filter_in_0"]["bias"].shape[0],
        num_blocks=num_blocks,
        gaussian_center=center,
        cutoff=center[-1],
        num_species=num_species,
    )
    return model, {"params": tree}
