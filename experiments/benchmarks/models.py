"""Time of energy and forces of each model, and the share of the machine's matrix rate that it reaches.

    python -m experiments.benchmarks.models
    python -m experiments.benchmarks.models --models nequip,nequip-degree-2,nequip-degree-3 --systems peptide

Systems: aspirin of the data set that ships, a peptide (Ac-Ala3-NHMe) and 64 molecules of water in a periodic box: a
lattice at the density of the liquid. Each frame has its own padded list of the pairs within the cutoff; frames run
sequentially. `is_known` says whether the list is known at compile time, as that of all pairs of a molecule.

Operations are those of the matrix products in the program; they are compared with products of float32 matrices of 1,024
in the same run. The floor of GemNet-T is the time of the products of its dense and bilinear layers at that rate:
300,000 multiply-adds for each edge and block as published, forward and once more for the forces.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from experiments import cli
from experiments.benchmarks import records
from experiments.benchmarks.timing import measure

if TYPE_CHECKING:
    from ase import Atoms

DATA = Path(__file__).resolve().parents[1] / "data"
BOX = 12.42
MATRIX, NUM_PRODUCTS = 1024, 10
GEMNET_FLOOR = 300_000
"""Multiply-adds for each edge and block."""


_JAXPRS = (core.Jaxpr, core.ClosedJaxpr)


class Case(NamedTuple):
    species: np.ndarray
    position: np.ndarray  # [frame, atom, 3], Å
    cell: np.ndarray | None

    @property
    def space(self):
        """Boundaries of the system."""
        from stablejax import OPEN, periodic

        return OPEN if self.cell is None else periodic(self.cell)


def aspirin(num_frames: int) -> Case:
    with np.load(DATA / "aspirin_gfn2.npz") as file:
        chosen = np.linspace(0, len(file["R"]) - 1, num_frames).astype(int)
        return Case(file["z"], file["R"][chosen], None)


def peptide(num_frames: int) -> Case:
    """The geometry that ships, with Gaussian noise of 0.05 Å on each coordinate."""
    from ase.io import read

    atoms = cast("Atoms", read(DATA / "ac_ala3_nhme.xyz", format="extxyz"))
    noise = 0.05 * np.random.default_rng(0).normal(size=(num_frames, len(atoms), 3))
    return Case(atoms.numbers, atoms.positions + noise, None)


def water(num_frames: int) -> Case:
    """Molecules on a lattice, each rotated at random."""
    corner = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    molecule = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(num_frames, 64, 3, 3)))[0]
    position = (corner * BOX / 4 + molecule @ rotation).reshape(num_frames, 192, 3)
    return Case(np.tile([8, 1, 1], 64), position, BOX * np.eye(3))


SYSTEMS: dict[str, Callable[[int], Case]] = {"aspirin": aspirin, "peptide": peptide, "water": water}
MODELS = ("schnet", "nequip", "gemnet", "nequip-degree-2", "nequip-degree-3")


def build_model(name: str, species: np.ndarray):
    """A model of the paper's size; of NequIP also with features of higher degree."""
    from stablejax import GemNetT, NequIP, SchNet

    elements = tuple(np.unique(species).tolist())
    name, _, degree = name.partition("-degree-")
    if name == "nequip":
        return NequIP(elements, max_degree=int(degree or 1))
    return {"schnet": SchNet, "gemnet": GemNetT}[name]()


def near_pairs(case: Case, cutoff: float):
    """Pairs of each frame, [frame, pair], padded to one length."""
    from stablejax.space import Pairs, all_pairs, pad_pairs

    num_atoms = len(case.species)
    every, space = all_pairs(num_atoms), case.space
    is_near = [np.asarray(space.distances(jnp.asarray(x), every)) < cutoff for x in case.position]
    size = max(int(near.sum()) for near in is_near)
    lists = [pad_pairs(Pairs(every.first[n], every.second[n]), size, num_atoms=num_atoms) for n in is_near]
    return jax.tree.map(lambda *some: np.stack(some), *lists)


def num_operations(jaxpr) -> int:
    """Of all matrix products, two per multiply-add; bodies of loops count as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: isinstance(value, _JAXPRS))
        total += times * sum(num_operations(getattr(x, "jaxpr", x)) for x in inner if isinstance(x, _JAXPRS))
    return total


def run(given) -> list[dict]:
    """Rows of the record."""
    matrix = jnp.full((MATRIX, MATRIX), 1 / MATRIX)
    products = jax.jit(lambda x: jax.lax.fori_loop(0, NUM_PRODUCTS, lambda _, y: x @ y, x)).lower(matrix).compile()
    rows: list[dict] = []
    for system in given.systems:
        case = SYSTEMS[system](max(given.frames))
        for name in given.models:
            model = build_model(name, case.species)
            fns = one_model(case, model, given.frames)
            for (count, is_known), (fn, operations, num_edges) in fns.items():
                times = measure({"model": fn, "matrix": lambda: products(matrix)}, (), given.repeats)
                peak = 2 * MATRIX**3 * NUM_PRODUCTS / times["matrix"]
                found = {
                    ("time_ms", "ms"): 1000 * times["model"],
                    ("gflop_per_s", ""): operations / times["model"] / 1e9,
                    ("fraction_of_peak", ""): operations / times["model"] / peak,
                }
                if name == "gemnet":
                    floor = 2 * 2 * GEMNET_FLOOR * model.num_blocks * num_edges / peak
                    found["fraction_of_floor", ""] = floor / times["model"]
                where = {"model": name, "system": system, "frames": count, "is_known": is_known}
                rows += [{"metric": m, "value": value, "unit": unit} | where for (m, unit), value in found.items()]
                records.show(rows, **where)
    return rows


def one_model(case: Case, model, counts: list[int]) -> dict:
    """By number of frames and whether pairs are known: compiled program, its operations, edges of all frames."""
    from stablejax import bind
    from stablejax.potential import energy_and_forces

    potential = bind(model, case.species, space=case.space)
    params = jax.jit(potential.init)(jax.random.key(0))
    pairs = near_pairs(case, model.cutoff)
    position = jnp.asarray(case.position, jnp.float32)

    def one(position, pairs):
        return energy_and_forces(lambda p, x: potential.energy(p, x, pairs))(params, position)

    def sequentially(position, pairs):
        return jax.lax.map(lambda frame: one(*frame), (position, pairs))

    made = {}
    for count in counts:
        arguments = jax.tree.map(lambda leaf, count=count: jnp.asarray(leaf[:count]), (position, pairs))
        num_edges = 2 * int((pairs.first[:count] < len(case.species)).sum())
        made[count, False] = program(sequentially, arguments, num_edges)
    num_near = int((pairs.first[0] < len(case.species)).sum())
    known = jax.tree.map(lambda leaf: leaf[0, :num_near], pairs)
    made[1, True] = program(lambda position: one(position, known), (position[0],), 2 * num_near)
    return made


def program(fn, arguments, num_edges: int):
    compiled = jax.jit(fn).lower(*arguments).compile()
    return lambda: compiled(*arguments), num_operations(jax.make_jaxpr(fn)(*arguments).jaxpr), num_edges


def main() -> None:
    """Run and write the record."""
    parser = records.parser(__doc__ or "", repeats=3)
    for name, known, default in (("models", MODELS, MODELS[:3]), ("systems", tuple(SYSTEMS), tuple(SYSTEMS))):
        parser.add_argument(f"--{name}", type=records.names(known), default=list(default), help=", ".join(known))
    parser.add_argument("--frames", type=records.numbers, default=[1, 8, 64], help="numbers of frames")
    given = parser.parse_args()
    cli.configure(host_devices=1, has_threads=True)
    records.keep(given, "benchmarks.models", run(given))


if __name__ == "__main__":
    main()
