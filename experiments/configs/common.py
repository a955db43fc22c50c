"""Defaults shared by all experiments: every field once, with its unit and meaning.

The comment beside a field is what `--help` says of it: see `meanings`.
"""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

OF_THE_MACHINE = ("run_dir", "host_devices", "cluster")
"""Fields that say where an experiment runs, not what it is: they are not kept with its results."""


def get_config() -> ConfigDict:
    """Fields that have no sensible common value are placeholders, None until they are set."""
    config = ConfigDict()
    config.name = config_dict.placeholder(str)  # names the run's directory and its record
    config.system = "molecule"  # kind of system: molecule or liquid
    config.seed = 0  # that all random numbers follow from
    config.run_dir = ""  # directory of results; empty: runs/NAME_seedSEED. An interrupted run in it is resumed
    config.host_devices = 0  # CPU devices for replicas; 0: one per core

    cluster = config.cluster = ConfigDict()  # several processes that run one experiment, with a shared folder
    cluster.num_processes = 1  # how many they are
    cluster.process = 0  # index of this process, from 0
    cluster.coordinator = ""  # host:port of process 0

    data = config.data = ConfigDict()  # the reference data set and the use of its frames
    data.path = config_dict.placeholder(
        str
    )  # .npz, .xyz (also .gz), .h5 (FILE.h5:GROUP), .traj or .db; or several, A,B
    data.energy_unit = config_dict.placeholder(str)  # of the file: eV, kcal/mol, hartree, kJ/mol or meV
    data.length_unit = "angstrom"  # of the file: angstrom, bohr or nm; forces are in energy_unit/length_unit
    data.energy_key = ""  # name of the energies in the file; empty: the known names, E, energy, REF_energy and others
    data.force_key = ""  # name of the forces in the file; empty: the known names, F, forces, REF_forces and others
    data.mass_key = ""  # name of the masses in the file, amu; empty: masses or mass, or else those of the elements
    data.max_gigabytes = 1.0  # bound on what all files unpack to, GB, checked before each is read
    data.num_train = 1000  # frames of the static training set
    data.num_validation = 200  # frames that select the best parameters of pretraining
    data.num_test = 500  # held-out frames: errors, and starts of the evaluation
    data.num_reference = 0  # frames, not held out, that the references of observables are means over; 0: all of them

    pretrain = config.pretrain = ConfigDict()  # supervised training on energies and forces
    pretrain.num_steps = 100_000  # largest number of optimizer steps
    pretrain.batch_size = 100  # frames per step
    pretrain.learning_rate = 1e-3  # of Adam
    pretrain.schedule = "cosine"  # constant; cosine: to 0 over num_steps; plateau: lowered when the loss stalls
    pretrain.plateau_factor = 0.8  # the rate is multiplied by this when the loss stalls, in the schedule plateau
    pretrain.plateau_patience = 5  # validations without improvement after which the loss has stalled
    pretrain.min_rate_scale = 1e-3  # pretraining ends when the schedule plateau has lowered the rate by this factor
    pretrain.energy_weight = 0.05  # λ_U of Equation 3, per eV²
    pretrain.force_weight = 0.95  # λ_F of Equation 3, per (eV/Å)²
    pretrain.average_decay = 0.99  # of the moving average of the parameters, which is what is kept
    pretrain.weight_decay = 0.0  # decoupled, of Adam, times the rate
    pretrain.position_noise_A = 0.0  # standard deviation of the noise on the positions of every batch, Å
    pretrain.clip_norm = 10.0  # largest norm of the gradient, which is scaled down to it
    pretrain.steps_per_validation = 100  # optimizer steps between two validations

    md = config.md = ConfigDict()  # molecular dynamics, in StABlE training and at evaluation
    md.temperature_K = config_dict.placeholder(float)  # of the thermostat, K; that of the data
    md.timestep_fs = 0.5  # of the dynamics, fs
    md.thermostat = "langevin"  # langevin or nose_hoover, at constant temperature and volume
    md.damping_time_fs = 1000.0  # langevin: 1/friction, fs; nose_hoover: period of the thermostat, fs
    md.table_intervals = 1024  # intervals of the tables that replace radial networks in MD; 0: exact networks
    md.replica_batch = 0  # replicas in a batch on a device; 0: 1 on a CPU, as many as fit on an accelerator

    stable = config.stable = ConfigDict()  # StABlE training (Algorithm 1)
    stable.num_replicas = 128  # R: simulated side by side
    stable.temperature_ratio = 1.0  # of StABlE training, over md.temperature_K: hotter replicas fail sooner
    stable.steps_per_epoch = 2000  # t: of each replica in one search for failures, and in one epoch of learning
    stable.steps_per_frame = 100  # S: between two frames that are learned from; divides t
    stable.max_unstable = 0.75  # f_max: unstable fraction of the replicas that ends the search for failures
    stable.min_unstable = 0.0  # f_min: unstable fraction of the replicas that ends the learning phase
    stable.num_cycles = 4  # of a search for failures and a learning phase each
    stable.restarts = False  # whether every search begins at the same frames; if not, where the last phase ended
    stable.target_ratio = 0.0  # training ends when replicas are stable this many times as long as at first; 0: never
    stable.max_minutes = 0.0  # after which nothing more is learned; the last search still ends; 0: any
    stable.returns_best = False  # whether a search follows the last cycle, and the best parameters are returned
    stable.max_held_out_error = 0.0  # bound on the force MAE on validation frames, over that at the start; 0: any
    stable.cycle_factor = 1.0  # the rate is multiplied by this from cycle to cycle
    stable.max_epochs = 200  # of one learning phase, at the most
    stable.optimizer = "sgd"  # of learning: sgd, adam, or natural, steps that change energies and forces least
    stable.learning_rate = 1e-3  # α, of sgd and adam
    stable.max_change = (
        0.3  # natural: of energies and forces on the anchors, rms, over half the error and the error on the static set
    )
    stable.max_qm_loss = 1.0  # natural: bound on the static set's loss in units of its errors, over that at the start
    stable.anchor_atoms = 2000  # natural: in all frames whose energies and forces should stay
    stable.damping = 1e-5  # natural: of the metric, over its curvature along the gradient
    stable.num_iterations = 40  # natural: of conjugate gradients
    stable.rate_schedule = "constant"  # constant; cosine: to 0 over the max_epochs of a phase, on top of the plateau
    stable.observable_clip_norm = 0.0  # largest norm of the gradient of the observable loss, before it is added; 0: any
    stable.clip_norm = 1.0  # largest norm of the whole gradient; 0: any
    stable.qm_weight = 10.0  # λ of Equation 7: of the loss on the static set, beside that of the observables
    stable.qm_batch_size = 100  # frames of the static set per epoch; the whole set if that is smaller
    stable.max_updates = 1  # of the parameters in an epoch, at the most; above 1 its samples are reused by reweighting
    stable.min_effective_fraction = 0.5  # samples are reused while N_eff/N is at least this
    stable.buffer_epochs = 0  # earlier ones whose samples are learned from, too, reweighted to the present potential
    stable.jackknife_blocks = 0  # blocks of replicas for the gradient's signal-to-noise, a gradient each; 0: none
    stable.wanted_signal_to_noise = (
        0.0  # below it the next epoch simulates a larger multiple of t; 0: always t; see jackknife_blocks
    )
    stable.max_rounds = 8  # largest multiple of t that an epoch simulates
    stable.plateau_factor = 0.2  # the rate is multiplied by this when the observable loss stalls
    stable.plateau_patience = 10  # epochs without improvement after which the observable loss has stalled
    stable.min_rate_scale = 0.04  # the learning phase ends when the rate has fallen to this fraction of it
    stable.max_force_error = 3.0  # force MAE on the static set over that at the start, beyond which a step is undone
    stable.max_rollbacks = 3  # steps of learning undone for what they broke; training ends when another would be due
    stable.rollback_rate_factor = 0.1  # the rate is multiplied by this whenever a step is undone
    stable.max_failures = 0  # replicas whose frames around the failure are kept, in failures_training.xyz; 0: none
    stable.estimator_chunk = 0  # samples whose energies are differentiated together; 0: chosen from the memory
    stable.max_simulation_ps = 1000.0  # longest search for failures, ps of each replica in each cycle

    stability = config.stability = ConfigDict()  # criteria: when a simulation counts as unstable
    stability.range_margin_A = 0.0  # of distances beyond the reference's, Å, in training; 0: they are not watched
    stability.others = ""  # further criteria of training, name=threshold, …: see CRITERIA of stablejax/named.py

    observable = config.observable = ConfigDict()  # averages over simulations that have to match the reference
    observable.in_fluctuations = False  # whether every observable is in units of its fluctuations in the reference
    observable.violation_weight = (
        0.0  # of the squared mean violation of the criterion of training, less the reference's
    )
    observable.violation_width_A = 0.03  # within which the violation rises from 0 to 1, Å
    observable.others = ""  # further observables to train on, name=weight, …: see OBSERVABLES of stablejax/named.py

    evaluate = config.evaluate = ConfigDict()  # simulations before and after StABlE training
    evaluate.num_replicas = 256  # simulated side by side, from held-out frames
    evaluate.horizon_ps = 300.0  # longest simulation of a replica, ps; one that is stable until then counts as censored
    evaluate.horizon_ratio = 0.0  # longest simulation after training over the median before; 0: horizon_ps for both
    evaluate.frame_spacing_fs = 10.0  # between two frames that observables are taken from, fs
    evaluate.chunk_ps = 1.0  # simulated between two checks, ps; also the window of velocity correlations and of motion
    evaluate.max_failures = 8  # replicas whose frames around the failure are kept, in failures_PHASE.xyz; 0: none
    evaluate.trajectory = 0  # replicas whose stable frames are written to trajectory_PHASE_REPLICA.xyz; 0: none
    evaluate.vacf_window_fs = 500.0  # largest lag of the velocity autocorrelation function, fs
    return config
