"""The `mlp` experiment: one multilayer perceptron on images, several optimizers.

A perceptron without biases is trained on scikit-learn's digits or on CIFAR-10; its
accuracies, losses, singular values and times per step are recorded.
"""

from manifold_optax.experiments.harness import Command
from manifold_optax.experiments.mlp.config import default_config, MlpConfig
from manifold_optax.experiments.mlp.experiment import MlpExperiment

COMMAND = Command(
    help="the published experiment",
    description=(
        "Trains one multilayer perceptron with several optimizers. Defaults are those "
        "of the data set; a TOML file (--config) overrides them, and options override "
        "it."
    ),
    default=MlpConfig(),
    prepare=MlpExperiment.prepare,
    chooser="data",
    defaults_of=default_config,
)

__all__ = ("COMMAND", "MlpConfig", "MlpExperiment")
