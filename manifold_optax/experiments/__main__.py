"""Command line: `python -m manifold_optax.experiments <name> [overrides]`."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import tyro

from manifold_optax.experiments.config import (
    DATA_NAMES,
    DataName,
    default_config,
    MlpConfig,
)
from manifold_optax.experiments.config_file import apply_overrides, read_overrides
from manifold_optax.experiments.data import load_dataset
from manifold_optax.experiments.mlp import run_mlp

_PROGRAM = "python -m manifold_optax.experiments"
_DESCRIPTION = (
    "Trains one multilayer perceptron with several optimizers. Defaults are those of "
    "the data set; a TOML file (--config) overrides them, and options override it."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one experiment.

    The defaults of the data set are overridden by the file given as `--config`, and
    that by the command line.

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
    mlp.add_argument("--config", type=pathlib.Path)
    mlp.add_argument("--data", choices=DATA_NAMES)
    known, overrides = parser.parse_known_args(arguments)
    try:
        config = _read_config(known.config, known.data, overrides)
        dataset = load_dataset(config)
    except (ValueError, OSError) as error:
        mlp.error(str(error))
    try:
        report = run_mlp(config, dataset)
    except FileExistsError as error:
        mlp.error(str(error))
    sys.stdout.write(f"{report}\nWritten to {config.output_dir}.\n")


def _read_config(
    path: pathlib.Path | None, data: DataName | None, overrides: Sequence[str]
) -> MlpConfig:
    """Combines defaults, file and command line, the later over the earlier."""
    table = {} if path is None else read_overrides(path)
    if data is not None:
        table["data"] = data
    named = apply_overrides(MlpConfig(), {"data": table.get("data", "digits")})
    return tyro.cli(
        MlpConfig,
        prog=f"{_PROGRAM} mlp [--config FILE.toml]",
        description=_DESCRIPTION,
        default=apply_overrides(default_config(named.data), table),
        args=overrides,
    )


if __name__ == "__main__":
    main()
