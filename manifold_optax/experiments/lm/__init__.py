"""The `lm` experiment: a small language model over characters.

A decoder-only transformer is trained with AdamW, Muon and MuonClip; its losses and the
largest attention logit of each head are recorded.
"""

from manifold_optax.experiments.harness import Command
from manifold_optax.experiments.lm.config import LmConfig
from manifold_optax.experiments.lm.experiment import LmExperiment

COMMAND = Command(
    help="a language model over characters",
    description=(
        "Trains a small language model over characters with several optimizers, and "
        "records the largest attention logit of each head. A TOML file (--config) "
        "overrides the defaults, and options override it."
    ),
    default=LmConfig(),
    prepare=LmExperiment.prepare,
)

__all__ = ("COMMAND", "LmConfig", "LmExperiment")
