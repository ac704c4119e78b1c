"""The `robustness` experiment: what a norm buys against an adversary.

The published perceptron is trained by several optimizers, with and without constraints
on its weights. Its decisions are then certified (proved to be constant within an L2
distance) and attacked.
"""

from manifold_optax.experiments.harness import Command
from manifold_optax.experiments.robustness.config import RobustnessConfig
from manifold_optax.experiments.robustness.experiment import RobustnessExperiment

COMMAND = Command(
    help="certified and attacked accuracy",
    description=(
        "Trains one multilayer perceptron with several optimizers, then certifies and "
        "attacks its decisions on test images."
    ),
    default=RobustnessConfig(),
    prepare=RobustnessExperiment.prepare,
)

__all__ = ("COMMAND", "RobustnessConfig", "RobustnessExperiment")
