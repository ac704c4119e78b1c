"""Dtypes and divisors that keep float32 away from underflow and overflow."""

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax.linalg._inputs import require_floating_array
from manifold_optax.linalg._reductions import nonzero


def widen(x: Array) -> Array:
    """Returns `x` in at least float32; raises TypeError if it is not real floating."""
    require_floating_array(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def divide(x: Array, scale: float | Array) -> Array:
    """Returns `x / scale` in at least float32; divides by 1 where `scale` is 0."""
    return widen(x) / (nonzero(scale) if isinstance(scale, Array) else scale)
