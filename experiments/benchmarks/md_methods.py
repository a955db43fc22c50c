"""Molecular dynamics in three ways, for `md_throughput`: this library, plain JAX with jax-md, and PyTorch Geometric.

Each takes a `Task` and returns a function that runs a number of steps of every replica and blocks until they are done.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

TEMPERATURE_K, TIMESTEP_FS, DAMPING_TIME_FS = 500.0, 0.5, 16.7
MATRIX, NUM_PRODUCTS = 1024, 10
SPARE_PAIRS, SKIN_A = 1.3, 0.25
"""Capacity of neighbor lists over that of the starts; a narrow skin, since a list costs less than its pairs."""

Runner = Callable[[int], int]  # number of steps -> replica-steps taken


class Task(NamedTuple):
    """What is simulated, as NumPy arrays that can be sent between processes."""

    model: str  # name for `benchmarks.models.build_model`
    params: Any
    species: np.ndarray
    position: np.ndarray  # [replica, atom, 3], Å
    cell: np.ndarray | None
    scale: float  # eV per unit of the model's output
    is_tabulated: bool


def case_of(task: Task):
    """The same system as a case of `benchmarks.models`."""
    from experiments.benchmarks.models import Case

    return Case(task.species, task.position, task.cell)


def md_potential(task: Task):
    """The potential in the form that the library simulates."""
    from experiments.benchmarks.models import build_model
    from stablejax import bind
    from stablejax.neighbors import most_pairs

    model, space = build_model(task.model, task.species), case_of(task).space
    potential = bind(model, task.species, space=space, scale=task.scale)
    if task.is_tabulated:
        return potential.fast()
    num_pairs = most_pairs(task.position, cutoff=model.cutoff, skin=SKIN_A, space=space, margin=SPARE_PAIRS)
    return potential.with_lists(skin=SKIN_A, num_pairs=num_pairs)


def integrator(potential, species: np.ndarray):
    """Nosé–Hoover chain, as in the paper."""
    from ase.data import atomic_masses

    from stablejax import integrators, units

    return integrators.nose_hoover(
        potential,
        atomic_masses[species].astype(np.float32),
        kT=units.thermal_energy(TEMPERATURE_K),
        timestep=TIMESTEP_FS * units.FEMTOSECOND,
        damping_time=DAMPING_TIME_FS * units.FEMTOSECOND,
    )


def fast(task: Task, *, num_devices: int | None = None) -> Runner:
    """The library: tables or short lists, a criterion after every step; on all devices, or `num_devices`."""
    import jax
    import jax.numpy as jnp

    from stablejax import dynamics, parallel
    from stablejax.space import all_pairs

    potential = md_potential(task)
    engine = integrator(potential, task.species)
    num_replicas = len(task.position)
    most = num_devices or len(jax.devices())
    mesh = parallel.replica_mesh(jax.devices()[: np.gcd(num_replicas, most)])
    batch_size = 1 if jax.default_backend() == "cpu" else None
    mapped = partial(parallel.map_replicas, batch_size=batch_size, mesh=mesh)
    start = mapped(lambda prepared, one: dynamics.init_replica(engine, one[0], one[1], prepared))

    def criterion(frame):
        return jnp.max(potential.space.distances(frame.position, all_pairs(len(task.species)))) - 1e3

    @jax.jit
    def run(prepared, replicas, num_steps):
        advance = lambda shared, one: dynamics.advance(engine, criterion, shared, one, one.step + num_steps)  # noqa: E731
        return mapped(advance)(prepared, replicas)

    prepared = jax.jit(potential.prepare)(task.params)
    keys = jax.random.split(jax.random.key(0), num_replicas)
    state = [jax.jit(start)(prepared, (keys, jnp.asarray(task.position, jnp.float32)))]

    def runner(num_steps: int) -> int:
        before = int(state[0].step.sum())
        state[0] = run(prepared, state[0], num_steps)
        return int(state[0].step.sum()) - before

    return runner


def plain(task: Task) -> Runner:
    """Plain use of jax-md: the exact model, one `vmap`, its Nosé–Hoover chain, no criterion.

    In a periodic cell the pairs are those within 5.5 Å in the first replica at the start, constants of the program.
    """
    import jax
    import jax.numpy as jnp
    from ase.data import atomic_masses
    from jax_md import simulate, space

    from experiments.benchmarks.models import build_model, near_pairs
    from stablejax import bind, units

    model = build_model(task.model, task.species)
    potential = bind(model, task.species, space=case_of(task).space, scale=task.scale)
    pairs = None
    if task.cell is not None:
        pairs = jax.tree.map(lambda leaf: leaf[0], near_pairs(case_of(task), 5.5))
    _, shift_fn = space.free()
    init, step = simulate.nvt_nose_hoover(
        lambda position, **_: potential.energy(task.params, position, pairs),
        shift_fn,
        dt=TIMESTEP_FS * units.FEMTOSECOND,
        kT=units.thermal_energy(TEMPERATURE_K),
    )
    mass = jnp.asarray(atomic_masses[task.species], jnp.float32)
    keys = jax.random.split(jax.random.key(0), len(task.position))
    state = [jax.jit(jax.vmap(partial(init, mass=mass)))(keys, jnp.asarray(task.position, jnp.float32))]
    run = jax.jit(lambda state, num_steps: jax.lax.fori_loop(0, num_steps, lambda _, s: jax.vmap(step)(s), state))

    def runner(num_steps: int) -> int:
        state[0] = jax.block_until_ready(run(state[0], num_steps))
        return num_steps * len(task.position)

    return runner


def pyg(task: Task) -> Runner:
    """PyTorch Geometric's SchNet, forces by autograd, replicas in one batch, a Nosé–Hoover thermostat each."""
    import torch
    from ase.data import atomic_masses

    from stablejax import units

    forces = torch_forces(task)
    num_replicas, num_atoms, _ = task.position.shape
    kT, dt = units.thermal_energy(TEMPERATURE_K), TIMESTEP_FS * units.FEMTOSECOND
    rate = 1 / (DAMPING_TIME_FS * units.FEMTOSECOND) ** 2
    mass = torch.tensor(atomic_masses[task.species], dtype=torch.float32)[None, :, None]
    position = torch.tensor(task.position, dtype=torch.float32)
    velocity = torch.randn(position.shape, generator=torch.Generator().manual_seed(0)) * (kT / mass).sqrt()
    friction = torch.zeros(num_replicas, 1, 1)
    force = forces(position)

    def thermostat(velocity, friction):
        kinetic = (mass * velocity**2).sum((1, 2), keepdim=True)
        return friction + 0.5 * dt * rate * (kinetic / (kT * (3 * num_atoms - 6)) - 1)

    def runner(num_steps: int) -> int:
        nonlocal position, velocity, friction, force
        for _ in range(num_steps):
            friction = thermostat(velocity, friction)
            velocity = velocity * torch.exp(-0.5 * dt * friction) + 0.5 * dt * force / mass
            position = position + dt * velocity
            force = forces(position)
            velocity = (velocity + 0.5 * dt * force / mass) * torch.exp(-0.5 * dt * friction)
            friction = thermostat(velocity, friction)
        if not bool(torch.isfinite(position).all()):
            raise ValueError("PyTorch's dynamics gave positions that are not finite.")
        return num_steps * num_replicas

    return runner


def torch_forces(task: Task) -> Callable:
    """`position[replica, atom, 3] -> forces` of PyTorch Geometric's SchNet with the same weights."""
    import torch
    from torch_geometric.nn.models import SchNet

    num_replicas, num_atoms, _ = task.position.shape
    first, second = np.nonzero(~np.eye(num_atoms, dtype=bool))
    offset = num_atoms * np.arange(num_replicas)[:, None]
    edge = torch.tensor(np.stack([(first + offset).reshape(-1), (second + offset).reshape(-1)]))

    def graph(position, _):
        distance = (position[edge[0]] - position[edge[1]]).norm(dim=-1)
        is_near = distance < cutoff
        return edge[:, is_near], distance[is_near]

    cutoff = 5.0
    model = SchNet(
        hidden_channels=64,
        num_filters=64,
        num_interactions=6,
        num_gaussians=25,
        cutoff=cutoff,
        interaction_graph=graph,
    )
    weights = {name: torch.tensor(array) for name, array in to_torch(task.params).items()}
    model.load_state_dict(weights, strict=False)
    model.requires_grad_(False)
    number = torch.tensor(np.tile(task.species, num_replicas).astype(np.int64))
    batch = torch.arange(num_replicas).repeat_interleave(num_atoms)

    def forces(position):
        flat = position.reshape(-1, 3).detach().requires_grad_(True)
        energy = task.scale * model(number, flat, batch).sum()
        return -torch.autograd.grad(energy, flat)[0].reshape(position.shape)

    return forces


def to_torch(params) -> dict[str, np.ndarray]:
    """Our SchNet's parameters under the names of PyTorch Geometric."""
    tree = params["params"]
    pairs = [("readout_in", "lin1"), ("readout_out", "lin2")]
    for block in range(sum(name.startswith("update_") for name in tree)):
        prefix = f"interactions.{block}"
        pairs += [
            (f"filter_in_{block}", f"{prefix}.mlp.0"),
            (f"filter_in_{block}", f"{prefix}.conv.nn.0"),  # its other name
            (f"filter_out_{block}", f"{prefix}.mlp.2"),
            (f"filter_out_{block}", f"{prefix}.conv.nn.2"),
            (f"convolution_in_{block}", f"{prefix}.conv.lin1"),
            (f"convolution_out_{block}", f"{prefix}.conv.lin2"),
            (f"update_{block}", f"{prefix}.lin"),
        ]
    named = {"embedding.weight": tree["embedding"]["embedding"]}
    for ours, theirs in pairs:
        named[f"{theirs}.weight"] = tree[ours]["kernel"].T
        if "bias" in tree[ours]:
            named[f"{theirs}.bias"] = tree[ours]["bias"]
    return {name: np.array(array) for name, array in named.items()}


def matrix(_: Task) -> Runner:
    """Products of float32 matrices of 1,024 on all cores: the rate that the floor is measured against."""
    import jax
    import jax.numpy as jnp

    start = jnp.full((MATRIX, MATRIX), 1 / MATRIX)
    run = jax.jit(lambda n: jax.lax.fori_loop(0, n * NUM_PRODUCTS, lambda _, x: x @ start, start))

    def runner(num_steps: int) -> int:
        jax.block_until_ready(run(num_steps))
        return num_steps

    return runner


METHODS: dict[str, Callable[[Task], Runner]] = {
    "fast": fast,
    "fast_on_one": partial(fast, num_devices=1),
    "plain": plain,
    "pyg": pyg,
    "matrix": matrix,
}
