"""GemNet-T against the authors' model, its triplets written out, and its scale factors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import potential
from stablejax.models import edges, gemnet
from stablejax.models.gemnet import GemNetT
from stablejax.space import OPEN, Pairs, all_pairs, pad_pairs, periodic


def reference(shared):
    file = np.load(shared / "reference" / "gemnet_t_random.npz")
    return file, *gemnet.from_torch({name[6:]: file[name] for name in file if name.startswith("param/")})


SYSTEMS = ["dimer", "aspirin-0", "water-0"]
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("aspirin-1", "aspirin-2", "aspirin-3", "water-1")]


def one_system(file, name):
    name, _, index = name.partition("-")
    pick = lambda array: array[int(index)] if index else array  # noqa: E731
    species = file[f"{name}/atomic_numbers"]
    cell = None if name == "aspirin" else pick(file[f"{name}/cell"])
    expected = [pick(file[f"{name}/{what}"]) for what in ("positions", "atom_energies", "forces")]
    return pick(species) if name == "water" else species, cell, *expected


@pytest.mark.parametrize("name", [*SYSTEMS, *OTHERS])
def test_authors_weights_give_their_energies_and_forces(name, shared, x64):
    file, model, params = reference(shared)
    species, cell, position, energies, force = one_system(file, name)
    space = OPEN if cell is None else periodic(cell)
    system = potential.bind(model, species, space=space)
    every = all_pairs(len(species))
    is_near = np.asarray(space.distances(jnp.asarray(position), every)) < 6.0
    pairs = Pairs(every.first[is_near], every.second[is_near])

    @jax.jit
    def fn(params, position):
        (_, atoms), gradient = jax.value_and_grad(
            lambda x: (jnp.sum(e := system.atom_energies(params, x, pairs)), e), has_aux=True
        )(position)
        return atoms, -gradient

    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float64), params)
    actual = fn(params, jnp.asarray(position))
    assert np.abs(actual[0] - energies).max() < 1e-9
    assert np.abs(actual[1] - force).max() < 1e-7


def test_parameter_count_is_the_papers():
    params = jax.eval_shape(potential.bind(GemNetT(), np.array([8, 1, 1])).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_891_008


def test_import_names_what_is_wrong(shared):
    file, _, _ = reference(shared)
    state = {name[6:]: file[name] for name in file if name.startswith("param/")}
    with pytest.raises(ValueError, match=r"expected `edge_embedding\.kernel` of shape \(262, 128\), got None"):
        gemnet.from_torch({name: array for name, array in state.items() if not name.startswith("edge_emb")})
    with pytest.raises(ValueError, match=r"expected `out_blocks\.4\.scale_sum\.scale_factor`, which is missing"):
        gemnet.from_torch({name: array for name, array in state.items() if "4.scale_sum" not in name})
    with pytest.raises(
        ValueError, match=r"expected one shape of `blocks\.dense\.kernel` in all blocks, got \[\(3, 3\)"
    ):
        gemnet.from_torch(state | {"int_blocks.1.dense_ca.linear.weight": np.ones((3, 3))})
    with pytest.raises(ValueError, match=r"expected `module\.edge_emb\.dense\.kernel` of shape None, got \(262, 128\)"):
        gemnet.from_torch(state | {"module.edge_emb.dense.linear.weight": state["edge_emb.dense.linear.weight"]})


@pytest.mark.parametrize("is_known", [True, False])
def test_sum_over_other_edges_is_the_sum_over_triplets(is_known, x64, monkeypatch):
    """The addition theorem against Legendre polynomials of the angle of every triplet."""
    monkeypatch.setattr(edges, "MAX_TILE", 2)  # so that atoms have several tiles
    rng = np.random.default_rng(0)
    num_atoms, every = 6, all_pairs(6)
    pairs = pad_pairs(Pairs(every.first[1:], every.second[1:]), 15, num_atoms=num_atoms)  # atoms of 4 and 5 edges
    position, radial = rng.normal(size=(num_atoms, 3)), rng.normal(size=(15, 2))
    x, weight = rng.normal(size=(30, 3)), rng.normal(size=(7, 3, 2, 4))

    @jax.jit
    def fn(pairs):
        pairs = known if is_known else pairs
        vector = OPEN.vectors(jnp.asarray(position), pairs)
        of_pairs = edges.make_edges(pairs, vector, jnp.asarray(radial), num_atoms=num_atoms, max_degree=6, cutoff=9.0)
        return edges.sum_over_other_edges(jnp.asarray(x), jnp.asarray(weight), of_pairs)

    known = jax.tree.map(np.asarray, pairs)
    is_real = np.tile(known.first < num_atoms, 2)
    source, target = np.concatenate([known.first, known.second]), np.concatenate([known.second, known.first])
    vector = np.append(position, position[-1:], axis=0)[target] - np.append(position, position[-1:], axis=0)[source]
    unit = vector / np.maximum(np.linalg.norm(vector, axis=1, keepdims=True), 1e-9)
    is_triplet = (target[:, None] == target) & ~np.eye(30, dtype=bool) & is_real
    assert is_triplet.sum(axis=1).max() == 4
    expected = np.zeros((30, 4))
    for degree in range(7):
        legendre = np.polynomial.legendre.Legendre.basis(degree)(unit @ unit.T) * np.sqrt(
            (2 * degree + 1) / (4 * np.pi)
        )
        expected += np.einsum("eb,bk,er,kro->eo", legendre * is_triplet, x, np.tile(radial, (2, 1)), weight[degree])
    np.testing.assert_allclose(fn(pairs)[is_real], expected[is_real], atol=1e-12)


def test_fitted_scales_keep_the_variance():
    model = GemNetT(num_blocks=1, atom_size=32, edge_size=32, triplet_size=16, bilinear_size=16)
    species, pairs = np.array([8, 1, 1] * 4), all_pairs(12)
    positions = jnp.asarray(1.5 * np.random.default_rng(0).normal(size=(3, 12, 3)), jnp.float32)
    vectors = jax.vmap(lambda position: OPEN.vectors(position, pairs))(positions)
    params = jax.jit(model.init)(jax.random.key(0), species, pairs, vectors[0])
    fitted = gemnet.fit_scales(model, params, species, pairs, vectors)

    def ratios(model):
        observe = jax.jit(lambda vector: model.apply(params, species, pairs, vector, mutable=["variance_ratio"])[1])
        seen = [np.hstack([np.ravel(leaf) for leaf in jax.tree.leaves(observe(vector))]) for vector in vectors]
        return np.mean(seen, axis=0)

    assert len(fitted.scales) == 5
    np.testing.assert_allclose(ratios(fitted), 1.0, rtol=1e-3)
    assert np.abs(np.log(ratios(model))).max() > 0.5
    # Edges beyond the cutoff and padding count for nothing.
    far = jnp.concatenate([vectors, jnp.full((3, 2, 3), 9.0), jnp.zeros((3, 3, 3))], axis=1)
    padded = Pairs(*(np.append(index, np.array([0, 0, 12, 12, 12], np.int32)) for index in pairs))
    np.testing.assert_allclose(gemnet.fit_scales(model, params, species, padded, far).scales, fitted.scales, rtol=1e-3)


def test_fitted_scales_are_near_the_authors(shared):
    """They fitted theirs to other frames of water, with other weights."""
    file, model, params = reference(shared)
    species, cell, position, *_ = one_system(file, "water-1")
    every, space = all_pairs(len(species)), periodic(cell)
    is_near = np.asarray(space.distances(jnp.asarray(position), every)) < model.cutoff
    pairs = Pairs(every.first[is_near], every.second[is_near])
    vector = space.vectors(jnp.asarray(position, jnp.float32), pairs)
    fitted = gemnet.fit_scales(model.clone(scales=None), params, species, pairs, vector[None])
    np.testing.assert_allclose(fitted.scales, model.scales, rtol=0.08)
    assert np.ptp(np.log(fitted.scales)) > 2
