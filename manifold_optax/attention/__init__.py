"""Attention layers: where their heads lie, and how large their logits are.

For users: the specs `Attention` and `HeadPart`, and the functions that tell the largest
logits. The rest is what `qk_clip`, `muon_clip` and `balance_router_bias` share: finding
the leaves that a spec means, and what becomes of them.
"""

from manifold_optax.attention._clip import ClipReport, locate, Rescaling, rescalings
from manifold_optax.attention._dot_product import (
    attend,
    dot_product_attention,
    Dropout,
    largest_logits,
)
from manifold_optax.attention._resolve import require_statistics, resolve
from manifold_optax.attention._scores import Scores
from manifold_optax.attention._spec import Attention, HeadPart

__all__ = (
    "Attention",
    "ClipReport",
    "Dropout",
    "HeadPart",
    "Rescaling",
    "Scores",
    "attend",
    "dot_product_attention",
    "largest_logits",
    "locate",
    "require_statistics",
    "rescalings",
    "resolve",
)
