"""The command line of all experiments."""

import argparse
import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints, NoReturn

import jax
import tyro

from manifold_optax.experiments.harness.config_file import read_overrides
from manifold_optax.experiments.harness.experiment import GridExperiment
from manifold_optax.experiments.harness.output import UnusableOutputError
from manifold_optax.experiments.harness.page import Origin
from manifold_optax.experiments.harness.runs import run_experiment
from manifold_optax.experiments.harness.signals import terminable, Terminated
from manifold_optax.experiments.harness.typed import replace_typed

_PROGRAM = "python -m manifold_optax.experiments"
_INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended: 128 and the number of the signal."""
_TERMINATED = 143
"""Exit code of a program that SIGTERM ended, which schedulers send before they kill."""


@dataclasses.dataclass(frozen=True)
class Command:
    """How an experiment is started; its folder exports one as `COMMAND`.

    Attributes:
        help: What it does, in a few words.
        description: The same in some sentences, above its settings.
        default: The settings that files and options override.
        prepare: Settings → the experiment, with its data read. ValueError and OSError
            are shown to the user.
        chooser: A setting whose value decides the defaults of the others; None if
            there is none.
        defaults_of: Value of `chooser` → defaults.
    """

    help: str
    description: str
    default: Any
    prepare: Callable[[Any], GridExperiment[Any, Any, Any]]
    chooser: str | None = None
    defaults_of: Callable[[Any], Any] | None = None


def main(
    commands: Mapping[str, Command], arguments: Sequence[str] | None = None
) -> None:
    """Runs one experiment.

    The defaults are overridden by the file given as `--config`, and that by the command
    line.

    Args:
        commands: The experiments, by name.
        arguments: Command line without the program; that of the process by default.

    Raises:
        SystemExit: with 2 for wrong usage, 1 where something cannot be read or
            written, 130 after Ctrl-C, 143 after SIGTERM.
    """
    parser, subparsers = _parsers(commands)
    known, options = parser.parse_known_args(arguments)
    subparser = subparsers[known.experiment]
    try:
        with terminable():
            experiment = _prepare(commands[known.experiment], known, options)
    except (ValueError, OSError) as error:
        subparser.error(str(error))
    except KeyboardInterrupt as error:
        _stop("interrupted before the first run", code=_code(error))
    output = experiment.config.output_dir
    try:
        with terminable():
            report = run_experiment(experiment, _origin(commands, known, arguments))
    except FileExistsError as error:
        subparser.error(str(error))
    except UnusableOutputError as error:
        _stop(str(error), code=1)
    except (OSError, jax.errors.JaxRuntimeError) as error:
        reason = str(error).splitlines()[0]
        _stop(
            f"{reason}. What is finished is kept in {output}; mend the cause and "
            f"continue with --resume.",
            code=1,
        )
    except KeyboardInterrupt as error:
        _stop(
            f"interrupted. What is finished is kept in {output}; continue with "
            f"--resume.",
            code=_code(error),
        )
    sys.stdout.write(f"{report}\nWritten to {output}.\n")


def _origin(
    commands: Mapping[str, Command],
    known: argparse.Namespace,
    arguments: Sequence[str] | None,
) -> Origin:
    """Returns the command line, as it makes the report from nothing."""
    words = sys.argv[1:] if arguments is None else arguments
    afresh = shlex.join(word for word in words if word != "--resume")
    help = commands[known.experiment].help
    return Origin(known.experiment, help, f"{_PROGRAM} {afresh}")


def _code(interrupt: KeyboardInterrupt) -> int:
    return _TERMINATED if isinstance(interrupt, Terminated) else _INTERRUPTED


def _parsers(
    commands: Mapping[str, Command],
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Returns the parser of the program, and those of its experiments by name."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, allow_abbrev=False)
    experiments = parser.add_subparsers(dest="experiment", required=True)
    subparsers: dict[str, argparse.ArgumentParser] = {}
    for name, command in commands.items():
        subparser = experiments.add_parser(
            name,
            help=f"{command.help}; `{name} --help` lists its settings",
            usage=f"{_PROGRAM} {name} [--config FILE.toml] [OPTIONS]",
            add_help=False,
            allow_abbrev=False,
        )
        subparser.add_argument("--config", type=pathlib.Path)
        if command.chooser is not None:
            hint = get_type_hints(type(command.default))[command.chooser]
            subparser.add_argument(f"--{command.chooser}", choices=get_args(hint))
        subparsers[name] = subparser
    return parser, subparsers


def _prepare(
    command: Command, known: argparse.Namespace, options: Sequence[str]
) -> GridExperiment[Any, Any, Any]:
    """Reads the settings, then the data."""
    table = {} if known.config is None else read_overrides(known.config)
    default = command.default
    if command.chooser is not None and command.defaults_of is not None:
        if chosen := getattr(known, command.chooser):
            table[command.chooser] = chosen
        only = {key: table[key] for key in table if key == command.chooser}
        chosen = getattr(replace_typed(default, only), command.chooser)
        default = command.defaults_of(chosen)
    config = tyro.cli(
        type(default),
        prog=f"{_PROGRAM} {known.experiment} [--config FILE.toml]",
        description=command.description,
        default=replace_typed(default, table),
        args=options,
    )
    return command.prepare(config)


def _stop(message: str, *, code: int) -> NoReturn:
    """Ends the program with one sentence."""
    sys.stderr.write(f"\n{_PROGRAM}: {message}\n")
    sys.exit(code)
