"""Command line: `python -m manifold_optax.experiments <name> [overrides]`."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence

import tyro

from manifold_optax.experiments.config import (
    DATA_NAMES,
    default_config,
    MlpConfig,
)
from manifold_optax.experiments.config_file import apply_overrides, read_overrides
from manifold_optax.experiments.data import load_dataset
from manifold_optax.experiments.lm import LmConfig, load_text, run_lm
from manifold_optax.experiments.mlp import run_mlp
from manifold_optax.experiments.records import UnusableOutputError

_PROGRAM = "python -m manifold_optax.experiments"
_MLP_DESCRIPTION = (
    "Trains one multilayer perceptron with several optimizers. Defaults are those of "
    "the data set; a TOML file (--config) overrides them, and options override it."
)
_LM_DESCRIPTION = (
    "Trains a small language model over characters with several optimizers, and "
    "records the largest attention logit of each head. A TOML file (--config) "
    "overrides the defaults, and options override it."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one experiment.

    The defaults are overridden by the file given as `--config`, and that by the command
    line. Those of `mlp` are the defaults of its data set.

    Args:
        arguments: Command line without the program; that of the process by default.
    """
    parser = argparse.ArgumentParser(prog=_PROGRAM, allow_abbrev=False)
    experiments = parser.add_subparsers(dest="experiment", required=True)
    mlp = experiments.add_parser(
        "mlp",
        help="the published experiment; `mlp --help` lists its settings",
        usage=f"{_PROGRAM} mlp [--config FILE.toml] [--data NAME] [OPTIONS]",
        add_help=False,
        allow_abbrev=False,
    )
    mlp.add_argument("--data", choices=DATA_NAMES)
    lm = experiments.add_parser(
        "lm",
        help="a language model over characters; `lm --help` lists its settings",
        usage=f"{_PROGRAM} lm [--config FILE.toml] [OPTIONS]",
        add_help=False,
        allow_abbrev=False,
    )
    chosen = {"mlp": (mlp, _prepare_mlp), "lm": (lm, _prepare_lm)}
    for subparser, _ in chosen.values():
        subparser.add_argument("--config", type=pathlib.Path)
    known, overrides = parser.parse_known_args(arguments)
    subparser, prepare = chosen[known.experiment]
    try:
        run, output = prepare(known, overrides)
    except (ValueError, OSError) as error:
        subparser.error(str(error))
    try:
        report = run()
    except (FileExistsError, UnusableOutputError) as error:
        subparser.error(str(error))
    sys.stdout.write(f"{report}\nWritten to {output}.\n")


def _prepare_mlp(
    known: argparse.Namespace, overrides: Sequence[str]
) -> tuple[Callable[[], str], str]:
    """Reads configuration and data; returns what runs, and where it writes to."""
    table = {} if known.config is None else read_overrides(known.config)
    if known.data is not None:
        table["data"] = known.data
    named = apply_overrides(MlpConfig(), {"data": table.get("data", "digits")})
    config = tyro.cli(
        MlpConfig,
        prog=f"{_PROGRAM} mlp [--config FILE.toml]",
        description=_MLP_DESCRIPTION,
        default=apply_overrides(default_config(named.data), table),
        args=overrides,
    )
    dataset = load_dataset(config)
    return lambda: run_mlp(config, dataset), config.output_dir


def _prepare_lm(
    known: argparse.Namespace, overrides: Sequence[str]
) -> tuple[Callable[[], str], str]:
    """Reads configuration and text; returns what runs, and where it writes to."""
    table = {} if known.config is None else read_overrides(known.config)
    config = tyro.cli(
        LmConfig,
        prog=f"{_PROGRAM} lm [--config FILE.toml]",
        description=_LM_DESCRIPTION,
        default=apply_overrides(LmConfig(), table),
        args=overrides,
    )
    text = load_text(config.text, context=config.training.context)
    return lambda: run_lm(config, text), config.output_dir


if __name__ == "__main__":
    main()
