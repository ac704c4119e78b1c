"""The program: one subcommand, and how its answer is printed."""

import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import manifold_optax as mo
from manifold_optax.command_line._answer import CommandError, Options

PROGRAM = "manifold-optax"

_BAD = 1
_USAGE = 2
"""Exit code of argparse for a command line that it cannot read."""


@dataclasses.dataclass(frozen=True)
class Subcommand:
    """One word of the program.

    Attributes:
        module: where its `OPTIONS` or `run` are; imported when it is asked for.
        help: what it does, in a few words.
        example: a whole line without the program.
    """

    module: str
    help: str
    example: str


SUBCOMMANDS = {
    "run": Subcommand("_run", "run an experiment", "run mlp --output-dir runs/mlp"),
    "describe": Subcommand(
        "_describe", "read a model from its computation", "describe my_model:build"
    ),
    "bench": Subcommand(
        "_bench", "measure optimizer steps on this machine", "bench --width 512"
    ),
    "doctor": Subcommand(
        "_doctor", "check the numbers on this machine, for a bug report", "doctor"
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one subcommand.

    Args:
        arguments: command line without the program; that of the process by default.

    Raises:
        SystemExit: with 1 after an answer that is not good, or where a package is
            missing; with 2 for what cannot be answered. `run` ends as an experiment
            does.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    first = words.pop(0) if words else "--help"
    if first in ("-h", "--help"):
        sys.stdout.write(_help())
    elif first == "--version":
        sys.stdout.write(f"{PROGRAM} {mo.__version__}\n")
    elif first not in SUBCOMMANDS:
        known = ", ".join(SUBCOMMANDS)
        _stop(f"there is no {first!r}, but {known}; see {PROGRAM} --help", _USAGE)
    elif first == "run":
        _module(first).run(words)
    else:
        _answer(first, words)


def _answer(name: str, words: Sequence[str]) -> None:
    """Prints what a subcommand answers."""
    tyro = _imported("tyro")
    kind = _module(name).OPTIONS
    example = f"{PROGRAM} {SUBCOMMANDS[name].example}"
    options: Options = tyro.cli(
        kind,
        prog=f"{PROGRAM} {name}",
        description=f"{inspect.getdoc(kind)}\n\nExample: {example}",
        args=words,
    )
    try:
        answer = options.answer()
    except CommandError as error:
        _stop(str(error), _USAGE)
    text = (
        json.dumps(answer.as_json(), indent=2, ensure_ascii=False)
        if options.json
        else str(answer)
    )
    sys.stdout.write(f"{text}\n")
    if not answer.is_good:
        sys.exit(_BAD)


def _module(name: str) -> Any:
    return _imported(f"manifold_optax.command_line.{SUBCOMMANDS[name].module}")


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        _stop(
            f"{error.name} is not installed; it comes with "
            "pip install 'manifold-optax[experiments]'",
            _BAD,
        )


def _help() -> str:
    width = max(map(len, SUBCOMMANDS))
    lines = [
        f"usage: {PROGRAM} <subcommand> [options]",
        "",
        *(f"  {name:{width}}  {one.help}" for name, one in SUBCOMMANDS.items()),
        "",
        "examples:",
        *(f"  {PROGRAM} {one.example}" for one in SUBCOMMANDS.values()),
        "",
        f"{PROGRAM} <subcommand> --help lists the options of one.",
    ]
    return "\n".join(lines) + "\n"


def _stop(message: str, code: int) -> NoReturn:
    """Ends the program with one sentence."""
    sys.stderr.write(f"{PROGRAM}: {message}.\n")
    sys.exit(code)
