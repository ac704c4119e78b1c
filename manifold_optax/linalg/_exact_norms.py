"""Norms of float32 matrices that are correct to a rounding unit, on every platform.

Read again at every step, a norm with errors of its own would walk away (1e-5 in 10,000
steps of float32). A correctly rounded one comes out the same as long as the point is
known to less than a rounding unit. Where the point itself is rounded, the norm that is
read again has some bits fewer, so that it comes out the same still. A CPU computes it
in float64, and an accelerator in compensated float32: a TPU has no float64 worth the
name, and most GPUs a slow one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.linalg._compensated import compensated_norm, compensated_normalize
from manifold_optax.linalg._device import by_platform, on_cpu
from manifold_optax.linalg._float64 import in_float64
from manifold_optax.linalg._reductions import divisor, normalize
from manifold_optax.linalg._scaling import widen

# Of the norm that is read again; see `repeatable_norm`.
SPARE_BITS = 3


def exact_norm(x: Array, axes: tuple[int, ...]) -> Array:
    """Returns the Frobenius norm over some axes, which are kept; scale-safe.

    It is computed in at least float32. Zero gives 0, a non-finite array NaN.
    """

    def norm(x: Array) -> Array:
        largest = divisor(jnp.max(jnp.abs(x), axes, keepdims=True, initial=0))
        square = jnp.sum(jnp.square(x / largest), axes, keepdims=True)
        return largest * jnp.sqrt(square)

    def chosen(x: Array) -> Any:
        return in_float64(norm)(x) if _has_float64(x) else compensated_norm(x, axes)

    return by_platform(chosen, widen(x))


def repeatable_norm(x: Array, axes: tuple[int, ...]) -> Array:
    """Returns `exact_norm` with three bits fewer: off by 5.4e-7 at most in float32.

    A step rounds each entry up to four times (normalized, scaled, made an update and
    added), by half a rounding unit each time. So the norm of the result is off by two
    units at most, which is half the distance between two values here: a point that
    lands at this norm has this norm when it is read again.
    """
    norm = exact_norm(x, axes)
    kind = jnp.finfo(norm.dtype)
    return jax.lax.reduce_precision(norm, kind.nexp, kind.nmant - SPARE_BITS)


def exactly_normalized(x: Matrix, axis_name: AxisName = None) -> Matrix:
    """Returns `x / ‖x‖_F` of norm 1 to less than a rounding unit, entries of any scale.

    It is computed in the dtype of `x`, at least float32. Zero stays zero; a matrix with
    a non-finite entry becomes NaN everywhere.

    Args:
        x: `[*batch, m, n]`, at least float32.
        axis_name: mesh axes over which the rows are split, inside `shard_map`.
    """

    def chosen(x: Array) -> Any:
        if _has_float64(x):
            return in_float64(lambda x: normalize(x, axis_name))(x)
        return compensated_normalize(x, axis_name)

    return by_platform(chosen, x)


def _has_float64(x: Array) -> bool:
    return on_cpu() or x.dtype == jnp.float64
