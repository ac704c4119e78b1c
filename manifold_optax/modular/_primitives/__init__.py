"""What the reader knows of each primitive; to import them registers the rules."""

# pyright: reportUnusedImport=false

from manifold_optax.modular._primitives import (
    _convolution,
    _declared,
    _entries,
    _entry_products,
    _loops,
    _pieces,
    _products,
    _shapes,
    _sums,
    _vectors,
)
from manifold_optax.modular._primitives._declared import register_rule
from manifold_optax.modular._primitives._entries import multiple
from manifold_optax.modular._primitives._loop import loop_of
from manifold_optax.modular._primitives._slices import slice_gains, slices_of

FILES = (
    _convolution, _declared, _entries, _entry_products, _loops, _pieces, _products,
    _shapes, _sums, _vectors,
)  # fmt: skip
"""Each writes its rules into `RULES` when it is imported."""

__all__ = ("FILES", "loop_of", "multiple", "register_rule", "slice_gains", "slices_of")
