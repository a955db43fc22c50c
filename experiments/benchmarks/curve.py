"""Stability against held-out error as training goes on: natural steps, Adam, the paper's SGD, and supervised training.

    python -m experiments.benchmarks.curve
    python -m experiments.benchmarks.curve --arms=natural,adam --cycles=2
    python -m experiments.benchmarks.curve --draw

All arms begin with the same potential of aspirin and have the recipe's criterion, observables and searches, so that
only the rule of the steps differs; `paper` has the paper's criterion and observables, too. After every learning phase
the parameters are evaluated on held-out frames and from held-out starts; `averaged` is the exponential average of the
parameters of the natural arm. `pretraining` is supervised training of several lengths. The record keeps the arms that
are not asked for. `--draw` draws the figure of the record, and runs nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments import cli, progress
from experiments.benchmarks import panel, records
from experiments.benchmarks.runs import ROOT

RESULTS = ROOT / "experiments" / "results"
AVERAGE_DECAY = 0.7
"""Of the averaged parameters, per epoch: some three of them count."""

ADAM: dict[str, Any] = {
    "stable.optimizer": "adam",
    "stable.learning_rate": 1e-4,
    "stable.qm_weight": 10.0,
    "stable.observable_clip_norm": 15.0,
}
ARMS: dict[str, dict[str, Any]] = {
    "natural": {},
    "natural, half the change": {"stable.max_change": 0.15},
    "natural, samples reused": {"stable.max_updates": 2},
    "natural, samples of two epochs": {"stable.buffer_epochs": 1},
    "adam": ADAM,
    "adam, half the rate": ADAM | {"stable.learning_rate": 5e-5},
    "paper": panel.paper_settings("aspirin"),
}
"""Fields of the config that differ from the recipe's."""
NATURAL, AVERAGED, PRETRAINING = "natural", "averaged", "pretraining"
LENGTHS = (500, 2000, 4000)
"""Steps of pretraining, besides those of the recipe."""


class Point(NamedTuple):
    """Parameters on a curve."""

    arm: str
    amount: int  # epochs of learning, or steps of pretraining
    params: Any


def refined(config, params, arm: str, num_cycles: int) -> Iterator[Point]:
    """The parameters after every learning phase, and their average.

    Args:
      config: of the experiment.
      params: pretrained.
      arm: of `ARMS`.
      num_cycles: the most of them.
    """
    import jax
    import optax

    from experiments import systems
    from experiments.stages import stabilize

    config = config.copy_and_resolve_references()
    # All parameters on the way are wanted, not the best.
    every: dict[str, Any] = {"stable.returns_best": False, "stable.target_ratio": 0.0, "stable.num_cycles": num_cycles}
    every["stable.max_held_out_error"] = 0.0
    config.update_from_flattened_dict(ARMS[arm] | every)
    system = systems.build(config)
    settings = stabilize.settings_of(config, system)
    average, found, num_epochs = params, list[Point](), 0

    def save(state, course: list[dict], _) -> None:
        nonlocal average, num_epochs
        if course[-1]["phase"] != "learning":
            return
        num_epochs += 1
        average = optax.incremental_update(state.params, average, 1 - AVERAGE_DECAY)
        if int(state.cycle) > course[-1]["cycle"]:
            found.append(Point(arm, num_epochs, jax.device_get(state.params)))
            if arm == NATURAL:
                found.append(Point(AVERAGED, num_epochs, jax.device_get(average)))

    state = stabilize.start(settings, system, params, num_replicas=config.stable.num_replicas)
    stabilize.run_stable(settings, system, state, [], save, progress.silent("curve"))
    yield from found


def pretrained(config, system, num_steps: int) -> Point:
    """Parameters of supervised training.

    Args:
      config: of the experiment.
      system: that is trained.
      num_steps: of the optimizer.
    """
    from experiments.stages import pretrain

    settings = pretrain.settings_of(config)._replace(num_steps=num_steps)
    return Point(PRETRAINING, num_steps, pretrain.run_pretraining(settings, system, progress.silent("curve")))


def rows_of(evaluator, point: Point) -> list[dict]:
    """What is plotted of some parameters.

    Args:
      evaluator: from `evaluate.build`.
      point: on a curve.
    """
    from experiments import provenance
    from experiments.report.record import median_row
    from experiments.stages import evaluate

    found, _ = evaluate.run_evaluation(evaluator, point.params, progress.silent("curve"))
    about = {"arm": point.arm, "amount": point.amount, "commit": provenance.about()["commit"]}
    rows: list[dict] = [
        {"metric": "force_mae_eV_per_A", "value": float(found.force_mae), "unit": "eV/Å"},
        {"metric": "energy_mae_eV", "value": float(found.energy_mae), "unit": "eV"},
        median_row("after", found),
        {"metric": "fraction_unstable_at_horizon", "value": float(found.is_unstable.mean())},
        {"metric": "internal_temperature_K", "value": float(found.averages.temperature_K), "unit": "K"},
    ]
    return [row | about for row in rows]


def draw(rows: list[dict], path: Path) -> None:
    """The median stable time against the force error, a line for each arm.

    Args:
      rows: of the record.
      path: of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    for arm, marker in zip(dict.fromkeys(row["arm"] for row in rows), itertools.cycle("osD^vXP*"), strict=False):
        by_amount: dict[int, dict[str, dict]] = {}
        for row in rows:
            if row["arm"] == arm:
                by_amount.setdefault(row["amount"], {})[row["metric"]] = row
        points = [by_amount[amount] for amount in sorted(by_amount)]
        error = [1000 * point["force_mae_eV_per_A"]["value"] for point in points]
        median = [point["median_first_passage_ps"] for point in points]
        time = [row["value"] for row in median]
        low = [row["value"] - row["low"] for row in median]
        high = [(row["high"] or row["horizon_ps"]) - row["value"] for row in median]
        line = axis.errorbar(error, time, (low, high), marker=marker, capsize=3, linewidth=1, label=arm)
        beyond = [index for index, row in enumerate(median) if row["censored"]]
        axis.plot(
            *([some[index] for index in beyond] for some in (error, time)),
            **{"marker": "^", "linestyle": "", "markersize": 14, "fillstyle": "none", "color": line[0].get_color()},
        )
    axis.set(xlabel="force MAE of held-out frames (meV/Å)", ylabel="median stable time (ps)", yscale="log")
    axis.legend(title="large triangles: at least")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def others(path: Path, arms: set[str]) -> list[dict]:
    """Rows of a record that are of other arms.

    Args:
      path: of the record.
      arms: that are measured again.
    """
    return records.others(path, lambda row: row["arm"] in arms)


def main() -> None:
    """Pretrain, refine and evaluate; the record is written after every arm."""
    parser = records.parser(__doc__ or "")
    parser.set_defaults(json=RESULTS / "curve.json")
    parser.add_argument("--arms", type=records.names((*ARMS, PRETRAINING)), default=[*ARMS, PRETRAINING], help="some")
    parser.add_argument("--cycles", type=int, default=4, help="of searches and learning phases")
    parser.add_argument("--seed", type=int, default=0, help="of the experiment")
    parser.add_argument("--horizon_ps", type=float, default=20.0, help="of the evaluations")
    parser.add_argument("--draw", action="store_true", help="draw the figure of the record, and run nothing")
    given = parser.parse_args()
    if not given.draw:
        cli.configure(host_devices=0)
        run(given)
    draw(json.loads(given.json.read_text())["rows"], given.json.with_suffix(".png"))


def run(given: argparse.Namespace) -> None:
    """Every arm that is asked for.

    Args:
      given: command line.
    """
    from experiments import systems
    from experiments.configs import aspirin
    from experiments.stages import evaluate

    config = aspirin.get_config()
    config.seed, config.evaluate.horizon_ps = given.seed, given.horizon_ps
    system = systems.build(config)
    evaluator = evaluate.build(evaluate.schedule_of(config), system)
    start = pretrained(config, system, config.pretrain.num_steps)

    def points_of(arm: str) -> Iterator[Point]:
        if arm != PRETRAINING:
            yield from refined(config, start.params, arm, given.cycles)
            return
        yield start
        for num_steps in LENGTHS:
            yield pretrained(config, system, num_steps)

    for arm in given.arms:
        rows = list[dict]()
        for point in points_of(arm):
            new = rows_of(evaluator, point)
            records.show(new)
            rows += new
        records.keep(given, "benchmarks.curve", others(given.json, {row["arm"] for row in rows}) + rows)


if __name__ == "__main__":
    main()
