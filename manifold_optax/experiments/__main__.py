"""Command line: `python -m manifold_optax.experiments <name> [overrides]`.

Every folder beside `harness` is an experiment, found by its `COMMAND`.
"""

import importlib
import pkgutil
from collections.abc import Sequence

from manifold_optax import experiments
from manifold_optax.experiments.harness import Command
from manifold_optax.experiments.harness.backend import run_in_order
from manifold_optax.experiments.harness.command_line import main as run_command


def commands() -> dict[str, Command]:
    """Returns the experiments, by the names of their folders."""
    found: dict[str, Command] = {}
    for module in pkgutil.iter_modules(experiments.__path__):
        if module.ispkg and module.name != "harness":
            package = importlib.import_module(f"{experiments.__name__}.{module.name}")
            found[module.name] = package.COMMAND
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one experiment.

    Args:
        arguments: Command line without the program; that of the process by default.
    """
    run_command(commands(), arguments)


if __name__ == "__main__":
    run_in_order()
    main()
