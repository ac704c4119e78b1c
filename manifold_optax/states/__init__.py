"""The states of optimizers as a format: its version, its check, and what crosses it.

What stands beside a checkpoint, so that it is never restored into another optimizer in
silence, and how the momentum of one optimizer becomes that of another.
"""

from manifold_optax.states._check import check_state_format
from manifold_optax.states._digest import state_digest
from manifold_optax.states._format import (
    FORMAT_VERSION,
    LeafFormat,
    state_format,
    StateFormat,
)
from manifold_optax.states._momentum import momentum_from, momentum_to

__all__ = (
    "FORMAT_VERSION",
    "LeafFormat",
    "StateFormat",
    "check_state_format",
    "momentum_from",
    "momentum_to",
    "state_digest",
    "state_format",
)
