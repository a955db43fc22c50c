"""Constraints on the numbers of a config, checked before anything is computed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.configs import aspirin_paper, water_paper


class Constraint(NamedTuple):
    """What a field has to be."""

    is_met: Callable[[float], bool]
    words: str  # after "has to be"


COUNT = Constraint(lambda x: x >= 1, "at least 1")
COUNT_OR_NONE = Constraint(lambda x: x >= 0, "at least 0")
POSITIVE = Constraint(lambda x: 0 < x < math.inf, "above 0 and finite")
NOT_NEGATIVE = Constraint(lambda x: 0 <= x < math.inf, "at least 0 and finite")
FRACTION = Constraint(lambda x: 0 <= x <= 1, "from 0 to 1")
FACTOR = Constraint(lambda x: 0 < x <= 1, "above 0 and at most 1")
SMALLER = Constraint(lambda x: 0 < x < 1, "above 0 and below 1")
AT_LEAST_1 = Constraint(lambda x: 1 <= x < math.inf, "at least 1 and finite")
DECAY = Constraint(lambda x: 0 <= x < 1, "at least 0 and below 1")

CONSTRAINTS: dict[str, Constraint] = {
    name: constraint
    for constraint, names in (
        (
            COUNT,
            (
                "data.num_train data.num_validation data.num_test pretrain.num_steps pretrain.batch_size "
                "pretrain.plateau_patience pretrain.steps_per_validation stable.num_replicas stable.steps_per_epoch "
                "stable.steps_per_frame stable.num_cycles stable.max_epochs stable.max_updates stable.max_rounds "
                "stable.plateau_patience stable.qm_batch_size stable.num_iterations stable.anchor_atoms "
                "evaluate.num_replicas observable.molecules_per_neighborhood observable.per_bin "
                "model.num_features model.num_filters model.num_blocks model.num_gaussians model.num_layers "
                "model.num_basis model.radial_width model.atom_size model.edge_size model.triplet_size "
                "model.bilinear_size model.num_spherical model.num_radial"
            ),
        ),
        (
            COUNT_OR_NONE,
            (
                "seed host_devices cluster.num_processes cluster.process data.num_reference md.table_intervals "
                "md.replica_batch stable.max_rollbacks stable.max_failures stable.jackknife_blocks "
                "stable.buffer_epochs evaluate.max_failures evaluate.trajectory "
                "stable.estimator_chunk observable.num_bins "
                "model.max_degree"
            ),
        ),
        (
            POSITIVE,
            (
                "data.max_gigabytes pretrain.learning_rate pretrain.clip_norm md.temperature_K md.timestep_fs "
                "md.damping_time_fs md.skin_A stable.learning_rate stable.max_change stable.max_qm_loss stable.damping "
                "stable.temperature_ratio "
                "stable.max_simulation_ps "
                "stability.train_threshold_A stability.learn_threshold_A stability.evaluate_threshold_A "
                "stability.evaluate_threshold "
                "stability.window_ps stability.look_fs stability.bond_threshold_A observable.stop_A observable.width_A "
                "observable.smearing_A observable.violation_width_A observable.distance_stop_A "
                "observable.distance_width_A evaluate.horizon_ps evaluate.frame_spacing_fs evaluate.chunk_ps "
                "evaluate.vacf_window_fs evaluate.displacement_ps "
                "evaluate.green_kubo_ps model.cutoff_A"
            ),
        ),
        (
            NOT_NEGATIVE,
            (
                "pretrain.energy_weight pretrain.force_weight stable.observable_clip_norm stable.clip_norm "
                "stable.qm_weight stable.wanted_signal_to_noise observable.weight observable.bond_weight "
                "observable.length_weight observable.distance_weight observable.violation_weight "
                "stability.range_margin_A pretrain.weight_decay pretrain.position_noise_A "
                "evaluate.diffusion_from_ps "
                "stable.target_ratio stable.max_held_out_error stable.max_minutes evaluate.horizon_ratio"
            ),
        ),
        (FRACTION, "stable.min_unstable stable.min_effective_fraction pretrain.min_rate_scale stable.min_rate_scale"),
        (FACTOR, "stable.max_unstable stable.cycle_factor pretrain.plateau_factor stable.plateau_factor"),
        (DECAY, "pretrain.average_decay"),
        (AT_LEAST_1, "md.spare_pairs stable.max_force_error"),
        (SMALLER, "stable.rollback_rate_factor"),
    )
    for name in names.split()
}
"""Of every field that is a number, in any of the configs."""


def check(config: ConfigDict) -> None:
    """Refuse fields that nothing reads, values out of range, and fields that do not fit each other.

    Raises:
      ValueError: a line for each field that is wrong.
    """
    values = dict(fields(config))
    known = {name for paper in (aspirin_paper, water_paper) for name, _ in fields(paper.get_config())}
    # Sizes of a model are checked by the model.
    wrong = [
        f"config has no field {name}: {advice(name, sorted(known))}"
        for name in values
        if name not in known and not name.startswith("model.")
    ]
    wrong += [
        f"config.{name} has to be {CONSTRAINTS[name].words}, got {value!r}."
        for name, value in values.items()
        if name in CONSTRAINTS and value is not None and not CONSTRAINTS[name].is_met(value)
    ]
    # Relations of fields that are out of range themselves would say the same twice.
    wrong += _name(config.name) + ([] if wrong else _relations(values))
    if wrong:
        raise ValueError("\n".join(wrong))


def fields(section: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names, with dots, and values of all fields.

    Args:
      section: of a config.
      prefix: of the names.
    """
    for name, value in section.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def advice(name: str, known: list[str]) -> str:
    """What may have been meant: the nearest field, or the one of that name in another section.

    Args:
      name: that no field has.
      known: names of fields.
    """
    in_another = [field for field in known if field.rpartition(".")[2] == name.rpartition(".")[2]]
    nearest = difflib.get_close_matches(name, known, n=1) or in_another
    return f"did you mean config.{nearest[0]}?" if nearest else "see experiments/configs/common.py."


def _name(name: str | None) -> list[str]:
    if name is None or name not in ("", ".", "..") and name == PurePosixPath(name).name == PureWindowsPath(name).name:
        return []
    return [f"config.name has to be the name of a folder in runs/, without a path, got {name!r}: see config.run_dir."]


def _relations(values: dict[str, Any]) -> list[str]:
    wrong = []
    epoch, stride = values["stable.steps_per_epoch"], values["stable.steps_per_frame"]
    if epoch % stride:
        wrong.append(
            f"config.stable.steps_per_frame has to divide config.stable.steps_per_epoch = {epoch}, got {stride}."
        )
    chunk_ps, horizon_ps = values["evaluate.chunk_ps"], values["evaluate.horizon_ps"]
    if horizon_ps < chunk_ps * (1 - 1e-6):
        wrong.append(
            f"config.evaluate.horizon_ps has to be at least config.evaluate.chunk_ps = {chunk_ps:g}, "
            f"got {horizon_ps:g}."
        )
    # A chunk has frames at 1, 2, … spacings, so that its largest lag is one spacing shorter.
    longest_fs = 1000 * chunk_ps - values["evaluate.frame_spacing_fs"]
    windows = {"vacf_window_fs": 1.0, "displacement_ps": 1000.0, "green_kubo_ps": 1000.0}
    for name, factor in windows.items():
        window = values.get(f"evaluate.{name}", 0.0)
        if window * factor > longest_fs + 1e-6 * 1000 * chunk_ps:
            wrong.append(
                f"config.evaluate.{name} has to be at most {longest_fs / factor:g}, config.evaluate.chunk_ps less one "
                f"config.evaluate.frame_spacing_fs, got {window:g}."
            )
    if (num := values["cluster.num_processes"]) > 1 and values["stable.max_minutes"]:
        wrong.append(
            f"config.stable.max_minutes has to be 0 where config.cluster.num_processes is {num}, whose clocks differ, "
            f"got {values['stable.max_minutes']:g}."
        )
    return wrong
