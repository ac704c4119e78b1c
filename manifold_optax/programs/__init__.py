"""What a compiled program multiplies and sends, and the platform that it is for.

`dot_flops` counts the operations of all matrix products, `collectives` the messages
and their bytes. Both read the optimized text of XLA, so they see what is executed, not
what was written. `arithmetic_for` sets the platform for whose arithmetic programs are
traced.
"""

from manifold_optax.linalg._device import arithmetic_for
from manifold_optax.programs._collectives import (
    Collectives,
    collectives,
    dot_flops,
    Kind,
    Traffic,
)

__all__ = (
    "Collectives",
    "Kind",
    "Traffic",
    "arithmetic_for",
    "collectives",
    "dot_flops",
)
