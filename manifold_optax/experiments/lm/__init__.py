"""The `lm` experiment: a small language model over characters.

A decoder-only transformer is trained with AdamW, Muon and MuonClip; its losses and the
largest attention logit of each head are recorded.
"""

from manifold_optax.experiments.lm.config import LmConfig
from manifold_optax.experiments.lm.run import run_lm
from manifold_optax.experiments.lm.text import load_text

__all__ = ("LmConfig", "load_text", "run_lm")
