"""The `transfer` experiment: does the best learning rate stay as a network grows?

Perceptrons of three kinds and a small transformer are trained at several widths or
depths, each by every optimizer at a grid of rates. The report has every loss, and how
far the best rate moves.
"""

from manifold_optax.experiments.harness import Command
from manifold_optax.experiments.transfer.config import Config
from manifold_optax.experiments.transfer.experiment import TransferExperiment

COMMAND = Command(
    help="the best learning rate over width and depth",
    description=(
        "Trains networks of several widths or depths at a grid of learning rates, and "
        "reports how the best rate of each optimizer shifts with the size."
    ),
    default=Config(),
    prepare=TransferExperiment,
)

__all__ = ("COMMAND", "Config", "TransferExperiment")
