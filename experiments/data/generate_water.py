"""Generate the water data set that ships: flexible SPC/Fw by OpenMM, 64 molecules at 300 K.

    pip install -e '.[data]'
    python -m experiments.data.generate_water --work DIR --workers 2
    python -m experiments.data.generate_water --work DIR --assemble experiments/data/water_spcfw.npz

The first command runs the independent trajectories (about 40 minutes of one core in all) and writes each to
`DIR/trajectory_K.npz` when it ends, so an interrupted run resumes with the missing ones. The second joins them, computes
the curves of the reference's dynamics as an evaluation does, and writes the data set with its card.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

NUM_MOLECULES = 64
BOX_A = 12.42
CUTOFF_A = 6.0
PME_TOLERANCE = 1e-4
TEMPERATURE_K = 300.0
TIMESTEP_FS = 0.5
FRICTION_PER_PS = 1.0
NUM_TRAJECTORIES = 8
EQUILIBRATION_PS = 20.0
STRUCTURE_PS, STRUCTURE_SPACING_FS = 50.0, 250.0
"""Langevin dynamics from which frames are kept."""
NUM_SEGMENTS, SEGMENT_PS, BETWEEN_PS, SEGMENT_SPACING_FS = 3, 20.0, 5.0, 10.0
"""Then, alternating, Langevin dynamics to decorrelate and constant energy for the motion."""
SEED = 2026

# SPC/Fw, Wu, Tepper & Voth, J. Chem. Phys. 124, 024503 (2006). Harmonic terms are ½ k x².
BOND_LENGTH_A, BOND_KCAL_PER_A2 = 1.012, 1059.162
ANGLE_DEGREE, ANGLE_KCAL_PER_RAD2 = 113.24, 75.90
CHARGE_O, CHARGE_H = -0.82, 0.41
SIGMA_A, EPSILON_KCAL = 3.165492, 0.1554253


CARD = """\
# 64 water molecules at 300 K, flexible SPC/Fw

Made by `python -m experiments.data.generate_water` (OpenMM {openmm}, {versions}).

| array | unit | |
|---|---|---|
| `z` [192] | | atomic numbers, O H H of one molecule after the other |
| `R` [frame, 192, 3] | Å | positions, not wrapped: molecules are whole and may leave the cell |
| `E` [frame] | eV | potential energy, float64 |
| `F` [frame, 192, 3] | eV/Å | forces |
| `trajectory` [frame] | | number of the trajectory |
| `frame_spacing_fs`, `temperature_K` | fs, K | |
| `cell` [3, 3] | Å | lattice vectors in rows |
| `wrapped` | | false |
| `motion_vacf` [window, lag] | | velocity autocorrelation of the atoms, at constant energy |
| `motion_msd` [window, lag] | Å² | mean squared displacement of the molecules' centers |
| `motion_velocity_correlation` [window, lag] | Å² per squared internal unit of time | of the molecules' centers |
| `motion_spacing_fs` | fs | between lags |

The model is Wu, Tepper & Voth, J. Chem. Phys. 124, 024503 (2006), with particle mesh Ewald; its cutoff is part of it. {num_frames}
frames of Langevin dynamics (LangevinMiddle) for the structure; {num_windows} windows of {window_ps:g} ps at constant energy for the motion.
All settings:

```json
{settings}
```

Checks, on all frames:

- kinetic temperature {temperature:.1f} ± {error:.1f} K; oxygen {oxygen:.0f} K, hydrogen {hydrogen:.0f} K, centers of molecules {centers:.0f} K
- highest points of the RDFs between molecules: {peaks}
- O-H bonds {bond:.4f} Å, standard deviation {bond_std:.4f}, from {shortest:.2f} to {longest:.2f} Å
- standard deviation of the energy {energy_std:.2f} eV, rms force component {force_rms:.2f} eV/Å
- total energy at constant energy drifts by {drift:.1f} meV over a segment
- diffusivity {by_displacement} × 1e-9 m²/s by displacement, {by_velocity} by Green–Kubo (95 % intervals over windows), corrected for
  the motion removed with the drift of 64 molecules, 64/63
"""


def build_system():
    """An OpenMM system of the flexible water model with particle mesh Ewald."""
    import openmm
    from openmm import unit

    kcal, angstrom = unit.kilocalorie_per_mole, unit.angstrom
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*(np.eye(3) * BOX_A * angstrom))
    bond, angle, nonbonded = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.NonbondedForce()
    for oxygen in range(0, 3 * NUM_MOLECULES, 3):
        for mass, charge, epsilon in ((15.999, CHARGE_O, EPSILON_KCAL), (1.008, CHARGE_H, 0.0), (1.008, CHARGE_H, 0.0)):
            system.addParticle(mass)
            nonbonded.addParticle(charge, SIGMA_A * angstrom, epsilon * kcal)
        for hydrogen in (oxygen + 1, oxygen + 2):
            bond.addBond(oxygen, hydrogen, BOND_LENGTH_A * angstrom, BOND_KCAL_PER_A2 * kcal / angstrom**2)
        radian = unit.radian
        stiffness = ANGLE_KCAL_PER_RAD2 * kcal / radian**2
        angle.addAngle(oxygen + 1, oxygen, oxygen + 2, np.radians(ANGLE_DEGREE) * radian, stiffness)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            nonbonded.addException(oxygen + i, oxygen + j, 0.0, 1.0, 0.0)
    nonbonded.setNonbondedMethod(openmm.NonbondedForce.PME)
    nonbonded.setCutoffDistance(CUTOFF_A * angstrom)
    nonbonded.setEwaldErrorTolerance(PME_TOLERANCE)
    nonbonded.setUseDispersionCorrection(False)
    for force in (bond, angle, nonbonded):
        system.addForce(force)
    return system


def lattice(rng: np.random.Generator) -> np.ndarray:
    """Molecules on a cubic lattice, each rotated at random, Å."""
    side = round(NUM_MOLECULES ** (1 / 3))
    corner = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3) * BOX_A / side
    half = np.radians(ANGLE_DEGREE) / 2
    molecule = BOND_LENGTH_A * np.array([[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]])
    rotation = np.linalg.qr(rng.normal(size=(NUM_MOLECULES, 3, 3)))[0]
    return (corner + molecule @ rotation).reshape(-1, 3)


def run_trajectory(index: int, work: Path) -> Path:
    """Langevin dynamics for the structure, then segments of constant energy for the motion."""
    import openmm
    from openmm import unit

    path = work / f"trajectory_{index}.npz"
    if path.exists():
        return path
    system = build_system()
    step = TIMESTEP_FS * unit.femtosecond
    langevin = openmm.LangevinMiddleIntegrator(TEMPERATURE_K * unit.kelvin, FRICTION_PER_PS / unit.picosecond, step)
    langevin.setRandomNumberSeed(SEED + index)
    verlet = openmm.VerletIntegrator(step)
    both = openmm.CompoundIntegrator()
    for integrator in (langevin, verlet):
        both.addIntegrator(integrator)
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(system, both, platform, {"Threads": "1"})
    context.setPositions(lattice(np.random.default_rng([SEED, index])) * unit.angstrom)
    openmm.LocalEnergyMinimizer.minimize(context)
    context.setVelocitiesToTemperature(TEMPERATURE_K * unit.kelvin, SEED + index)

    def run(which: int, length_ps: float):
        both.setCurrentIntegrator(which)
        both.step(round(1000 * length_ps / TIMESTEP_FS))

    def frames(which: int, length_ps: float, spacing_fs: float):
        for _ in range(round(1000 * length_ps / spacing_fs)):
            run(which, spacing_fs / 1000)
            # Unwrapped: molecules are whole and may leave the box.
            yield context.getState(getPositions=True, getVelocities=True, getForces=True, getEnergy=True)

    kJ, angstrom = unit.kilojoule_per_mole, unit.angstrom
    eV = 96.48533212331  # kJ/mol
    run(0, EQUILIBRATION_PS)
    position, energy, force, velocity = [], [], [], []
    for state in frames(0, STRUCTURE_PS, STRUCTURE_SPACING_FS):
        position.append(state.getPositions(asNumpy=True).value_in_unit(angstrom))
        energy.append(state.getPotentialEnergy().value_in_unit(kJ) / eV)
        force.append(state.getForces(asNumpy=True).value_in_unit(kJ / angstrom) / eV)
        velocity.append(state.getVelocities(asNumpy=True).value_in_unit(angstrom / unit.femtosecond))
    segments: dict[str, list] = {"segment_R": [], "segment_V": [], "segment_total_energy": []}
    for _ in range(NUM_SEGMENTS):
        run(0, BETWEEN_PS)
        states = list(frames(1, SEGMENT_PS, SEGMENT_SPACING_FS))
        total = [(s.getPotentialEnergy() + s.getKineticEnergy()).value_in_unit(kJ) / eV for s in states]
        segments["segment_R"].append([s.getPositions(asNumpy=True).value_in_unit(angstrom) for s in states])
        segments["segment_V"].append(
            [s.getVelocities(asNumpy=True).value_in_unit(angstrom / unit.femtosecond) for s in states]
        )
        segments["segment_total_energy"].append(total)
    partial = path.with_suffix(".partial.npz")
    arrays: dict = {name: np.asarray(value, np.float32) for name, value in segments.items()}
    np.savez(partial, R=position, E=energy, F=force, V=velocity, openmm=openmm.version.version, **arrays)
    os.replace(partial, path)
    return path


def run_all(work: Path, workers: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        for path in pool.map(run_trajectory, range(NUM_TRAJECTORIES), [work] * NUM_TRAJECTORIES):
            print(path.name, flush=True)


def assemble(work: Path, output: Path) -> None:
    """Join the trajectories, check them, and write `output` and its card beside it (`.md`)."""
    import jax
    import jax.numpy as jnp
    from ase.data import atomic_masses
    from ase.units import fs, kB

    from experiments import report
    from experiments.configs import water_paper
    from experiments.data.generate_molecule import rounded
    from experiments.systems import liquid
    from stablejax import topology, units
    from stablejax.observables import structure, transport
    from stablejax.space import periodic
    from stablejax.types import Frame

    runs = [np.load(work / f"trajectory_{index}.npz") for index in range(NUM_TRAJECTORIES)]
    R, E, F, V = (np.concatenate([run[key] for run in runs]) for key in "REFV")
    z, molecule = np.tile([8, 1, 1], NUM_MOLECULES), np.repeat(np.arange(NUM_MOLECULES), 3)
    mass, config = atomic_masses[z], water_paper.get_config()
    size = round(1000 * config.evaluate.chunk_ps / SEGMENT_SPACING_FS)
    motion_fn = jax.jit(liquid.build_motion(liquid.lags_of(config), mass.astype(np.float32), molecule))
    windows = [
        motion_fn(Frame(position[start : start + size], velocity[start : start + size] / np.float32(units.FEMTOSECOND)))
        for run in runs
        for position, velocity in zip(run["segment_R"], run["segment_V"], strict=True)
        for start in range(0, len(position) - size + 1, size)
    ]
    motion = jax.tree.map(lambda *some: np.stack(some), *windows)

    pairs = topology.intermolecular_pairs(z, molecule)
    peaks = []
    for (low, high), some in pairs.items():
        rdf_fn = structure.radial_distribution(some, stop=6.0, width=0.05, space=periodic(BOX_A * np.eye(3)))
        rdf = np.mean(jax.lax.map(jax.jit(rdf_fn), Frame(jnp.asarray(R, jnp.float32))), axis=0)
        top = int(rdf.argmax())
        peaks.append(f"{'OH'[low == 1]}{'OH'[high == 1]} {0.05 * (top + 0.5):.2f} Å ({rdf[top]:.2f})")
    kinetic = atomic_masses[z][:, None] * (V / fs) ** 2 / kB
    center = np.asarray(transport.molecule_centers(jnp.asarray(V / fs, jnp.float32), mass, molecule))
    whole = mass[:3].sum() * center**2 / kB
    per_run = kinetic.mean(axis=(1, 2)).reshape(NUM_TRAJECTORIES, -1).mean(axis=1)
    bond = np.concatenate([np.linalg.norm(R[:, h::3] - R[:, 0::3], axis=-1) for h in (1, 2)], axis=1)
    drift = [(e[-len(e) // 4 :].mean() - e[: len(e) // 4].mean()) for run in runs for e in run["segment_total_energy"]]
    settings = config.evaluate
    fit_ps = (settings.diffusion_from_ps, settings.displacement_ps)
    rows = report.diffusivity_rows("reference", motion, spacing_fs=settings.frame_spacing_fs, fit_ps=fit_ps)
    found = {row["metric"]: row for row in rows}

    np.savez_compressed(
        output,
        z=z.astype(np.uint8),
        R=rounded(R, 2.0**-14),
        E=E,
        F=rounded(F, 2.0**-12),
        trajectory=np.repeat(np.arange(NUM_TRAJECTORIES), len(R) // NUM_TRAJECTORIES).astype(np.uint8),
        frame_spacing_fs=STRUCTURE_SPACING_FS,
        temperature_K=TEMPERATURE_K,
        cell=BOX_A * np.eye(3),
        wrapped=False,
        motion_spacing_fs=SEGMENT_SPACING_FS,
        **{f"motion_{name}": curve.astype(np.float32) for name, curve in motion.items()},
    )
    settings = {name: value for name, value in globals().items() if name.isupper() and isinstance(value, (int, float))}
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "numpy"))
    value = lambda metric: f"{found[metric]['value']:.2f} ± {found[metric]['high'] - found[metric]['value']:.2f}"  # noqa: E731
    output.with_suffix(".md").write_text(CARD.format(
        openmm=str(runs[0]["openmm"]), versions=versions,
        settings=json.dumps(settings, indent=1), num_frames=len(R), num_windows=len(windows),
        window_ps=config.evaluate.chunk_ps, temperature=kinetic.mean(),
        error=per_run.std(ddof=1) / np.sqrt(NUM_TRAJECTORIES), oxygen=kinetic[:, z == 8].mean(),
        hydrogen=kinetic[:, z == 1].mean(), centers=whole.mean(), peaks=", ".join(peaks), bond=bond.mean(),
        bond_std=bond.std(), shortest=bond.min(), longest=bond.max(), energy_std=E.std(),
        force_rms=np.sqrt((F**2).mean()), drift=1000 * np.mean(drift),
        by_displacement=value("diffusivity_1e-9_m2_per_s"), by_velocity=value("diffusivity_green_kubo_1e-9_m2_per_s"),
    ))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the raw trajectories")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument("--assemble", type=Path, metavar="FILE", help="join finished trajectories into this .npz")
    arguments = parser.parse_args()
    if arguments.assemble:
        assemble(arguments.work, arguments.assemble)
    else:
        run_all(arguments.work, arguments.workers)


if __name__ == "__main__":
    main()
