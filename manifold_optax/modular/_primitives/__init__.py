"""What the reader knows of each primitive; to import them registers the rules."""

from manifold_optax.modular._primitives import (
    _convolution,
    _declared,
    _entries,
    _pieces,
    _products,
    _shapes,
    _sums,
)
from manifold_optax.modular._primitives._declared import register_rule
from manifold_optax.modular._primitives._loops import loop_of, slice_gains

__all__ = ("loop_of", "register_rule", "slice_gains")
