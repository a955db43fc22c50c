"""The peptide at the smallest size: NequIP in the whole experiment, and its backbone in record and page."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pipeline, systems
from experiments.configs import ac_ala3_nhme as peptide_config
from experiments.configs import ac_ala3_nhme_paper
from stablejax.models.nequip import NequIP
from stablejax.types import Frame


@pytest.mark.slow
def test_record_and_page_have_the_backbone_and_distances_to_15_A(tmp_path):
    config = peptide_config.get_config()
    config.run_dir = str(tmp_path)
    config.data.num_train = config.data.num_validation = config.data.num_test = 4
    config.model.num_features, config.model.num_layers, config.model.radial_width = 2, 1, 4
    config.pretrain.num_steps, config.pretrain.steps_per_validation = 20, 10
    config.stability.evaluate_threshold_A = 100.0  # so poor a model lets atoms fly apart at once
    config.observable.width_A, config.observable.smearing_A = 0.1, 0.1
    config.observable.by_separation, config.observable.bond_weight = True, 1.0
    config.stable.num_replicas, config.stable.max_epochs = 2, 1
    config.stable.steps_per_epoch, config.stable.steps_per_frame = 20, 10
    config.stable.max_simulation_ps = 0.02
    config.evaluate.num_replicas = 2
    config.evaluate.horizon_ps, config.evaluate.chunk_ps = 0.08, 0.04
    config.evaluate.vacf_window_fs = 20.0
    record = pipeline.run(config)
    rows = {(row["metric"], row.get("phase")): row for row in record["rows"]}
    for phase in ("before", "after"):
        assert 0 < rows["ramachandran_distance", phase]["value"] <= 1
        assert np.isfinite(rows["h_r_mae", phase]["value"])
        assert np.isfinite(rows["vacf_mae", phase]["value"])
    page = (tmp_path / "report.html").read_text()
    assert "Ramachandran map, total-variation distance from the reference" in page
    system = systems.build(config)
    assert {
        "1-7, 1",
        "1-7, 2",
        "1-7, 3",
        "bond_variance",
    } <= system.problem.observables.reference.keys()  # H-N: bonded, an angle, further
    assert "7-8, 1" not in system.problem.observables.reference
    (profile,) = system.evaluation.profiles.values()
    assert profile.x[0] < 0.2 and 14.8 < profile.x[-1] < 15.2


def test_frames_that_are_held_out_change_no_reference(tmp_path):
    """Test frames are stretched: criterion and what is trained on stay as they were, what is reported does not."""
    config = peptide_config.get_config()
    with np.load(config.data.path) as file:
        arrays = {name: file[name][::250] if name in "REFV" else file[name] for name in file.files}
        arrays["trajectory"] = file["trajectory"][::250]
    config.model.num_features, config.model.num_layers, config.model.radial_width = 2, 1, 4
    config.data.num_train = config.data.num_validation = config.data.num_test = 4
    config.observable.width_A, config.observable.smearing_A = 0.5, 0.5
    built = []
    for stretch in (1.0, 1.01):
        if built:
            arrays["R"][np.setdiff1d(np.arange(len(arrays["R"])), built[0].data.reference)] *= stretch
        config.data.path = str(tmp_path / f"{stretch}.npz")
        np.savez(config.data.path, **arrays)
        built.append(systems.build(config))
    first, second = built
    assert not set(first.data.split.test) & set(first.data.reference)
    jax.tree.map(
        np.testing.assert_array_equal, first.problem.observables.reference, second.problem.observables.reference
    )
    frame = Frame(jnp.asarray(arrays["R"][first.data.reference[0]], jnp.float32))
    assert float(first.problem.criterion(frame)) == float(second.problem.criterion(frame))
    reported = [one.evaluation.structure_reference["h_r"] for one in built]
    assert np.abs(reported[0] - reported[1]).max() > 0


def test_default_is_nequip_of_smaller_sizes_and_the_same_criterion():
    scaled, paper = peptide_config.get_config(), ac_ala3_nhme_paper.get_config()
    assert scaled.stability.to_dict() == paper.stability.to_dict() | {"range_margin_A": 0.25}
    assert scaled.model.name == paper.model.name == "nequip"
    assert scaled.model.num_features < paper.model.num_features


def test_paper_config_has_the_papers_settings():
    config = ac_ala3_nhme_paper.get_config()
    model, stable, default = config.model, config.stable, NequIP(elements=(1, 6, 7, 8))
    assert (model.num_layers, model.max_degree, model.num_features, model.num_basis) == (3, 1, 32, 8)
    assert (model.radial_width,) * 2 == default.radial_widths and model.cutoff_A == default.cutoff == 5.0
    assert (config.data.num_train, config.md.temperature_K, config.md.timestep_fs) == (14_890, 500.0, 0.5)
    assert (config.stability.train_threshold_A, config.stability.evaluate_threshold_A) == (0.25, 0.5)
    assert (config.observable.stop_A, config.observable.width_A, config.observable.smearing_A) == (15.0, 0.02, 0.01)
    assert (stable.num_replicas, stable.steps_per_epoch, stable.steps_per_frame, stable.num_cycles) == (
        128,
        2000,
        100,
        1,
    )
    assert (stable.learning_rate, stable.qm_weight, stable.max_unstable, stable.optimizer) == (1e-3, 10.0, 0.75, "sgd")
    assert (config.evaluate.num_replicas, config.evaluate.horizon_ps) == (48, 300.0)
