"""The largest singular value by power iteration, and the sum of all of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manifold_optax._typing import AxisName, Matrix, PerMatrix
from manifold_optax.linalg._reductions import inner, matmul, max_abs, nonzero


class SpectralNorm(NamedTuple):
    """Largest singular value and its singular vectors, `x ≈ norm · left rightᵀ + …`."""

    norm: Float[Array, "*batch"]
    left: Float[Array, "*batch m"]
    right: Float[Array, "*batch n"]


def spectral_norm(
    x: Matrix,
    right: Float[Array, "*batch n"] | None = None,
    *,
    steps: int = 16,
    axis_name: AxisName = None,
) -> SpectralNorm:
    """Spectral norm `‖x‖₂` and singular vectors by power iteration on `xᵀx`.

    The norm is a lower bound, with relative error about `(σ₂/σ₁)^(4·steps)` times the
    squared tangent of the start's angle. Carry `right` from one call to the next while
    `x` changes slowly, and one or two steps suffice.

    Args:
        x: `[*batch, m, n]`, real floating; computed in at least float32.
        right: start vectors `[*batch, n]` of any length; `None` or a zero vector: a
            fixed Gaussian one. (All-ones is orthogonal to the singular vector of every
            matrix whose rows sum to zero.)
        steps: number of iterations, ≥ 1.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            `left` is then split likewise.

    Returns:
        Norm `[*batch]`, left `[*batch, m]` and right `[*batch, n]` singular vectors of
        unit length, in at least float32. A zero matrix gives the norm 0, a zero left
        vector and the start vector as it came (normalised).

    Cost: `4·m·n·steps` FLOPs.

    Example:
        >>> spectral_norm(jnp.diag(jnp.array([3.0, 1.0]))).norm.round(4)
        Array(3., dtype=float32)
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = nonzero(max_abs(y, axis_name))
    y = y / scale
    default = jax.random.normal(jax.random.key(0), (x.shape[-1],), y.dtype)
    start = jnp.broadcast_to(default, (*x.shape[:-2], x.shape[-1]))
    if right is not None:
        usable = jnp.max(jnp.abs(right), axis=-1, keepdims=True) > 0
        start = jnp.where(usable, right.astype(y.dtype), start)
    v = _unit(start[..., None])

    def advance(_: Any, v: Array) -> Array:
        w = inner(y, matmul(y, v), axis_name)
        return jnp.where(jnp.any(w != 0, axis=-2, keepdims=True), _unit(w), v)

    v = jax.lax.fori_loop(0, steps, advance, v)
    u = matmul(y, v)
    norm = jnp.sqrt(inner(u, u, axis_name))
    left = (u / nonzero(norm))[..., 0]
    return SpectralNorm((scale * norm)[..., 0, 0], left, v[..., 0])


def nuclear_norm(x: Matrix) -> PerMatrix:
    """Nuclear norm `‖x‖_*`, the sum of the singular values; dual of the spectral norm.

    Args:
        x: `[*batch, m, n]`, real floating; computed in at least float32.

    Returns:
        `[*batch]`, at least float32; 0 for an empty matrix.

    Cost: the singular values of each matrix (LAPACK).

    Example:
        >>> nuclear_norm(jnp.diag(jnp.array([3.0, -1.0])))
        Array(4., dtype=float32)
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.sum(jnp.linalg.svd(y, compute_uv=False), axis=-1)


def _unit(v: Array) -> Array:
    v = v / nonzero(jnp.max(jnp.abs(v), axis=(-2, -1), keepdims=True))
    return v / nonzero(jnp.sqrt(jnp.sum(v * v, axis=(-2, -1), keepdims=True)))
