"""The facts in the report of an experiment, independent of its config and its system."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.data.sources import without_folders
from experiments.stages.evaluate import Evaluation
from experiments.systems.base import Measure, Profile, System


class Facts(NamedTuple):
    """What was run and how it was evaluated."""

    name: str
    seed: int
    config: dict[str, Any]  # without paths on this machine
    num_atoms: int
    num_frames: int  # of the data set; curves are compared with means over all of them
    num_reference: int  # of these, frames of the references of training; none is held out for the test
    energy_offset_eV: float  # mean energy of the training frames; energies of the potential are relative to it
    num_train_replicas: int
    num_replicas: int  # of an evaluation
    frame_spacing_fs: float
    fit_ps: tuple[float, float] | None  # displacements are linear in between; None: molecules do not diffuse
    train_criterion_name: str
    criterion_name: str  # of an evaluation
    structure_reference: dict[str, np.ndarray]
    profiles: dict[str, Profile]  # by name of the structure
    measures: tuple[Measure, ...]
    mean_force: float  # absolute component, of the test frames, eV/Å


class Runs(NamedTuple):
    """What was measured."""

    before: Evaluation
    after: Evaluation
    reference_motion: dict[str, np.ndarray]  # [window, lag]


def facts_of(config: ConfigDict, system: System) -> Facts:
    """The facts in the report of an experiment.

    Args:
      config: of the experiment.
      system: of the config.
    """
    data, evaluation, settings = system.data, system.evaluation, config.evaluate
    has_fit = "diffusion_from_ps" in settings
    return Facts(
        name=config.name,
        seed=config.seed,
        config=_public(config),
        num_atoms=len(data.dataset.species),
        num_frames=len(data.dataset.position),
        num_reference=len(data.reference),
        energy_offset_eV=data.offset,
        num_train_replicas=config.stable.num_replicas,
        num_replicas=settings.num_replicas,
        frame_spacing_fs=settings.frame_spacing_fs,
        fit_ps=(settings.diffusion_from_ps, settings.displacement_ps) if has_fit else None,
        train_criterion_name=system.train_criterion_name,
        criterion_name=evaluation.criterion_name,
        structure_reference=evaluation.structure_reference,
        profiles=evaluation.profiles,
        measures=evaluation.measures,
        mean_force=data.mean_force,
    )


def _public(config: ConfigDict) -> dict[str, Any]:
    public = config.copy_and_resolve_references()
    with public.unlocked():
        del public.run_dir
        public.data.path = without_folders(public.data.path)
    return public.to_dict()
