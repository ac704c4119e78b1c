"""TensorBoard events of a finished run."""

import pathlib
from collections.abc import Iterable, Mapping

from tensorboardX import SummaryWriter

from manifold_optax.experiments.results import RunResult


def write_events(directory: pathlib.Path, result: RunResult) -> None:
    """Writes the loss of each step and the accuracies of each epoch.

    Args:
        directory: Log directory of this run.
        result: The finished run.
    """
    curves: dict[str, Iterable[tuple[int, float | None]]] = {
        "loss": enumerate(result.loss)
    }
    for split in ("train", "validation", "test"):
        accuracies = getattr(result, f"{split}_accuracy") or ()
        curves[f"accuracy/{split}"] = enumerate(accuracies, start=1)
    write_curves(directory, curves)


def write_curves(
    directory: pathlib.Path,
    curves: Mapping[str, Iterable[tuple[int, float | None]]],
) -> None:
    """Writes curves of one run.

    Args:
        directory: Log directory of this run.
        curves: (step, value) pairs by name; None, a value that was not finite, is
            left out.
    """
    with SummaryWriter(str(directory)) as writer:
        for name, points in curves.items():
            for step, value in points:
                if value is not None:
                    writer.add_scalar(name, value, step)
