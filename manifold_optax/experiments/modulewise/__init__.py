"""The `modulewise` experiment: a manifold for each kind of layer of a transformer.

The attention and the feed-forward matrices of a small language model are held on the
same or on different manifolds; losses, singular values and logits are recorded.
"""

from manifold_optax.experiments.harness import Command
from manifold_optax.experiments.modulewise.config import ModulewiseConfig
from manifold_optax.experiments.modulewise.experiment import ModulewiseExperiment

COMMAND = Command(
    help="a manifold for each kind of layer of a language model",
    description=(
        "Trains a small language model with its attention and feed-forward matrices on "
        "the same or on different manifolds, and records their singular values. A TOML "
        "file (--config) overrides the defaults, and options override it."
    ),
    default=ModulewiseConfig(),
    prepare=ModulewiseExperiment.prepare,
)

__all__ = ("COMMAND", "ModulewiseConfig", "ModulewiseExperiment")
