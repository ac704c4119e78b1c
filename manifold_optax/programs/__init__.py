"""What a compiled program multiplies, and what it sends between devices.

`dot_flops` counts the operations of all matrix products, `collectives` the messages
and their bytes. Both read the optimized text of XLA, so they see what is executed, not
what was written.
"""

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
    "collectives",
    "dot_flops",
)
