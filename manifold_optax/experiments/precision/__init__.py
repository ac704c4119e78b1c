"""The `precision` experiment: what a norm buys when weights are rounded.

The published perceptron and a small language model are trained by several optimizers,
with and without constraints on their weights, then rounded to int8, int4, int3 and
8-bit floats.
"""

from manifold_optax.experiments.harness import Command
from manifold_optax.experiments.precision.config import PrecisionConfig
from manifold_optax.experiments.precision.experiment import PrecisionExperiment

COMMAND = Command(
    help="weights rounded to few bits",
    description=(
        "Trains a perceptron and a small language model with several optimizers, then "
        "rounds their weights, with the certified and the measured change."
    ),
    default=PrecisionConfig(),
    prepare=PrecisionExperiment.prepare,
)

__all__ = ("COMMAND", "PrecisionConfig", "PrecisionExperiment")
