"""The command line of an experiment, and the setup before JAX starts: devices, warnings, compiled programs."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments import door, false_alarms, interruption, processes, provenance, usage
from experiments.configs import check, files

CONFIGS = Path(__file__).parent / "configs"

RENAMED = {
    "observable.molecules_per_neighbourhood": "observable.molecules_per_neighborhood",
    "stable.trust_blocks": "stable.jackknife_blocks",
}
"""Fields of configs by their former names, which command lines and files may still use."""
SWITCHES = ("dry_run", "nodry_run")
"""Options without a value."""
HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")


def start(name: str, *, systems: Sequence[str] = (), takes_data: bool = False) -> None:
    """The command line of an experiment: `--config=FILE`, `experiments/configs/NAME.py` unless given, and its fields.

    Args:
      name: of the config file; `{system}` in it is replaced by the value of `--system`, then required.
      systems: to choose from.
      takes_data: whether a file of data is an argument, from which the config follows unless one is given; see `door`.
    """
    try:
        wants_help, argv = any(one in HELP for one in sys.argv), [one for one in sys.argv if one not in HELP]
        if systems and wants_help and _taken(argv, "--system")[0] is None:
            argv = [*argv, f"--system={systems[0]}"]
        config, argv, file, system, opened = define(name, argv, systems=systems, takes_data=takes_data)
        flags.DEFINE_bool("dry_run", False, "say what would be done, and end")
    except (ValueError, OSError, flags.Error) as error:
        fail(error)
    if wants_help:
        parse(argv)
        about, width = sys.modules["__main__"].__doc__ or "", shutil.get_terminal_size().columns
        print(usage.text(config, about=about, file=file, systems=systems, system=system, width=width), end="")
        return
    app.run(lambda _: main(config, is_dry=flags.FLAGS.dry_run, opened=opened), argv=argv, flags_parser=parse)


class Defined(NamedTuple):
    """The config of a command line."""

    config: ConfigDict
    argv: list[str]  # what is left for `parse`, which sets its fields
    file: str
    system: str | None  # where there are several to choose from
    opened: door.Opened | None  # what the config follows from; None: it is that of the file


def define(
    name: str,
    argv: list[str],
    *,
    systems: Sequence[str] = (),
    takes_data: bool = False,
    values: flags.FlagValues = flags.FLAGS,
) -> Defined:
    """The config of a command line, whose fields `parse` sets.

    Args:
      name: as for `start`.
      argv: the program and its arguments.
      systems: to choose from.
      takes_data: see `start`.
      values: flags, to which the config is added.

    Raises:
      ValueError: something is wrong with the command line or the file of the config.
      OSError: there is no such file.
      flags.Error: a file of flags cannot be read.
    """
    path, argv = split_arguments(argv)
    system = None
    if systems:
        system, argv = chosen("--system", systems, argv)
        name = name.format(system=system)
    opened = None
    if takes_data:
        minutes, argv = _taken(with_data(argv), "--minutes")
        if path is None:
            path, opened = door.open_data(given_fields(argv), minutes=_number("--minutes", minutes))
        elif minutes is not None:
            raise ValueError("--minutes chooses sizes, which are those of --config: leave one of them.")
    path = path or str(CONFIGS / f"{name}.py")
    model, _ = _taken(argv, "--config.model.name")
    config = with_model(opened.config, model) if opened else load_config(path, model=model)
    check_names(config, argv)
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    return Defined(config, argv, path, system, opened)


def fail(error: Exception) -> NoReturn:
    """End with what is wrong with the input: a sentence, or a line for each mistake; exit code 2."""
    for line in str(error).splitlines() or [type(error).__name__]:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def check_names(config: ConfigDict, argv: list[str]) -> None:
    """Refuse fields on the command line that the config does not have.

    Args:
      config: of the experiment.
      argv: the program and its arguments.

    Raises:
      ValueError: there is such a field.
    """
    known = [name for name, _ in check.fields(config)]
    for argument in argv[1:]:
        if argument == "--":
            break
        given = re.match(r"--?(?:no)?config\.([^=\[]+)", argument)
        if given and given[1] not in known:
            raise ValueError(f"config has no field {given[1]}: {check.advice(given[1], known)}")


def parse(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Set fields of the config by the arguments; ends the program where they cannot be set.

    Args:
      argv: the program and its arguments.
      values: flags, with the config.
    """
    try:
        others = values(argv)
        if others[1:]:
            raise ValueError(f"expected options --NAME=VALUE only, got {others[1]!r}: fields are --config.FIELD=VALUE.")
    except (flags.Error, ValueError, TypeError) as error:
        fail(ValueError(" ".join(str(error).split())))
    return others


def with_data(argv: list[str]) -> list[str]:
    """The arguments with that of a file, which is no option, as `--config.data.path`; options as NAME=VALUE.

    Args:
      argv: the program and its arguments.

    Raises:
      ValueError: there are several.
    """
    found, others, arguments = [], argv[:1], argv[1:]
    while arguments:
        argument, *arguments = arguments
        if not argument.startswith("-"):
            found.append(argument)
            continue
        takes_next = "=" not in argument and argument.lstrip("-") not in SWITCHES
        if takes_next and arguments and not arguments[0].startswith("-"):
            argument, *arguments = f"{argument}={arguments[0]}", *arguments[1:]
        others.append(argument)
    if len(found) > 1:
        raise ValueError(f"expected one file, or several as A,B, got {' '.join(found)}.")
    return [*others, *(f"--config.data.path={one}" for one in found)]


def given_fields(argv: list[str]) -> dict[str, str]:
    """Fields of the config that the arguments set, by their names, as they are written.

    Args:
      argv: the program and its arguments.
    """
    found = {}
    for argument in argv[1:]:
        flag, equals, value = argument.partition("=")
        if equals and (field := re.sub(r"^--?config\.", "", flag)) != flag:
            found[field] = value
    return found


def split_arguments(argv: list[str]) -> tuple[str | None, list[str]]:
    """The file that `--config` names, if any, and the other arguments with fields under their current names.

    Args:
      argv: the program and its arguments.

    Raises:
      ValueError: `--config` without a file.
    """
    path, others = None, []
    arguments = iter(flags.FLAGS.read_flags_from_files(argv, force_gnu=False))
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            path = value if equals else next(arguments, "")
            if not path or path.startswith("-"):
                raise ValueError("--config needs a file: write --config=FILE.")
            continue
        field = re.sub(r"^--?config\.", "", flag)
        if field != flag and field in RENAMED:
            flag = f"--config.{RENAMED[field]}"
            _note_renamed(field)
        others.append(flag + equals + value)
    return path, others


def chosen(flag: str, known: Sequence[str], argv: list[str]) -> tuple[str, list[str]]:
    """The value of a flag, and the arguments without it.

    Args:
      flag: as it is written.
      known: values to choose from.
      argv: the program and its arguments.

    Raises:
      ValueError: another value, or none.
    """
    value, others = _taken(argv, flag)
    if value is None or value not in known:
        raise ValueError(f"{flag} has to be one of {', '.join(known)}, got {value or ''!r}: write {flag}={known[0]}.")
    return value, others


def check_given(config: ConfigDict) -> None:
    """Refuse a config with fields that have no default and were not set.

    Raises:
      ValueError: some are missing.
    """
    missing = [f"config.{name}" for name, value in check.fields(config) if value is None]
    if missing:
        raise ValueError(f"expected a value of {', '.join(missing)}, got none: set --{missing[0]}=… and so on.")


def load_config(path: str, *, model: str | None = None) -> ConfigDict:
    """The config of a file, its fields under their current names.

    Args:
      path: of the file, or `FILE:ARGUMENT` for its `get_config`.
      model: name of a model that replaces the one of the file, with all its sizes. None: the file's.

    Raises:
      ValueError: there is no such model, or none.
      OSError: there is no such file.
    """
    file, colon, argument = path.partition(":")
    config = files.read(Path(file), *[argument] * bool(colon))
    if "model" not in config:
        raise ValueError(
            f"{path}: expected a config with a model, got none: begin with that of an experiment, such as "
            "experiments/configs/molecule.py."
        )
    with config.unlocked():
        for old, new in RENAMED.items():
            *sections, former = old.split(".")
            section = config
            for part in sections:
                section = section.get(part, ConfigDict())
            if former in section:
                section[new.rpartition(".")[2]] = section[former]
                del section[former]
                _note_renamed(old)
    return with_model(config, model)


def with_model(config: ConfigDict, model: str | None) -> ConfigDict:
    """The config with the model of that name in the place of its own, with all its sizes.

    Args:
      config: is changed.
      model: None: its own.

    Raises:
      ValueError: there is none of that name.
    """
    if model is not None and model != config.model.name:
        with config.unlocked():
            config.model = _model_config(model)
    return config.lock()


def main(config: ConfigDict, *, is_dry: bool = False, opened: door.Opened | None = None) -> None:
    """Run an experiment from the command line.

    Args:
      config: of the experiment.
      is_dry: whether to say what would be done instead.
      opened: what the config follows from; sizes are chosen for its time.
    """
    with reported():
        check_given(config)
        check.check(config)
        configure(host_devices=config.host_devices)
        processes.join(config.cluster)
        # Imported here: importing jax-md starts the backend, which fixes the number of devices.
        from experiments import dry_run, pipeline, sizing

        if opened is not None:
            sizing.complete(config, opened, is_dry=is_dry)
            check.check(config)
        (dry_run if is_dry else pipeline).run(config)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """The boundary of a command line: what ends the program inside is said, with an exit code of its own.

    Errors in the input are one sentence and code 2; a signal to stop is obeyed at the next checkpoint, with the code of
    the signal; a defect of the program keeps its traceback.
    """
    try:
        with interruption.deferred():
            yield
    except interruption.Interrupted as stop:
        print("stopped, what was done is saved: the same command goes on from there", file=sys.stderr)
        sys.exit(stop.exit_code)
    except (ValueError, OSError) as error:
        fail(error)
    except MemoryError as error:
        fail(ValueError(f"the memory of this machine does not suffice: {error or 'use fewer frames or replicas'}."))
    except Exception:
        traceback.print_exc()
        print("This is a defect of the program: please report it with the traceback above.", file=sys.stderr)
        sys.exit(1)


def configure(*, host_devices: int, has_threads: bool = False, keeps_programs: bool = True) -> None:
    """Set up JAX for parallel replicas. It has to be called before JAX computes anything.

    Replicas are sharded over devices, so one XLA device per core is how the cores of a CPU are used; it changes
    nothing on a GPU or TPU.

    Args:
      host_devices: XLA devices of the host; 0: one per core.
      has_threads: whether a device uses all cores.
      keeps_programs: whether compiled programs are kept on disk for the next run.
    """
    # jax-md requests float64 in places and gets float32, which is intended without x64.
    warnings.filterwarnings("ignore", message="Explicitly requested dtype", category=UserWarning)
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    # It logs the creation of its font cache, once on every new machine.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
    if not has_threads:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")
    jax.config.update("jax_num_cpu_devices", host_devices or provenance.available_cores())
    if keeps_programs:
        false_alarms.drop()
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            jax.config.update("jax_compilation_cache_dir", str(make_private(cache_folder())))


def cache_folder() -> Path:
    """Where compiled programs are kept for the next run; a folder of its own for each kind of processor.

    `JAX_COMPILATION_CACHE_DIR` chooses another one.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = hashlib.sha256(provenance.cpu_features().encode()).hexdigest()[:12]
    return base / "stablejax" / "xla" / kind


def make_private(folder: Path) -> Path:
    """Create the folder of programs, which are code that a later run executes: nobody else may write to it.

    Raises:
      ValueError: it belongs to somebody else.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise ValueError(
            f"{folder}, of compiled programs, belongs to another user: choose one of yours with "
            "JAX_COMPILATION_CACHE_DIR."
        )
    folder.chmod(0o700)  # one of a former version, or under another umask
    return folder


def _model_config(name: str) -> ConfigDict:
    """The sizes of a model, from its own file."""
    known = sorted(path.stem for path in (CONFIGS / "models").glob("[a-z]*.py"))
    if name not in known:
        raise ValueError(f"config.model.name has to be one of {', '.join(known)}, got {name!r}.")
    return files.read(CONFIGS / "models" / f"{name}.py")


def _number(flag: str, value: str | None) -> float | None:
    try:
        number = None if value is None else float(value)
    except ValueError:
        number = math.nan
    if number is None or 0 < number < math.inf:
        return number
    raise ValueError(f"{flag} has to be a number above 0, got {value!r}.")


def _taken(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The last value that is given to a flag, if any, and the arguments without it."""
    value, others, arguments = None, [], iter(argv)
    for argument in arguments:
        name, equals, given = argument.partition("=")
        if name == flag:
            value = given if equals else next(arguments, "")
        else:
            others.append(argument)
    return value, others


def _note_renamed(old: str) -> None:
    print(f"note: config.{old} is now config.{RENAMED[old]}", file=sys.stderr)
