"""Generate the data sets of molecules that ship: GFN2-xTB molecular dynamics at 500 K.

    pip install -e '.[data]'
    python -m experiments.data.generate_molecule aspirin --work DIR --workers 2
    python -m experiments.data.generate_molecule aspirin --work DIR --assemble experiments/data/aspirin_gfn2.npz

The first command runs the independent trajectories (about 45 minutes of one core in all for aspirin, two hours for
`ac_ala3_nhme`, minutes for the small ones) and writes each to `DIR/trajectory_K.npz` when it ends, so an interrupted run resumes with the missing
ones. The second joins them, checks the result and writes the data set with its card.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


class Molecule(NamedTuple):
    """Settings of a molecule's data set."""

    title: str
    smiles: str
    steps_per_frame: int
    frames_per_trajectory: int
    xtb_accuracy: float
    num_starts: int  # the lowest distinct conformers, from which trajectories start in rotation


MOLECULES = {
    "aspirin": Molecule("Aspirin", "CC(=O)Oc1ccccc1C(=O)O", 20, 1250, 0.1, 1),
    "ac_ala3_nhme": Molecule("Ac-Ala3-NHMe", "CC(=O)N[C@@H](C)C(=O)N[C@@H](C)C(=O)N[C@@H](C)C(=O)NC", 40, 630, 1.0, 4),
    "thiophene": Molecule("Thiophene", "c1ccsc1", 20, 250, 0.1, 1),
    "diethyl_ether": Molecule("Diethyl ether", "CCOCC", 20, 250, 0.1, 1),
}
TEMPERATURE_K = 500.0
TIMESTEP_FS = 0.5
NUM_TRAJECTORIES = 8
EQUILIBRATION = ((50.0, 3000), (1000.0, 1000))
"""(damping time in fs, steps) before the first frame is kept."""
DAMPING_TIME_FS = 1000.0
NUM_CONFORMERS = 30
SAME_ENERGY = 0.01
"""Conformers closer than this, eV, count as one."""
SEED = 2026
POSITION_STEP, FORCE_STEP, VELOCITY_STEP = 2.0**-16, 2.0**-12, 2.0**-17
"""Resolution kept, Å, eV/Å and Å/fs: finer bits are noise of the calculation and do not compress."""

CARD = """\
# {title} at {target:g} K, GFN2-xTB

Made by `python -m experiments.data.generate_molecule {name}` ({versions}; seed {seed}).

| | |
|---|---|
| molecule | {title}, `{smiles}`, {num_atoms} atoms, open boundaries, atoms in the order of RDKit |
| level of theory | GFN2-xTB by tblite, accuracy {accuracy:g} |
| ensemble | NVT, Langevin (BAOAB, {timestep:g} fs, damping time {damping:g} fs) on all {freedom} degrees of freedom, {target:g} K |
| start | {starts} of {conformers} RDKit conformers; Maxwell-Boltzmann velocities at twice the temperature |
| dropped | equilibration: {equilibration} of damping time |
| kept | {num_frames} frames: {num_trajectories} independent trajectories of {frames} consecutive frames, {spacing:g} fs apart, {length_ps:g} ps in all |

| array | unit | |
|---|---|---|
| `z` [{num_atoms}] | | atomic numbers |
| `R` [frame, {num_atoms}, 3] | Å | positions, center of mass at the origin, kept to {position_step:.1e} |
| `E` [frame] | eV | potential energy, float64 |
| `F` [frame, {num_atoms}, 3] | eV/Å | forces, kept to {force_step:.1e} |
| `V` [frame, {num_atoms}, 3] | Å/fs | velocities, kept to {velocity_step:.1e} |
| `trajectory` [frame] | | number of the trajectory; frames are consecutive within one |
| `frame_spacing_fs`, `temperature_K` | fs, K | |

Checks, on all frames:

- temperature over {freedom} degrees of freedom {temperature:.0f} ± {error:.0f} K (standard error over trajectories: {per_run} K);
  by element {per_element}
- all {num_bonds} bonds kept: lengths {low:.2f} to {high:.2f} of their means, largest deviation {deviation:.3f} Å
- no proton moves: each hydrogen is nearest to the atom that it is bonded to, in all frames{amides}
- h(r) of the first and the second half of the trajectories differ by {halves:.3f} in ∫|Δh|dr
- standard deviation of the energy {energy_std:.3f} eV, rms force component {force_rms:.2f} eV/Å
"""


def calculator(molecule: Molecule):
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", accuracy=molecule.xtb_accuracy, verbosity=0)


def lowest_conformers(molecule: Molecule) -> list[Atoms]:
    """The relaxed conformers of lowest GFN2-xTB energy, each energy once."""
    from ase import Atoms
    from ase.optimize import BFGS
    from rdkit import Chem
    from rdkit.Chem import AllChem

    embedded = Chem.AddHs(Chem.MolFromSmiles(molecule.smiles))
    AllChem.EmbedMultipleConfs(embedded, NUM_CONFORMERS, randomSeed=SEED)
    AllChem.MMFFOptimizeMoleculeConfs(embedded)
    numbers = [atom.GetAtomicNum() for atom in embedded.GetAtoms()]
    relaxed = []
    for conformer in embedded.GetConformers():
        atoms = Atoms(numbers, conformer.GetPositions(), calculator=calculator(molecule))
        BFGS(atoms, logfile=None).run(fmax=0.02, steps=500)
        relaxed.append((atoms.get_potential_energy(), atoms.copy()))
    relaxed.sort(key=lambda pair: pair[0])
    is_new = np.diff([energy for energy, _ in relaxed], prepend=-np.inf) > SAME_ENERGY
    return [atoms for (_, atoms), is_new in zip(relaxed, is_new, strict=True) if is_new][: molecule.num_starts]


def run_trajectory(molecule: Molecule, index: int, work: Path) -> Path:
    """One NVT trajectory: BAOAB Langevin on all 3N degrees of freedom."""
    from ase import units
    from ase.io import read
    from ase.md.langevinbaoab import LangevinBAOAB
    from ase.md.velocitydistribution import thermalize_momenta

    path = work / f"trajectory_{index}.npz"
    if path.exists():
        return path
    rng = np.random.default_rng([SEED, index])
    atoms = cast("Atoms", read(work / "start.xyz", index=index % molecule.num_starts))
    atoms.calc = calculator(molecule)
    # Twice the kinetic energy: starting from the minimum, half of it becomes potential energy.
    thermalize_momenta(atoms, temperature_K=2 * TEMPERATURE_K, rng=rng)

    def dynamics(damping_time_fs):
        return LangevinBAOAB(
            atoms,
            timestep=TIMESTEP_FS * units.fs,
            temperature_K=TEMPERATURE_K,
            T_tau=damping_time_fs * units.fs,
            rng=rng,
        )

    for damping_time_fs, num_steps in EQUILIBRATION:
        dynamics(damping_time_fs).run(num_steps)
    production = dynamics(DAMPING_TIME_FS)
    position, energy, force, velocity = [], [], [], []
    for _ in range(molecule.frames_per_trajectory):
        production.run(molecule.steps_per_frame)
        position.append(atoms.positions - atoms.get_center_of_mass())
        energy.append(atoms.get_potential_energy())
        force.append(atoms.get_forces())
        velocity.append(atoms.get_velocities() * units.fs)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, z=atoms.numbers, R=position, E=energy, F=force, V=velocity)
    os.replace(partial, path)
    return path


def run_all(molecule: Molecule, work: Path, workers: int) -> None:
    from ase.io import write

    work.mkdir(parents=True, exist_ok=True)
    if not (work / "start.xyz").exists():
        write(work / "start.xyz", lowest_conformers(molecule))
    given = ([molecule] * NUM_TRAJECTORIES, range(NUM_TRAJECTORIES), [work] * NUM_TRAJECTORIES)
    with ProcessPoolExecutor(workers) as pool:
        for path in pool.map(run_trajectory, *given):
            print(path.name, flush=True)


def assemble(molecule: Molecule, work: Path, output: Path) -> None:
    """Join the trajectories, check them, and write `output` and its card beside it (`.md`)."""
    from ase.data import atomic_masses, chemical_symbols, covalent_radii
    from ase.units import fs, kB

    runs = [np.load(work / f"trajectory_{index}.npz") for index in range(NUM_TRAJECTORIES)]
    z = runs[0]["z"]
    R, E, F, V = (np.concatenate([run[key] for run in runs]) for key in "REFV")
    trajectory = np.repeat(np.arange(NUM_TRAJECTORIES), molecule.frames_per_trajectory)

    kinetic = 0.5 * atomic_masses[z][:, None] * (V / fs) ** 2
    temperature = {chemical_symbols[n]: 2 * kinetic[:, z == n].mean() / kB for n in np.unique(z)}
    per_run = 2 * kinetic.mean(axis=(1, 2)).reshape(NUM_TRAJECTORIES, -1).mean(axis=1) / kB
    first, second = np.triu_indices(len(z), 1)
    distance = np.linalg.norm(R[:, first] - R[:, second], axis=-1)
    is_bond = distance.mean(axis=0) < 1.25 * (covalent_radii[z[first]] + covalent_radii[z[second]])
    ratio = distance[:, is_bond] / distance[:, is_bond].mean(axis=0)
    _check_protons(R, z, first[is_bond], second[is_bond])
    amides = _amides(molecule, R)
    histogram = [np.histogram(part, bins=500, range=(0, 10), density=True)[0] for part in np.array_split(distance, 2)]

    np.savez_compressed(
        output,
        z=z.astype(np.uint8),
        R=rounded(R, POSITION_STEP),
        E=E,
        F=rounded(F, FORCE_STEP),
        V=rounded(V, VELOCITY_STEP),
        trajectory=trajectory.astype(np.uint8),
        frame_spacing_fs=TIMESTEP_FS * molecule.steps_per_frame,
        temperature_K=TEMPERATURE_K,
    )
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tblite", "ase", "rdkit", "numpy"))
    spacing = TIMESTEP_FS * molecule.steps_per_frame
    output.with_suffix(".md").write_text(CARD.format(
        title=molecule.title, name=next(name for name, one in MOLECULES.items() if one is molecule),
        smiles=molecule.smiles, num_atoms=len(z), freedom=3 * len(z), num_frames=len(R),
        num_trajectories=NUM_TRAJECTORIES, frames=molecule.frames_per_trajectory,
        spacing=spacing, length_ps=len(R) * spacing / 1000,
        target=TEMPERATURE_K, timestep=TIMESTEP_FS, damping=DAMPING_TIME_FS, accuracy=molecule.xtb_accuracy,
        starts="lowest relaxed" if molecule.num_starts == 1 else f"the {molecule.num_starts} lowest relaxed, in turn,",
        conformers=NUM_CONFORMERS, seed=SEED, versions=versions,
        equilibration=" then ".join(f"{steps} steps at {tau:g} fs" for tau, steps in EQUILIBRATION),
        temperature=2 * kinetic.mean() / kB, error=per_run.std(ddof=1) / np.sqrt(NUM_TRAJECTORIES),
        per_element=", ".join(f"{symbol} {value:.0f} K" for symbol, value in temperature.items()),
        per_run=", ".join(f"{value:.0f}" for value in per_run), num_bonds=int(is_bond.sum()),
        low=ratio.min(), high=ratio.max(),
        deviation=np.abs(distance[:, is_bond] - distance[:, is_bond].mean(axis=0)).max(), amides=amides,
        halves=np.abs(histogram[0] - histogram[1]).sum() * 0.02, energy_std=E.std(), force_rms=np.sqrt((F**2).mean()),
        position_step=POSITION_STEP, force_step=FORCE_STEP, velocity_step=VELOCITY_STEP,
    ))  # fmt: skip


def _check_protons(R, z, first, second) -> None:
    """Raises where a hydrogen is nearer to another atom than to the one it is bonded to."""
    partner: dict[int, int] = {}
    for i, j in zip(first, second, strict=True):
        partner |= {i: j} if z[i] == 1 else {j: i} if z[j] == 1 else {}
    heavy = np.flatnonzero(z != 1)
    for hydrogen, bonded in partner.items():
        nearest = heavy[np.linalg.norm(R[:, heavy] - R[:, [hydrogen]], axis=-1).argmin(axis=1)]
        if (nearest != bonded).any():
            frame = int((nearest != bonded).argmax())
            raise ValueError(f"hydrogen {hydrogen} moves from atom {bonded} to {nearest[frame]} in frame {frame}.")


def _amides(molecule: Molecule, R) -> str:
    """The card's entry on the torsions of the peptide bonds and the chirality of the alpha carbons."""
    from ase.geometry import get_dihedrals
    from rdkit import Chem

    graph = Chem.AddHs(Chem.MolFromSmiles(molecule.smiles))
    torsions = graph.GetSubstructMatches(Chem.MolFromSmarts("[CX4][CX3](=O)[NX3][CX4]"))
    if not torsions:
        return ""
    a, b, _, c, d = np.array(torsions).T
    vectors = (R[:, j] - R[:, i] for i, j in ((a, b), (b, c), (c, d)))
    angle = get_dihedrals(*(vector.reshape(-1, 3) for vector in vectors)).reshape(-1, len(a))
    from_trans = np.abs(angle - 180)
    # [N, C, C(=O), CH3] about each alpha carbon: L where the three others form a right-handed triple.
    n, alpha, c, beta = np.array(graph.GetSubstructMatches(Chem.MolFromSmarts("[NX3][CX4;H1](C(=O))[CH3]")))[
        :, [0, 1, 2, 4]
    ].T
    to_n, to_c, to_beta = (R[:, atom] - R[:, alpha] for atom in (n, c, beta))
    volume = np.einsum("fai,fai->fa", to_n, np.cross(to_c, to_beta))
    if (from_trans > 90).any() or (volume.min(axis=0) * volume.max(axis=0) < 0).any():
        raise ValueError(
            f"a peptide bond turned to cis (at most {from_trans.max():.0f}° off trans) or an alpha carbon was inverted."
        )
    return (
        f"\n- all {len(a)} peptide bonds trans (ω at most {from_trans.max():.0f}° off 180°), "
        f"all {len(alpha)} alpha carbons of one handedness throughout"
    )


def rounded(array, step):
    """Float32 with the bits below `step` (a power of two) set to 0, which compress well."""
    return (np.round(np.asarray(array) / step) * step).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("molecule", choices=MOLECULES)
    parser.add_argument("--work", type=Path, required=True, help="folder of the raw trajectories")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument("--assemble", type=Path, metavar="FILE", help="join finished trajectories into this .npz")
    arguments = parser.parse_args()
    molecule = MOLECULES[arguments.molecule]
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.assemble:
        assemble(molecule, arguments.work, arguments.assemble)
    else:
        run_all(molecule, arguments.work, arguments.workers)


if __name__ == "__main__":
    main()
