"""One step of learning by each rule, from the same samples: what it does to failures it has not seen, and elsewhere.

    python -m experiments.benchmarks.steps
    python -m experiments.benchmarks.steps --seed 1 --iterations 8,24

Replicas of a pretrained potential run until half of them have failed, are rewound, and give the samples of one epoch.
Each rule makes its first step from half of the replicas; the other half shows whether the step generalizes. `rise` is
the median change of the energy of frames that violate the criterion of training, over the mean change of frames of
replicas that stayed stable; `spread` is the standard deviation of the change of the latter, which should stay.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from experiments import cli
from experiments.benchmarks import records
from experiments.benchmarks.runs import ROOT


class Half(NamedTuple):
    """Samples of half of the replicas."""

    position: np.ndarray  # [sample, atom, 3] Å
    is_valid: np.ndarray  # [sample]
    is_stable: np.ndarray  # [sample] of a replica that did not fail
    is_failing: np.ndarray  # [sample] violates the criterion of training


def halves(position, is_valid, value, is_unstable) -> tuple[Half, Half]:
    """Every second of the replicas that failed and of those that did not, and the others.

    Args:
      position: [replica, frame, atom, 3] Å.
      is_valid: [replica, frame].
      value: of the criterion, [replica, frame].
      is_unstable: [replica].
    """
    is_first = np.zeros(len(is_unstable), bool)
    for group in (is_unstable, ~is_unstable):
        is_first[np.flatnonzero(group)[::2]] = True

    def half(chosen) -> Half:
        flat = lambda array: array[chosen].reshape(-1, *array.shape[2:])  # noqa: E731
        stable = np.broadcast_to(~is_unstable[:, None], is_valid.shape)
        return Half(flat(position), flat(is_valid), flat(is_valid & stable), flat(is_valid & (value > 0)))

    return half(is_first), half(~is_first)


def rows_of(name: str, seen: Half, unseen: Half, changes: tuple[np.ndarray, np.ndarray]) -> list[dict]:
    """Rows of one rule.

    Args:
      name: of the rule.
      seen: samples that the step was made from.
      unseen: the others.
      changes: of the energies of both, in k_B T.
    """
    rows = []
    for where, half, change in zip(("seen", "unseen"), (seen, unseen), changes, strict=True):
        stable = change[half.is_stable]
        rise = np.median(change[half.is_failing]) - stable.mean()
        about = {"unit": "kT", "rule": name, "replicas": where}
        rows.append({"metric": "rise", "value": float(rise), "frames": int(half.is_failing.sum())} | about)
        rows.append({"metric": "spread", "value": float(stable.std()), "frames": int(half.is_stable.sum())} | about)
    return rows


def sampled(system, settings, params, num_replicas: int, seed: int) -> tuple[Half, Half]:
    """Samples of one epoch of learning, from rewound replicas.

    Args:
      system: what is simulated.
      settings: of StABlE training.
      params: pretrained.
      num_replicas: R.
      seed: of velocities and noise.
    """
    import jax

    from experiments.systems import base
    from stablejax import stable
    from stablejax.simulate import make_engine

    training = stable.build(system.problem, settings, execution=system.execution._replace(donates=False))
    starts = system.data.starts(system.data.split.train, num_replicas)
    state = training.init(base.key_for(seed, "stable"), params, starts)
    while int(state.phase) == stable.SIMULATE:
        state, _ = training.simulate(state)
    engine, learning = make_engine(system.problem, settings.simulation, system.execution), settings.learning

    @jax.jit
    def sample(params, rewound):
        replicas, trajectory = engine.sample(
            engine.prepare(params),
            rewound,
            num_frames=engine.steps_per_epoch // learning.steps_per_frame,
            steps_per_frame=learning.steps_per_frame,
            freeze_above=learning.freeze_above,
        )
        value = jax.vmap(jax.vmap(system.problem.criterion))(trajectory.frame)
        return trajectory.frame.position, trajectory.is_valid, value, replicas.is_unstable

    return halves(*(np.asarray(array) for array in sample(params, state.simulation.rewound)))


def rules_of(system, settings, iterations: list[int]) -> dict[str, Any]:
    """The rules that are compared, by name: those of Equation 7 with the config's Adam and the paper's SGD, and ours.

    Args:
      system: what is trained.
      settings: of StABlE training.
      iterations: of conjugate gradients, a rule each.
    """
    import optax

    from stablejax import natural, updates

    optimization = settings.learning.optimization
    clipped = updates.clipped_sum(optimization.qm_weight, max_norm=optimization.observable_clip_norm)
    paper = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-3))
    rules = {
        "adam": updates.by_optimizer(optimization.optimizer, clipped),
        "paper": updates.by_optimizer(paper, updates.weighted_sum(10.0)),
    }
    for number in iterations:
        region = natural.TrustRegion(num_iterations=number)
        rules[f"natural, {number} iterations"] = natural.natural_gradient(
            system.problem.potential.energy, region, execution=system.execution
        )
    return rules


def gradients_at(system, params, seen: Half) -> tuple[Any, Any]:
    """Both losses with their gradients, and what the rules are given: `updates.Evaluated` and `updates.Seen`.

    Args:
      system: what is trained.
      params: pretrained.
      seen: samples that the gradient of the observables is of.
    """
    import jax
    import jax.numpy as jnp

    from stablejax.boltzmann import boltzmann_value_and_grad
    from stablejax.losses import observable_loss
    from stablejax.types import Frame
    from stablejax.updates import Evaluated, Seen

    problem, observables = system.problem, system.problem.observables
    value_and_grad = boltzmann_value_and_grad(
        observable_loss(observables.reference, observables.weight),
        problem.energies(),
        observables.fn,
        kT=problem.kT,
        chunk_size=system.execution.chunk_size,
    )
    frames = system.data.labeled(system.data.split.train)
    samples, is_valid = Frame(jnp.asarray(seen.position)), jnp.asarray(seen.is_valid)
    loss, gradient = jax.jit(lambda p, samples, mask: value_and_grad(p, samples, mask=mask))(params, samples, is_valid)
    (qm_loss, errors), qm_gradient = jax.jit(jax.value_and_grad(problem.qm_loss(), has_aux=True))(params, frames)
    evaluated = Evaluated(loss, gradient, qm_loss, errors, qm_gradient, jnp.bool(True))
    return evaluated, Seen(samples, is_valid, jnp.asarray(seen.is_stable), frames)


def compare(system, settings, params, both: tuple[Half, Half], iterations: list[int]) -> list[dict]:
    """Rows of all rules.

    Args:
      system: what is trained.
      settings: of StABlE training.
      params: pretrained.
      both: samples that steps are made from, and others.
      iterations: see `rules_of`.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from experiments.stages import evaluate

    problem, test = system.problem, system.data.split.test
    evaluated, given = gradients_at(system, params, both[0])

    @jax.jit
    def energies(params, position):
        one = lambda x: problem.potential.energy(params, x)  # noqa: E731
        return jax.lax.map(one, position, batch_size=system.execution.chunk_size)

    first = [np.asarray(energies(params, half.position)) for half in both]
    first_errors = evaluate.label_errors(system, params, test)
    rows = []
    for name, rule in rules_of(system, settings, iterations).items():
        step = jax.jit(rule.step)(rule.init(params), params, evaluated, given, jnp.float32(1))
        moved = optax.apply_updates(params, step.change)
        now = [np.asarray(energies(moved, half.position)) for half in both]
        seen, unseen = ((after - before) / problem.kT for before, after in zip(first, now, strict=True))
        rows += rows_of(name, *both, (seen, unseen))
        errors = evaluate.label_errors(system, moved, test)
        for metric in ("force_mae", "energy_mae"):
            change = float(getattr(errors, metric) / getattr(first_errors, metric) - 1)
            rows.append({"metric": f"held_out_{metric}_change", "value": change, "rule": name})
        records.show(rows, rule=name)
    return rows


def main() -> None:
    """Pretrain, sample, compare, and write the record."""
    parser = records.parser(__doc__ or "")
    parser.set_defaults(json=ROOT / "experiments" / "results" / "steps.json")
    parser.add_argument("--seed", type=int, default=0, help="of the experiment")
    parser.add_argument("--iterations", type=records.numbers, default=[3, 8, 24], help="of conjugate gradients")
    given = parser.parse_args()
    cli.configure(host_devices=0)

    from experiments import systems
    from experiments.configs import aspirin
    from experiments.progress import Progress
    from experiments.stages import pretrain, stabilize

    config = aspirin.get_config()
    config.seed = given.seed
    config.stable.steps_per_frame = 50  # more frames, so that more of them violate the criterion
    system = systems.build(config)
    params = pretrain.run_pretraining(pretrain.settings_of(config), system, Progress(ROOT / "unused", is_silent=True))
    settings = stabilize.settings_of(config, system)
    both = sampled(system, settings, params, config.stable.num_replicas, config.seed)
    rows = compare(system, settings, params, both, given.iterations)
    records.keep(given, "benchmarks.steps", rows)


if __name__ == "__main__":
    main()
