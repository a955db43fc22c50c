"""One step of learning by each rule and from each signal: what it does to failures it has not seen, and elsewhere.

    python -m experiments.benchmarks.steps
    python -m experiments.benchmarks.steps --systems=aspirin --seed=1 --iterations=8,24

Replicas of a pretrained potential run until enough of them have failed, are rewound, and give the samples of one epoch.
Each step is made from half of the replicas; the other half shows whether it generalizes. `rise` is the median change of
the energy of frames that violate the criterion of training, over the mean change of frames of replicas that stayed
stable; `spread` is the standard deviation of the change of the latter, which should stay.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from experiments import cli, progress
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


def sampled(system, settings, params, num_replicas: int) -> tuple[Half, Half]:
    """Samples of one epoch of learning, from rewound replicas.

    Args:
      system: what is simulated.
      settings: of StABlE training.
      params: pretrained.
      num_replicas: R.
    """
    import jax

    from experiments.stages import stabilize
    from stablejax import stable
    from stablejax.simulate import make_engine

    training = stable.build(system.problem, settings, execution=system.execution._replace(donates=False))
    state = stabilize.start(settings, system, params, num_replicas=num_replicas, training=training)
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


def rules_of(system, iterations: list[int]) -> dict[str, Any]:
    """The rules that are compared, by name: Adam and the paper's SGD on the sum of Equation 7, and ours.

    Args:
      system: what is trained.
      iterations: of conjugate gradients, a rule each.
    """
    import optax

    from stablejax import natural, updates

    clip = optax.clip_by_global_norm(1.0)
    clipped = updates.clipped_sum(QM_WEIGHT, max_norm=15.0)
    rules = {
        "adam": updates.by_optimizer(optax.chain(clip, optax.adam(1e-4)), clipped),
        "paper": updates.by_optimizer(optax.chain(clip, optax.sgd(1e-3)), updates.weighted_sum(QM_WEIGHT)),
    }
    for number in iterations:
        region = natural.TrustRegion(num_iterations=number)
        rules[f"natural, {number} iterations"] = natural.natural_gradient(
            system.problem.potential.energy, region, execution=system.execution
        )
    return rules


QM_WEIGHT = 10.0
"""λ of Equation 7."""
SIGNALS: dict[str, dict[str, Any]] = {
    "violation": {"observable.violation_weight": 1.0},
    "h(r)": {"observable.weight": 1.0},
    "h(r) by element": {"observable.weight": 1.0, "observable.by_element": True},
    "h(r) by element and separation": {
        "observable.weight": 1.0,
        "observable.by_element": True,
        "observable.by_separation": True,
    },
    "bond variances": {"observable.bond_weight": 1.0},
    "bond angles": {"observable.others": "bond_angles=1"},
    "bond lengths": {"observable.length_weight": 1.0},
    "smallest distance": {"observable.distance_weight": 1.0},
}
"""Observables, by fields of the config; each in units of its fluctuations in the reference."""
NOTHING: dict[str, Any] = {
    "observable.violation_weight": 0.0,
    "observable.weight": 0.0,
    "observable.bond_weight": 0.0,
    "observable.others": "",
    "observable.length_weight": 0.0,
    "observable.distance_weight": 0.0,
}
ENTROPY = "relative entropy"


def problems_of(config) -> dict[str, Any]:
    """The problem with each signal that the system has, by its name.

    Args:
      config: of the experiment.
    """
    from experiments import systems
    from experiments.configs import check

    known, found = {name for name, _ in check.fields(config)}, {}
    for name, fields in SIGNALS.items():
        if not fields.keys() <= known:
            continue
        one = config.copy_and_resolve_references()
        one.update_from_flattened_dict({field: value for field, value in NOTHING.items() if field in known} | fields)
        found[name] = systems.build(one).problem
    return found


def evaluated(problem, system, params, seen: Half) -> tuple[Any, Any]:
    """Both losses with their gradients, and what the rules are given: `updates.Evaluated` and `updates.Seen`.

    Args:
      problem: with its observables.
      system: what is trained.
      params: pretrained.
      seen: samples that the gradient of the observables is of.
    """
    import jax
    import jax.numpy as jnp

    from stablejax.boltzmann import boltzmann_value_and_grad
    from stablejax.losses import observable_loss
    from stablejax.neighborhoods import balanced_subsample
    from stablejax.types import Frame

    value_and_grad = boltzmann_value_and_grad(
        observable_loss(problem.observables.reference, problem.observables.weight),
        problem.energies(),
        problem.observables.fn,
        kT=problem.kT,
        chunk_size=system.execution.chunk_size,
    )
    samples, is_valid = Frame(jnp.asarray(seen.position)), jnp.asarray(seen.is_valid)
    counted: Any = is_valid
    if problem.subsample is not None:
        value_fn, num_bins, per_bin = problem.subsample
        value = jax.jit(jax.vmap(value_fn))(samples)
        everywhere = jnp.broadcast_to(is_valid[:, None], value.shape)
        counted, _ = balanced_subsample(jax.random.key(0), value, everywhere, num_bins=num_bins, per_bin=per_bin)
    loss, gradient = jax.jit(lambda p, samples, mask: value_and_grad(p, samples, mask=mask))(params, samples, counted)
    return with_static(system, params, samples, counted, seen, loss, gradient)


def relative_entropy(system, params, seen: Half) -> tuple[Any, Any]:
    """The same for the relative entropy to the reference, ∇ = β (⟨∂U⟩_ref − ⟨∂U⟩_θ) (Shell 2008), up to a constant.

    Args:
      system: what is trained.
      params: pretrained.
      seen: samples of the potential.
    """
    import jax
    import jax.numpy as jnp

    from stablejax.reweighting import sample_energies
    from stablejax.types import Frame

    problem, reference = system.problem, system.data.reference_position
    chosen = jnp.asarray(reference[np.linspace(0, len(reference) - 1, len(seen.position)).astype(int)])
    samples, is_valid = Frame(jnp.asarray(seen.position)), jnp.asarray(seen.is_valid)
    energies = sample_energies(problem.potential.energy, chunk_size=system.execution.chunk_size)

    def loss_fn(params):
        of_samples = energies(params, samples.position)
        mean = jnp.sum(jnp.where(is_valid, of_samples, 0)) / jnp.sum(is_valid)
        return (jnp.mean(energies(params, chosen)) - mean) / problem.kT

    loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(params)
    return with_static(system, params, samples, is_valid, seen, loss, gradient)


def with_static(system, params, samples, mask, seen: Half, loss, gradient) -> tuple[Any, Any]:
    """A loss of samples and its gradient, with those of the static data set."""
    import jax
    import jax.numpy as jnp

    from stablejax.updates import Evaluated, Seen

    frames = system.data.labeled(system.data.split.train)
    (qm_loss, errors), qm_gradient = jax.jit(jax.value_and_grad(system.problem.qm_loss(), has_aux=True))(params, frames)
    both = Evaluated(loss, gradient, qm_loss, errors, qm_gradient, jnp.bool(True))
    return both, Seen(samples, mask, jnp.asarray(seen.is_stable), frames)


class Comparison:
    """Steps from one set of samples of a system, and what they do."""

    def __init__(self, system, params, both: tuple[Half, Half]):
        import jax

        from experiments.stages import evaluate
        from stablejax.reweighting import sample_energies

        self._system, self._params, self._both = system, params, both
        energies = sample_energies(system.problem.potential.energy, chunk_size=system.execution.chunk_size)
        self._energies = jax.jit(energies)
        self._first = [np.asarray(self._energies(params, half.position)) for half in both]
        self._first_errors = evaluate.label_errors(system, params, system.data.split.test)

    def rows(self, rule, name: str, given: tuple[Any, Any]) -> list[dict]:
        """Of one step.

        Args:
          rule: that makes it.
          name: of the rule or the signal.
          given: losses with gradients, and samples.
        """
        import jax
        import jax.numpy as jnp
        import optax

        from experiments.stages import evaluate

        system, params = self._system, self._params
        step = jax.jit(rule.step)(rule.init(params), params, *given, jnp.float32(1))
        moved = optax.apply_updates(params, step.change)
        now = [np.asarray(self._energies(moved, half.position)) for half in self._both]
        seen, unseen = ((after - before) / system.problem.kT for before, after in zip(self._first, now, strict=True))
        rows = rows_of(name, *self._both, (seen, unseen))
        errors = evaluate.label_errors(system, moved, system.data.split.test)
        for metric in ("force_mae", "energy_mae"):
            change = float(getattr(errors, metric) / getattr(self._first_errors, metric) - 1)
            rows.append({"metric": f"held_out_{metric}_change", "value": change, "rule": name})
        return rows


def compare(config, iterations: list[int]) -> list[dict]:
    """Rows of all rules with the system's own observables, and of all signals with the last rule.

    Args:
      config: of the experiment.
      iterations: see `rules_of`.
    """
    from experiments import systems
    from experiments.stages import pretrain, stabilize

    system = systems.build(config)
    params = pretrain.run_pretraining(pretrain.settings_of(config), system, progress.silent("steps"))
    both = sampled(system, stabilize.settings_of(config, system), params, config.stable.num_replicas)
    comparison, rules, rows = Comparison(system, params, both), rules_of(system, iterations), []

    def add(rule, name: str, kind: str, given) -> None:
        about = {"system": config.name, "kind": kind}
        found = [row | about for row in comparison.rows(rule, name, given)]
        records.show(found, rule=name)
        rows.extend(found)

    for name, rule in rules.items():
        add(rule, name, "rule", evaluated(system.problem, system, params, both[0]))
    last = list(rules.values())[-1]
    for name, problem in problems_of(config).items():
        add(last, name, "signal", evaluated(problem, system, params, both[0]))
    add(last, ENTROPY, "signal", relative_entropy(system, params, both[0]))
    return rows


def main() -> None:
    """Pretrain, sample, compare, and write the record."""
    parser = records.parser(__doc__ or "")
    parser.set_defaults(json=ROOT / "experiments" / "results" / "steps.json")
    known = ("aspirin", "ac_ala3_nhme", "water")
    parser.add_argument("--systems", type=records.names(known), default=list(known), help="whose defaults are compared")
    parser.add_argument("--seed", type=int, default=0, help="of the experiment")
    parser.add_argument("--iterations", type=records.numbers, default=[8, 40], help="of conjugate gradients")
    given = parser.parse_args()
    cli.configure(host_devices=0)

    from importlib import import_module

    rows = []
    for name in given.systems:
        config = import_module(f"experiments.configs.{name}").get_config()
        config.seed = given.seed
        rows += compare(config, given.iterations)
        records.keep(given, "benchmarks.steps", rows)


if __name__ == "__main__":
    main()
