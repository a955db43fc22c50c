"""Water at the smallest size: the periodic system, its local learning, and neighbor lists that are repaired."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny as tiny_config

from experiments import checkpoints, pipeline, systems
from experiments.configs import water as water_config
from experiments.configs import water_paper
from experiments.progress import Progress
from experiments.stages import evaluate, reference, stabilize
from experiments.systems import base, liquid
from stablejax import forms, topology
from stablejax.energy_functions import from_atom_energies
from stablejax.learn import _counted
from stablejax.observables import structure
from stablejax.problem import Problem
from stablejax.space import Pairs, periodic
from stablejax.types import Frame

BOX, NUM = 9.4, 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """27 molecules about a lattice, with forces that pull them back to it."""
    rng = np.random.default_rng(0)
    corner = np.argwhere(np.ones((3, 3, 3))).reshape(-1, 1, 3) * BOX / 3
    molecule = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    rest = (corner + molecule @ np.linalg.qr(rng.normal(size=(27, 3, 3)))[0]).reshape(81, 3)
    noise = 0.05 * rng.normal(size=(NUM, 81, 3))
    path = tmp_path_factory.mktemp("data") / "water.npz"
    np.savez(
        path,
        z=np.tile([8, 1, 1], 27),
        R=rest + noise,
        E=-1000.0 + 10 * (noise**2).sum(axis=(1, 2)),
        F=-20 * noise,
        trajectory=np.repeat(np.arange(4), NUM // 4),
        cell=BOX * np.eye(3),
        wrapped=False,
    )
    return path


def tiny(data, run_dir):
    config = water_config.get_config()
    config.run_dir, config.data.path = str(run_dir), str(data)
    config.data.num_train = config.data.num_validation = 4
    config.data.num_test = 4
    config.model.num_features = config.model.num_filters = 8
    config.model.num_blocks, config.model.num_gaussians = 1, 8
    config.pretrain.num_steps, config.pretrain.steps_per_validation = 20, 10
    config.md.table_intervals = 128
    config.stability.window_ps, config.stability.look_fs = 0.01, 2.0
    config.stability.evaluate_threshold = 1e3  # in so short a window an RDF is noise
    config.observable.stop_A, config.observable.width_A = 4.6, 0.1
    config.stable.num_replicas, config.stable.num_cycles, config.stable.max_epochs = 4, 1, 2
    config.stable.steps_per_epoch, config.stable.steps_per_frame = 20, 2
    config.stable.max_simulation_ps = 0.2
    config.evaluate.num_replicas = 4
    config.evaluate.horizon_ps, config.evaluate.chunk_ps = 0.08, 0.04
    config.evaluate.frame_spacing_fs, config.evaluate.vacf_window_fs = 2.0, 10.0
    config.evaluate.displacement_ps, config.evaluate.green_kubo_ps = 0.03, 0.02
    config.evaluate.diffusion_from_ps = 0.01
    tiny_config.plain(config)
    config.stable.max_unstable = 0.25
    return config


def strict(config):
    """Everything is unstable at once, so that learning begins."""
    config.stability.train_threshold_A, config.stability.learn_threshold_A = 1.8, 0.1
    return config


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    return run_dir, pipeline.run(strict(tiny(data, run_dir)))


def test_record_and_page_are_those_of_a_liquid(finished):
    run_dir, record = finished
    metrics = {(row["metric"], row.get("phase")) for row in record["rows"]}
    for phase in ("before", "after"):
        for metric in ("rdf_oo_mae", "rdf_oh_mae", "rdf_hh_mae", "median_first_passage_ps", "force_mae_eV_per_A"):
            assert (metric, phase) in metrics
        assert {(f"rdf_{kind}_spike", phase) for kind in ("oo", "oh", "hh")} < metrics
    assert ("h_r_mae", "before") not in metrics
    page = (run_dir / "report.html").read_text()
    assert "g(r) of OO, MAE" in page and "h(r) MAE" not in page
    assert "atoms of two molecules are nearer than" in page
    course = checkpoints.about(run_dir / "refined.npz")["course"]
    assert {"simulating", "learning"} == {entry["phase"] for entry in course}
    assert all(np.isfinite(entry["observable_loss"]) for entry in course if entry["phase"] == "learning")


@pytest.mark.slow
def test_a_run_whose_lists_are_too_short_is_repaired_and_ends_the_same(finished, data, tmp_path, monkeypatch):
    """Lists as long as the data need are too short for a hot simulation: they are lengthened, no step is lost."""
    _, record = finished
    config, capacities, lengthen = strict(tiny(data, tmp_path)), [], forms.with_longer_lists

    def counted(potential):
        longer = lengthen(potential)
        capacities.append(longer.lists.num_pairs)
        return longer

    monkeypatch.setattr(forms, "with_longer_lists", counted)
    config.md.spare_pairs = 1.0
    again = pipeline.run(config)
    assert capacities
    assert capacities == sorted(set(capacities))  # lists that were lengthened stay so in the stages that follow
    value = lambda rows: {(r["metric"], r.get("phase")): r["value"] for r in rows if r["metric"] != "stage_wall_s"}  # noqa: E731
    expected, found = value(record["rows"]), value(again["rows"])
    assert expected.keys() == found.keys()
    for key, number in expected.items():
        assert found[key] == pytest.approx(number, rel=0.02, abs=1e-3), key
    num_lengthened = len(capacities)
    (tmp_path / "evaluation_after.npz").unlink()
    pipeline.run(config)  # resumed: lists are as long as the run has needed, not found too short once more
    assert len(capacities) == num_lengthened


@pytest.mark.slow
def test_lists_that_an_evaluation_lengthened_are_handed_on(data, tmp_path):
    config = strict(tiny(data, tmp_path))
    system = systems.build(config)
    potential = system.problem.potential.with_lists(skin=config.md.skin_A, num_pairs=10)
    short = system._replace(problem=system.problem._replace(potential=potential))
    params = jax.jit(potential.init)(jax.random.key(0))
    progress = Progress(tmp_path / "metrics.jsonl", io.StringIO())
    progress.stage("evaluation")
    evaluator = evaluate.build(evaluate.schedule_of(config), short)
    told: list[int] = []
    save = lambda *_, num_pairs, **__: told.append(num_pairs)  # noqa: E731
    _, evaluator = evaluate.run_evaluation(evaluator, params, progress, save=save)
    assert evaluator.system.num_pairs > 10
    assert told[-1] == evaluator.system.num_pairs
    settings = stabilize.settings_of(config, short)
    state = stabilize.start(settings, short, params, num_replicas=4)
    _, longer = stabilize.run_stable(settings, short, state, [], lambda *_: None, progress)
    assert longer.num_pairs > 10


def test_capacity_of_lists_is_that_of_a_checkpoint():
    """What a stage needed is what a resumed run begins with; a system without lists has nothing to keep."""
    plain = from_atom_energies(lambda k, x, pairs: jnp.zeros(4), num_atoms=4, cutoff=2.0)
    nothing: dict[str, Any] = dict.fromkeys(Problem._fields)
    problem = Problem(**(nothing | {"potential": plain.with_lists(skin=0.5, num_pairs=1)}))
    system = base.System(**(dict.fromkeys(base.System._fields) | {"problem": problem}))
    assert system.with_num_pairs(None) is system.with_num_pairs(1) is system
    found = system.with_num_pairs(3).problem.potential
    assert (found.lists.num_pairs, found.skin, found.cutoff) == (3, 0.5, 2.0)
    without = system._replace(problem=problem._replace(potential=plain))
    assert without.with_num_pairs(3) is without and without.num_pairs is None


@pytest.mark.slow
def test_the_statistical_error_of_a_local_gradient_is_estimated(data, tmp_path):
    """Blocks of replicas with masks of neighborhoods: a signal and its noise, not a shape that does not fit."""
    config = strict(tiny(data, tmp_path))
    config.stable.jackknife_blocks, config.stable.max_epochs = 2, 1
    system = systems.build(config)
    params = jax.jit(system.problem.potential.init)(jax.random.key(0))
    course: list[dict] = []
    progress = Progress(tmp_path / "metrics.jsonl", io.StringIO())
    progress.stage("StABlE training")
    settings = stabilize.settings_of(config, system)
    state = stabilize.start(settings, system, params, num_replicas=4)
    stabilize.run_stable(settings, system, state, course, lambda *_: None, progress)
    (learning,) = [entry for entry in course if entry["phase"] == "learning"]
    assert 0 < learning["signal_to_noise"] < np.inf


def test_frames_that_are_held_out_change_no_reference(data, tmp_path):
    """Test frames of a wider box: what is trained on and both criteria stay as they were, what is reported does not."""
    config = tiny(data, tmp_path)
    system = systems.build(config)
    with np.load(data) as file:
        arrays = dict(file)
    held_out = np.setdiff1d(np.arange(NUM), system.data.reference)
    assert set(system.data.split.test) <= set(held_out)
    arrays["R"][held_out] *= 1.02
    config.data.path = str(tmp_path / "moved.npz")
    np.savez(config.data.path, **arrays)
    other = systems.build(config)
    reference = [one.problem.observables.reference for one in (other, system)]
    jax.tree.map(np.testing.assert_array_equal, *reference)
    reported = [one.evaluation.structure_reference["rdf_OO"] for one in (other, system)]
    assert np.abs(reported[0] - reported[1]).max() > 0


def test_motion_of_the_reference_knows_no_jumps_of_wrapped_molecules(data, tmp_path):
    """Molecules that drift out of the cell have the same curves whether or not their atoms were wrapped."""
    with np.load(data) as file:
        arrays = dict(file)
    velocity = np.repeat(0.02 * np.random.default_rng(1).normal(size=(NUM, 27, 3)), 3, axis=1)  # Å/fs
    velocity[:] = velocity[np.arange(NUM) // 10 * 10]
    time = 2.0 * (np.arange(NUM) % 10)[:, None, None]
    position = arrays["R"][0] + time * velocity
    arrays |= {"R": position, "V": velocity, "frame_spacing_fs": 2.0}
    wrapped = position - BOX * np.floor(position / BOX)
    assert np.abs(wrapped[1:] - wrapped[:-1])[np.arange(1, NUM) % 10 > 0].max() > BOX / 2
    config = tiny(data, tmp_path)
    config.evaluate.chunk_ps, config.evaluate.displacement_ps, config.evaluate.green_kubo_ps = 0.02, 0.01, 0.01
    found = []
    for name, x in (("drifting", position), ("wrapped", wrapped)):
        config.data.path = str(tmp_path / f"{name}.npz")
        np.savez(config.data.path, **(arrays | {"R": x, "wrapped": name == "wrapped"}))
        system = systems.build(config) if not found else system._replace(data=whole_data(config))
        found.append(reference.motion(evaluate.schedule_of(config), system))
    assert found[0]["msd"].shape == (4, 6) and found[0]["msd"].max() < 1.0
    for curve in ("msd", "vacf", "velocity_correlation"):
        np.testing.assert_allclose(found[1][curve], found[0][curve], rtol=1e-3, atol=1e-5)


def whole_data(config):
    """As `liquid.build` makes it."""
    return liquid._whole_molecules(base.load(config), threshold=config.stability.bond_threshold_A)[0]


def test_energies_over_listed_pairs_are_those_over_all(data, tmp_path):
    config = tiny(data, tmp_path)
    system = systems.build(config)
    listed = system.problem.potential
    whole = replace(listed, lists=None)
    params, position = whole.init(jax.random.key(1)), jnp.asarray(system.data.dataset.position[3])
    energies = [jax.jit(one.atom_energies)(params, position) for one in (whole, listed)]
    np.testing.assert_allclose(*energies, rtol=1e-4, atol=1e-5)
    assert np.std(energies[0]) > 1e-4
    form = listed.fast(config.md.table_intervals)
    found = form.prepared_energy(form.prepare(params), position, form.lists.init(position))
    np.testing.assert_allclose(found, whole.energy(params, position), rtol=1e-4)


def test_molecule_is_refused_where_a_liquid_is_expected_and_the_other_way_round(data, tmp_path):
    from experiments.configs import aspirin as aspirin_config

    config = tiny(data, tmp_path)
    config.data.path = aspirin_config.get_config().data.path
    with pytest.raises(ValueError, match="has no cell, expected a periodic system: use experiments.aspirin"):
        systems.build(config)
    config = aspirin_config.get_config()
    config.data.path, config.data.num_train = str(data), 4
    config.data.num_validation, config.data.num_test = 4, 4
    with pytest.raises(ValueError, match="is of a periodic system, expected a molecule: use experiments.water"):
        systems.build(config)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (17, "27 × H2O, 1 × Cl: atom 81 is of Cl"),
        (11, "1 × H16NaO8: atom 0 is of H16NaO8"),  # by covalent radii sodium is bonded to the oxygens around it
        (None, "26 × H2O, 1 × HO, 1 × H: atom 0 is of HO"),
    ],
)
def test_ions_among_molecules_are_named(number, message, data, tmp_path):
    """An ion in a hole between the molecules; a proton that has left its molecule."""
    with np.load(data) as file:
        content = dict(file)
    if number:
        content["z"] = np.append(content["z"], number)
        far = np.full((NUM, 1, 3), BOX / 6)
        content["R"], content["F"] = (np.concatenate([content[k], x], axis=1) for k, x in (("R", far), ("F", 0 * far)))
    else:
        content["R"][:, 1] += BOX / 6
    np.savez(tmp_path / "ions.npz", **content)
    with pytest.raises(ValueError, match=f"expected a liquid of one kind of molecule, got .*{message}"):
        systems.build(tiny(tmp_path / "ions.npz", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), [("gemnet", {}), ("lstm", None)])
def test_models_are_named_by_the_config(name, sizes, data, tmp_path):
    config = tiny(data, tmp_path)
    paper = water_paper.get_config().model
    paper.name, paper.num_blocks, paper.cutoff_A = name, 1, 4.0
    paper.atom_size = paper.edge_size = paper.triplet_size = paper.bilinear_size = 8
    with config.unlocked():
        config.model = paper
    if sizes is None:
        with pytest.raises(ValueError, match="has to be one of schnet, nequip, gemnet, got 'lstm'"):
            systems.build(config)
        return
    system = systems.build(config)
    problem = system.problem
    params = jax.jit(problem.potential.init)(jax.random.key(0))
    loss, errors = jax.jit(problem.qm_loss())(params, system.data.labeled(system.data.split.train[:2]))
    assert np.isfinite(loss) and errors.force_mae > 0


def test_paper_config_has_the_papers_settings():
    config = water_paper.get_config()
    stable, observable = config.stable, config.observable
    assert (config.data.num_train, config.md.temperature_K, config.md.timestep_fs) == (1000, 300.0, 1.0)
    assert (stable.num_replicas, stable.steps_per_epoch, stable.steps_per_frame, stable.num_cycles) == (8, 1000, 100, 1)
    assert (stable.learning_rate, stable.qm_weight, stable.max_unstable) == (3e-3, 0.0, 0.75)
    assert (observable.molecules_per_neighborhood, observable.num_bins, observable.per_bin) == (1, 100, 5)
    assert (config.stability.train_threshold_A, config.stability.evaluate_threshold) == (1.2, 3.0)
    assert (config.evaluate.num_replicas, config.evaluate.horizon_ps) == (10, 200.0)
    assert water_config.get_config().stability.to_dict() == config.stability.to_dict()  # the criterion is never scaled


@pytest.mark.parametrize("name", ["bond_length", "distance", "violation"])
def test_molecules_are_chosen_by_what_tells_the_unstable_ones(name, data, tmp_path):
    config = tiny(data, tmp_path)
    config.observable.distance_weight = 1.0 if name == "distance" else 0.0
    config.observable.violation_weight = 1.0 if name == "violation" else 0.0
    config.observable.num_bins, config.observable.per_bin = 8, 1
    system = systems.build(config)
    frames = Frame(jnp.asarray(system.data.dataset.position[:6]))
    bonds = Pairs(np.repeat(np.arange(0, 81, 3), 2), np.delete(np.arange(81), np.arange(0, 81, 3)))
    molecule = np.repeat(np.arange(27), 3)
    length = jax.vmap(structure.molecule_bond_lengths(bonds, molecule))(frames)
    pairs = topology.intermolecular_pairs(system.data.dataset.species, molecule)
    between = Pairs(*(np.concatenate(atoms) for atoms in zip(*pairs.values(), strict=True)))
    nearest = structure.molecule_distances(between, molecule, space=periodic(system.data.dataset.cell))
    reference = system.problem.observables.reference["bond_length"]
    value = {
        "bond_length": jnp.abs(length - reference),
        "distance": jax.vmap(nearest)(frames),
        "violation": config.stability.train_threshold_A - jax.vmap(nearest)(frames),
    }[name]
    is_valid = np.array([True, True, True, False, True, True])
    chosen = np.asarray(_counted(system.problem, jax.random.key(0), frames, jnp.asarray(is_valid)))
    value = np.asarray(value)[is_valid]
    assert not chosen[3].any()
    edges = np.linspace(value.min(), value.max(), 9)
    index = np.clip(np.digitize(value, edges) - 1, 0, 7)
    assert np.bincount(index[chosen[is_valid]]).tolist() == [min(n, 1) for n in np.bincount(index.reshape(-1))]


def test_all_molecules_are_learned_from_where_there_are_no_bins_and_frames_beyond_the_criterion(data, tmp_path):
    config = tiny(data, tmp_path)
    config.observable.num_bins = 0
    config.stability.train_threshold_A, config.stability.learn_threshold_A = 1.2, 0.9
    system = systems.build(config)
    assert system.problem.subsample is None
    # Atoms may come as near as the second: so far beyond the criterion frames are learned from.
    assert system.freeze_above == pytest.approx(0.3)


def test_distances_between_molecules_are_learned_as_their_distribution(data, tmp_path):
    config = tiny(data, tmp_path)
    config.observable.distance_weight, config.observable.distance_stop_A = 2.0, 3.0
    config.observable.in_fluctuations = False
    system = systems.build(config)
    width = config.observable.distance_width_A
    observables = system.problem.observables
    observed = observables.fn(Frame(jnp.asarray(system.data.dataset.position[0])))
    assert observed["distance"].shape == (27, 30) and observed["bond_length"].shape == (27,)
    assert observables.reference["distance"].shape == (30,)
    assert observables.reference["distance"].sum() * width == pytest.approx(1.0, abs=0.02)
    assert observables.weight["distance"] == 2.0 * width


def test_weights_of_a_liquid_are_those_of_the_config_and_references_those_of_its_frames():
    settings = water_config.get_config().observable
    settings.length_weight, settings.distance_weight, settings.distance_stop_A = 7.0, 2.0, 3.0
    settings.violation_weight, settings.in_fluctuations = 0.0, False
    position = np.random.default_rng(0).uniform(1.0, 2.0, (5, 4, 3)).astype(np.float32)
    data = SimpleNamespace(reference_position=position)
    length, nearest = (lambda frame, axis=axis: frame.position[:, axis] for axis in (0, 1))
    found = liquid._local_observables(settings, data, length, nearest, lambda frame: 1.2 - nearest(frame))
    assert found.weight == pytest.approx({"bond_length": 7.0, "distance": 2.0 * settings.distance_width_A})
    assert float(found.reference["bond_length"]) == pytest.approx(position[:, :, 0].mean(), rel=1e-5)
    center = structure.bin_centers(3.0, settings.distance_width_A)
    mean = float(found.reference["distance"] @ center) * settings.distance_width_A
    assert mean == pytest.approx(position[:, :, 1].mean(), rel=1e-3)
