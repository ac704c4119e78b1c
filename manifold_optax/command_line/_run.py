"""`manifold-optax run`: the experiments, as `python -m manifold_optax.experiments`."""

from collections.abc import Sequence

from manifold_optax.experiments.__main__ import main
from manifold_optax.experiments.harness.backend import run_in_order


def run(words: Sequence[str]) -> None:
    """Runs one experiment.

    Args:
        words: its name and its options.
    """
    run_in_order()
    main(words)
