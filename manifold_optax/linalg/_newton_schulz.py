"""Newton–Schulz: an odd polynomial of a matrix, by matrix products alone."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix, Schedule
from manifold_optax.linalg._coefficients import check_schedule, JORDAN
from manifold_optax.linalg._reductions import normalize


def newton_schulz(
    x: Matrix,
    schedule: Schedule = JORDAN,
    *,
    compute_dtype: Any = None,
    axis_name: AxisName = None,
) -> Matrix:
    """Approximate orthogonal polar factor `U f(S) Vᵀ` of `x = U S Vᵀ`.

    `x` is divided by its Frobenius norm and then, for each row `(a, b, c)` of the
    schedule, replaced by `a·x + (b·A + c·A²)·x` with the smaller Gram matrix `A` of
    `x`. The singular values pass through the rows one after another. The schedules
    tuned for Muon do not converge to 1: this is a direction, never a retraction (for
    which there is `polar`).

    Args:
        x: `[*batch, m, n]`, real floating, any scale from 1e-30 to 1e30 in float32.
        schedule: rows `(a, b, c)`, one per step.
        compute_dtype: dtype of the operands of the products, e.g. `jnp.bfloat16`;
            sums are always accumulated in at least float32. `None`: the dtype of `x`,
            at least float32. The products run at JAX's default matmul precision.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            then `x` must have at least as many rows, in all, as columns.

    Returns:
        An array like `x`. A zero matrix gives zero; a matrix with a NaN or an infinite
        entry gives NaN everywhere.

    Raises:
        ValueError: for a schedule that is not a tuple of rows of three numbers.

    Cost: `len(schedule) · (4·m·n·k + 2·k³)` FLOPs with `k = min(m, n)`.

    Example:
        >>> x = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> jnp.round(jnp.diag(newton_schulz(x)), 2)
        Array([1.12, 0.68, 0.7 ], dtype=float32)

    Source: K. Jordan et al., "Muon" (2024).
    """
    check_schedule(schedule)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    operand = wide if compute_dtype is None else jnp.dtype(compute_dtype)

    def product(left: Array, right: Array) -> Array:
        return jnp.matmul(
            left.astype(operand), right.astype(operand), preferred_element_type=wide
        )

    # Rows are the short side throughout: the Gram product is then row times row
    # ("NT"), the fastest form of a dot product on every backend.
    tall = axis_name is not None or x.shape[-2] >= x.shape[-1]
    y = normalize((x.mT if tall else x).astype(wide), axis_name)
    for a, b, c in schedule:
        y = y.astype(operand)
        gram = product(y, y.mT)
        if axis_name is not None:
            gram = jax.lax.psum(gram, axis_name)
        y = a * y.astype(wide) + product(b * gram + c * product(gram, gram), y)
    return (y.mT if tall else y).astype(x.dtype)
