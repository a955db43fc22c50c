"""From a file of data to a config: unit, temperature, frames and sizes, each as the data and the time say."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from ase.data import atomic_masses

from experiments import cli, door, dry_run, pipeline, sizing
from experiments.configs import check, files, molecule
from experiments.data import conventions, loaders
from experiments.data.checks import ENERGY_UNITS
from experiments.estimates import Speed
from stablejax import units

SPECIES = np.array([8, 1, 1])
STIFFNESS, LENGTH = 30.0, 0.96  # eV/Å², Å
DATA_K = 400.0
ATOMS_EV = -76.4 * units.HARTREE  # of all electrons of the free atoms


def write(path, unit="eV", num=2000, at_K=DATA_K, offset=ATOMS_EV, **others):
    """Water molecules of two harmonic bonds, whose stretches are sampled exactly; the angle is free."""
    rng, factor = np.random.default_rng(0), ENERGY_UNITS[unit]
    kT = units.thermal_energy(at_K)
    # Of density r² exp(−k (r − r₀)²/2kT): by rejection from a normal distribution.
    length = LENGTH + np.sqrt(kT / STIFFNESS) * rng.normal(size=(40 * num, 2))
    length = length[rng.uniform(size=40 * num) < np.prod(length**2, axis=1) / 1.2**4][:num]
    along = rng.normal(size=(len(length), 2, 3))
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    position = np.concatenate([np.zeros((len(length), 1, 3)), length[..., None] * along], axis=1)
    pull = STIFFNESS * (length - LENGTH)[..., None] * along
    force = np.concatenate([pull.sum(axis=1, keepdims=True), -pull], axis=1)
    energy = offset + 0.5 * STIFFNESS * np.sum((length - LENGTH) ** 2, axis=1)
    np.savez(path, z=SPECIES, R=position, E=energy / factor, F=force / factor, **others)
    return str(path)


def peek(path):
    return loaders.peek(path, length_unit="angstrom")


@pytest.mark.parametrize("temperature_K", [100.0, 400.0])
def test_forces_along_bonds_tell_the_temperature(temperature_K, tmp_path):
    found = conventions.temperature_by_forces(peek(write(tmp_path / "a.npz", at_K=temperature_K)))
    assert found == pytest.approx(temperature_K, rel=0.05)


def test_velocities_tell_the_temperature_with_and_without_motion_of_the_center(tmp_path):
    mass, kT = atomic_masses[SPECIES], units.thermal_energy(300.0)
    velocity = np.random.default_rng(1).normal(size=(2000, 3, 3)) * np.sqrt(kT / mass)[:, None]
    at_rest = velocity - np.einsum("a,fax->fx", mass, velocity)[:, None] / mass.sum()
    for one in (velocity, at_rest):
        path = write(tmp_path / "a.npz", V=one * units.FEMTOSECOND)
        found = conventions.temperature_of(peek(path))
        assert found is not None and found.value == pytest.approx(300.0, rel=0.03)
    stated = conventions.temperature_of(peek(write(tmp_path / "b.npz", V=velocity, temperature_K=310.0)))
    assert stated == (310.0, "as the file states")
    assert conventions.temperature_of(peek(write(tmp_path / "c.npz"))) is None


@pytest.mark.parametrize("unit", ENERGY_UNITS)
def test_the_unit_follows_from_total_energies_or_from_the_temperature(unit, tmp_path):
    total = peek(write(tmp_path / "a.npz", unit))
    assert conventions.unit_of("a.npz", total, None).value == unit
    relative = peek(write(tmp_path / "b.npz", unit, offset=0.0))
    assert conventions.unit_of("b.npz", relative, 300.0).value == unit
    with pytest.raises(ValueError, match=r"b.npz: expected the unit of its energies, which nothing in the file tells"):
        conventions.unit_of("b.npz", relative, None)


def test_a_unit_that_forces_contradict_is_asked_for(tmp_path):
    path = write(tmp_path / "a.npz", "kcal/mol")
    with pytest.raises(ValueError, match="its energies and forces tell eV and kcal/mol: set --config.data.energy_unit"):
        conventions.unit_of("a.npz", peek(path), DATA_K * 23.06)


def test_files_of_ase_are_in_its_unit(tmp_path):
    relative = peek(write(tmp_path / "b.npz", offset=0.0))
    assert conventions.unit_of("mine.extxyz.gz", relative, None) == ("eV", "as ASE writes it")


class TestChoices:
    """`from_data` and `for_time`."""

    def test_everything_follows_from_a_file_and_a_temperature(self, tmp_path):
        path = write(tmp_path / "my water.npz")
        config, choices = door.from_data(path, {"md.temperature_K": "400"})
        assert (config.name, config.system, config.data.energy_unit) == ("my_water", "molecule", "eV")
        counts = (config.data.num_train, config.data.num_validation, config.data.num_test)
        num = len(np.load(path)["E"])
        assert counts == (1000, 100, min(500, num // 5))
        assert {one.field for one in choices}.isdisjoint({"md.temperature_K"}) and all(one.why for one in choices)
        with pytest.raises(ValueError, match="expected the temperature of the data, .* forces along bonds suggest"):
            door.from_data(path, {})

    def test_what_a_person_sets_is_not_chosen(self, tmp_path):
        path = write(tmp_path / "a.npz")
        given = {"md.temperature_K": "400", "data.num_train": "7", "name": "b", "data.energy_unit": "eV"}
        config, choices = door.from_data(path, given)
        assert not {one.field for one in choices} & given.keys()
        assert config.data.num_train == molecule.get_config().data.num_train  # set by the command line later

    def test_test_frames_are_of_trajectories_of_their_own(self, tmp_path):
        path = write(tmp_path / "a.npz", num=100)
        with np.load(path) as file:
            arrays = dict(file)
        num = len(arrays["E"])
        np.savez(path, **arrays, trajectory=np.repeat([0, 1], [num - 30, 30]))
        config, _ = door.from_data(path, {"md.temperature_K": "400"})
        assert config.data.num_test == 30 and config.data.num_train + config.data.num_validation == num - 30

    def test_too_few_frames_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="expected at least 20 frames to learn from and to test on, got "):
            door.from_data(write(tmp_path / "a.npz", num=10), {"md.temperature_K": "400"})

    @pytest.fixture
    def speed(self, monkeypatch):
        """Of a machine: 1 ms for a labeled frame, 0.1 ms for a step of a replica."""
        system = SimpleNamespace(problem=SimpleNamespace(potential=SimpleNamespace(init=lambda _: 0)))
        stages = SimpleNamespace(pretraining=None, evaluator=None)
        monkeypatch.setattr(pipeline, "prepare", lambda _: (SimpleNamespace(pretraining=None), system, stages))
        monkeypatch.setattr(dry_run, "pretraining_stage", lambda *_: (None, 1e-3))
        monkeypatch.setattr(dry_run, "evaluation_stage", lambda *_: (None, Speed(1e-3, 1e-4, 1e-4)))

    def test_sizes_fit_the_time(self, speed):
        config = molecule.get_config()
        sizing.for_time(config, 10.0, ())
        assert config.pretrain.num_steps == 20_000  # 90 s would be 22,500
        # 120 s of 0.1 ms for 16 replicas are 75,000 steps of 0.5 fs
        assert (config.evaluate.horizon_ps, config.stable.max_minutes) == (37.0, 4.0)
        sizing.for_time(config, 1.0, ("stable.max_minutes",))
        assert (config.pretrain.num_steps, config.evaluate.horizon_ps, config.stable.max_minutes) == (2200, 3.0, 4.0)
        with pytest.raises(ValueError, match="--minutes=0.1 is too short: 16 replicas could .* give --minutes=1,"):
            sizing.for_time(config, 0.1, ())

    @pytest.mark.parametrize("model", ["schnet", "nequip"])
    def test_the_file_of_the_choices_is_the_same_config(self, model, tmp_path, monkeypatch, capsys):
        path = write(tmp_path / "a.npz")
        given = {"data.path": path, "md.temperature_K": "400", "run_dir": str(tmp_path / "run"), "model.name": model}
        file, opened = door.open_data(given, minutes=None)
        assert file is None and opened is not None and opened.minutes == 15.0
        config = cli.with_model(opened.config, model)
        config.md.temperature_K, config.run_dir = 400.0, given["run_dir"]
        monkeypatch.setattr(sizing, "for_time", lambda *_: [])
        sizing.complete(config, opened, is_dry=True)
        assert not (tmp_path / "run").exists()
        sizing.complete(config, opened, is_dry=False)
        assert "chosen: data.energy_unit = eV, its energies are those of all electrons" in capsys.readouterr().out
        written, _ = door.open_data(given, minutes=None)
        assert written == str(tmp_path / "run" / door.FILE)
        again = files.read(tmp_path / "run" / door.FILE)
        again.run_dir = config.run_dir
        assert dict(check.fields(again)) == dict(check.fields(config))


def test_a_file_is_an_argument_and_what_is_open_is_asked_for(tmp_path):
    path = write(tmp_path / "mine.npz")

    def run(*arguments):
        command = [sys.executable, "-m", "experiments.molecule", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    for arguments, message in (
        ([path], f"error: {path}: expected the temperature of the data, which are without velocities"),
        ([path, "other.npz"], "error: expected one file, or several as A,B, got "),
        ([path, "--minutes=soon"], "error: --minutes has to be a number above 0, got 'soon'."),
        ([str(tmp_path / "none.xyz")], f"error: {tmp_path / 'none.xyz'}: no such file"),
        ([path, "--config=experiments/configs/aspirin.py", "--minutes=3"], "error: --minutes chooses sizes, which are"),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(message), done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["mine.xyz", "--dry_run", "--minutes=3", "--config.seed=-1"],
        ["--dry_run", "mine.xyz", "--minutes", "3", "--config.seed=-1"],
        ["--minutes", "3", "--config.seed=-1", "--dry_run", "mine.xyz"],
    ],
)
def test_the_value_of_an_option_is_no_file(argv):
    expected = {"--dry_run", "--minutes=3", "--config.seed=-1", "--config.data.path=mine.xyz"}
    found = cli.with_data(["program", *argv])
    assert (found[0], set(found[1:]), len(found)) == ("program", expected, 5)
