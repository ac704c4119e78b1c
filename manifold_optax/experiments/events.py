"""TensorBoard events of a finished run."""

import pathlib

from tensorboardX import SummaryWriter

from manifold_optax.experiments.results import RunResult


def write_events(directory: pathlib.Path, result: RunResult) -> None:
    """Writes the loss of each step and the accuracies of each epoch.

    Args:
        directory: Log directory of this run.
        result: The finished run.
    """
    with SummaryWriter(str(directory)) as writer:
        for step, loss in enumerate(result.loss):
            if loss is not None:
                writer.add_scalar("loss", loss, step)
        for split in ("train", "validation", "test"):
            accuracies = getattr(result, f"{split}_accuracy") or ()
            for epoch, accuracy in enumerate(accuracies, start=1):
                writer.add_scalar(f"accuracy/{split}", accuracy, epoch)
