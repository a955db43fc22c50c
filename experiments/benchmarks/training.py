"""Force error against time, for each model trained on the same frames for the same CPU time.

    python -m experiments.benchmarks.training --data md17_aspirin.npz --energy_unit kcal/mol
    python -m experiments.benchmarks.training --data md17_aspirin.npz --energy_unit kcal/mol --models schnet --minutes 1

Sizes are the paper's; the rate is constant, and the moving average of the parameters is evaluated. CPU time is
that of all threads, without compilation and validation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import cli
from experiments.benchmarks import records


class Settings(NamedTuple):
    """How a model is trained here."""

    learning_rate: float
    batch_size: int
    steps_per_validation: int


SETTINGS = {
    "schnet": Settings(learning_rate=1e-3, batch_size=10, steps_per_validation=100),
    "nequip": Settings(learning_rate=5e-3, batch_size=4, steps_per_validation=50),
    "gemnet": Settings(learning_rate=5e-4, batch_size=4, steps_per_validation=10),
}


def build_model(name: str, dataset, key):
    """A model of the paper's size; the scale factors of GemNet-T are fitted to frames of the data."""
    from experiments import architectures
    from stablejax import GemNetT, NequIP, SchNet
    from stablejax.models.gemnet import with_fitted_scales

    elements = tuple(np.unique(dataset.species).tolist())
    makers: dict[str, Callable] = {
        "schnet": SchNet,
        "nequip": lambda: NequIP(elements, num_neighbors=len(dataset.species) - 1.0),
        "gemnet": lambda: with_fitted_scales(GemNetT(), architectures.model_data(dataset, key)),
    }
    return makers[name]()


def train(name: str, config, minutes: float) -> list[dict]:
    """Rows of one model: force MAE of held-out frames during training."""
    import jax

    from experiments import systems
    from experiments.stages import pretrain
    from experiments.systems import base

    settings = SETTINGS[name]
    config = config.copy_and_resolve_references()
    config.pretrain.schedule, config.pretrain.num_steps = "constant", 0
    config.pretrain.learning_rate, config.pretrain.batch_size = settings.learning_rate, settings.batch_size
    key = base.key_for(config.seed, "model")
    system = systems.build(config, make_model=lambda _, dataset, key: build_model(name, dataset, key))
    init, run = pretrain.build(pretrain.settings_of(config), system)
    validate = jax.jit(system.problem.qm_loss())
    train_set, held_out = (system.data.labeled(index) for index in system.data.split[:2])
    state = init(jax.jit(system.problem.potential.init)(key))
    rng = np.random.default_rng([config.seed, 0])

    def advance(state):
        batches = pretrain.batches(rng, len(train_set.energy), settings.steps_per_validation, settings.batch_size)
        return jax.block_until_ready(run(state, train_set, batches)[0])

    advance(state)  # compiles
    rows: list[dict] = []
    num_frames, spent = 0, 0.0
    while spent < 60 * minutes:
        begun = time.process_time()
        state = advance(state)
        spent += time.process_time() - begun
        num_frames += settings.steps_per_validation * settings.batch_size
        error = float(validate(state.average_params, held_out)[1].force_mae)
        where = {"model": name, "cpu_s": spent, "frames": num_frames}
        rows.append({"metric": "force_mae_eV_per_A", "value": error, "unit": "eV/Å", **where})
        records.show(rows[-1:])
    return rows


def main() -> None:
    """Run and write the record."""
    from experiments.configs import aspirin_paper

    parser = records.parser(__doc__ or "")
    parser.add_argument("--data", type=Path, required=True, help="npz or extended XYZ of one molecule")
    parser.add_argument("--energy_unit", required=True, help="eV, kcal/mol or hartree")
    parser.add_argument("--num_train", type=int, default=1000, help="frames trained on")
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU minutes for each model")
    parser.add_argument("--models", type=records.names(tuple(SETTINGS)), default=list(SETTINGS), help="comma-separated")
    given = parser.parse_args()
    cli.configure(host_devices=0)
    config = aspirin_paper.get_config()
    config.data.path, config.data.energy_unit = str(given.data), given.energy_unit
    config.data.num_train, config.data.num_validation, config.data.num_test = given.num_train, 100, 1
    rows = [row for name in given.models for row in train(name, config, given.minutes)]
    given.data = given.data.name
    records.keep(given, "benchmarks.training", rows)


if __name__ == "__main__":
    main()
