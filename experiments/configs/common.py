"""Defaults shared by all experiments: every field once, with its unit and meaning."""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

OF_THE_MACHINE = ("run_dir", "host_devices", "cluster")
"""Fields that say where an experiment runs, not what it is: they are not kept with its results."""


def get_config() -> ConfigDict:
    """Fields that have no sensible common value are placeholders, None until they are set."""
    config = ConfigDict()
    config.name = config_dict.placeholder(str)  # names the run's directory and its record
    config.system = "molecule"  # kind of system: molecule or liquid
    config.seed = 0  # of all random numbers
    config.run_dir = ""  # directory of results; empty: runs/NAME_seedSEED. An interrupted run in it is resumed
    config.host_devices = 0  # CPU devices for replicas; 0: one per core

    cluster = config.cluster = ConfigDict()  # several processes that run one experiment, with a shared folder
    cluster.num_processes = 1
    cluster.process = 0  # index of this process
    cluster.coordinator = ""  # host:port of process 0

    data = config.data = ConfigDict()
    # .npz (MD17 style), .xyz, .extxyz (also .gz), .h5 or .hdf5 (FILE.h5:GROUP for one of several molecules), .traj or
    # .db of ASE; several files of one system separated by commas, or a pattern such as run*.xyz
    data.path = config_dict.placeholder(str)
    data.energy_unit = config_dict.placeholder(str)  # eV, kcal/mol, hartree, kJ/mol or meV
    data.length_unit = "angstrom"  # angstrom, bohr or nm; forces are in energy_unit/length_unit
    data.energy_key = ""  # name of the energies in the file; empty: the known names, E, energy, REF_energy and others
    data.force_key = ""  # the same for forces, F, forces, REF_forces and others
    data.mass_key = ""  # the same for masses, amu: masses, mass; without them those of the elements
    data.max_gigabytes = 1.0  # bound on what all files unpack to, checked before each is read
    data.num_train = 1000  # frames of the static training set
    data.num_validation = 200  # frames that select the best parameters of pretraining
    data.num_test = 500  # held-out frames: errors, and starts of the evaluation
    data.num_reference = 0  # frames, not held out, that the references of observables are means over; 0: all of them

    pretrain = config.pretrain = ConfigDict()
    pretrain.num_steps = 100_000  # largest number of optimizer steps
    pretrain.batch_size = 100  # frames per step
    pretrain.learning_rate = 1e-3  # Adam
    pretrain.schedule = "cosine"  # constant; cosine: to 0 over num_steps; plateau: times plateau_factor when it stalls
    pretrain.plateau_factor = 0.8
    pretrain.plateau_patience = 5  # validations without improvement
    pretrain.min_rate_scale = 1e-3  # plateau: ends when the rate has fallen by this factor
    pretrain.energy_weight = 0.05  # λ_U of Equation 3, per eV²
    pretrain.force_weight = 0.95  # λ_F of Equation 3, per (eV/Å)²
    pretrain.average_decay = 0.99  # of the moving average of parameters that is kept
    pretrain.clip_norm = 10.0  # of the gradient
    pretrain.steps_per_validation = 100

    md = config.md = ConfigDict()
    md.temperature_K = config_dict.placeholder(float)
    md.timestep_fs = 0.5
    md.thermostat = "langevin"  # langevin or nose_hoover
    md.damping_time_fs = 1000.0  # langevin: 1/friction; nose_hoover: period of the thermostat
    md.table_intervals = 1024  # intervals of the tables that replace radial networks in MD; 0: exact networks
    md.replica_batch = 0  # replicas in a batch on a device; 0: 1 on a CPU, as many as fit on an accelerator

    stable = config.stable = ConfigDict()
    stable.num_replicas = 128  # R
    stable.steps_per_epoch = 2000  # t
    stable.steps_per_frame = 100  # S
    stable.max_unstable = 0.75  # f_max: fraction that ends the simulation phase
    stable.min_unstable = 0.0  # f_min: fraction that ends the learning phase
    stable.num_cycles = 4
    stable.max_epochs = 200  # of one learning phase
    stable.optimizer = "sgd"  # sgd or adam
    stable.learning_rate = 1e-3  # α
    stable.rate_schedule = "constant"  # cosine: to 0 over max_epochs of each learning phase, on top of the plateau
    stable.observable_clip_norm = 0.0  # of the gradient of the observable loss before it is added; 0: not clipped
    stable.clip_norm = 1.0  # of the whole gradient; 0: not clipped
    stable.qm_weight = 10.0  # λ of Equation 7
    stable.qm_batch_size = 100  # frames of the static set per epoch; the whole set if that is smaller
    stable.max_updates = 1  # of the parameters per epoch; above 1 its samples are reused by reweighting
    stable.min_effective_fraction = 0.5  # samples are reused while N_eff/N is at least this
    stable.jackknife_blocks = 0  # blocks of replicas for the gradient's signal-to-noise, a gradient each; 0: none
    stable.wanted_signal_to_noise = (
        0.0  # below it the next epoch simulates a larger multiple of t; 0: always t; see jackknife_blocks
    )
    stable.max_rounds = 8  # largest multiple of t
    stable.plateau_factor = 0.2  # the rate is multiplied by this when the observable loss stalls
    stable.plateau_patience = 10  # epochs without improvement
    stable.min_rate_scale = 0.04  # ends the learning phase: the rate has fallen by a factor of 25
    stable.max_force_error = 3.0  # force MAE on the static set over that at the start, beyond which a step is undone
    stable.max_rollbacks = 3  # steps of learning undone for what they broke; training ends when another would be due
    stable.rollback_rate_factor = 0.1  # the rate is multiplied by this at each of them
    stable.max_failures = 0  # replicas whose frames around the failure are kept, in failures_training.xyz; 0: none
    stable.estimator_chunk = 0  # samples whose energies are differentiated together; 0: chosen from the memory
    stable.max_simulation_ps = 1000.0  # per replica and simulation phase: longest search for instability

    stability = config.stability = ConfigDict()
    stability.others = ""  # further criteria of training, name=threshold, …: see CRITERIA of stablejax/named.py

    observable = config.observable = ConfigDict()
    observable.others = ""  # further observables that are trained on, name=weight, …: see OBSERVABLES there

    evaluate = config.evaluate = ConfigDict()
    evaluate.num_replicas = 256
    evaluate.horizon_ps = 300.0  # a replica that is stable until then is censored
    evaluate.frame_spacing_fs = 10.0  # of the frames that observables are taken from
    evaluate.chunk_ps = 1.0  # simulated between two checks by the host; also the window of the VACF and of motion
    evaluate.max_failures = 8  # replicas whose frames around the failure are kept, in failures_PHASE.xyz; 0: none
    evaluate.trajectory = 0  # replicas whose stable frames are written to trajectory_PHASE_REPLICA.xyz; 0: none
    evaluate.vacf_window_fs = 500.0  # largest lag of the velocity autocorrelation function
    return config
