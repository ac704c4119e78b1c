"""The largest singular value, iterated or bounded, and the sum of all of them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from manifold_optax._typing import AxisName, Matrix, PerMatrix, Square
from manifold_optax.linalg._device import chosen_by_platform
from manifold_optax.linalg._inputs import require_matrices
from manifold_optax.linalg._nuclear_norm import nuclear_norm_by_products
from manifold_optax.linalg._reductions import (
    gram,
    inner,
    matmul,
    near_one,
    nonzero,
    row_count,
)
from manifold_optax.linalg._scaling import widen
from manifold_optax.linalg._symmetric import commuting_product


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
            `left` is then split likewise. More than one step is then taken with the
            Gram matrix, which is summed over them once.

    Returns:
        Norm `[*batch]`, left `[*batch, m]` and right `[*batch, n]` singular vectors of
        unit length, in at least float32. A zero matrix gives the norm 0, a zero left
        vector and the start vector as it came (normalised).

    Cost: `4·m·n·steps` FLOPs; with split rows, of which a device has `m`, and more than
    one step `2·m·n² + 2·n²·steps`.

    Example:
        >>> spectral_norm(jnp.diag(jnp.array([3.0, 1.0]))).norm.round(4)
        Array(3., dtype=float32)
    """
    require_matrices(x, "spectral_norm")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    y, scale = near_one(widen(x), axis_name)
    default = jax.random.normal(jax.random.key(0), (x.shape[-1],), y.dtype)
    # Of the type of a row of the Gram matrix: inside `shard_map` a constant would not
    # vary over the mesh axes over which the matrices do, as the loop's result does.
    shape = (*x.shape[:-2], x.shape[-1])
    start = jnp.broadcast_to(default, shape) + jnp.zeros_like(scale[..., 0])
    if right is not None:
        usable = jnp.max(jnp.abs(right), axis=-1, keepdims=True) > 0
        start = jnp.where(usable, right.astype(y.dtype), start)
    v = _unit(start[..., None])

    # A loop of messages costs more than one larger message and its product.
    square = gram(y, axis_name) if axis_name is not None and steps > 1 else None

    def advance(_: ArrayLike, v: Array) -> Array:
        if square is None:
            w = inner(y, matmul(y, v), axis_name)
        else:
            w = matmul(square, v)
        return jnp.where(jnp.any(w != 0, axis=-2, keepdims=True), _unit(w), v)

    v = jax.lax.fori_loop(0, steps, advance, v)
    u = matmul(y, v)
    norm = jnp.sqrt(inner(u, u, axis_name))
    left = (u / nonzero(norm))[..., 0]
    return SpectralNorm((scale * norm)[..., 0, 0], left, v[..., 0])


def spectral_norm_bound(
    x: Matrix, *, doublings: int = 5, axis_name: AxisName = None
) -> PerMatrix:
    """A number that the spectral norm `‖x‖₂` does not exceed, and nearly reaches.

    The largest eigenvalue of the Gram matrix is bounded by the mean of the eigenvalues
    and their spread. Then the matrix is shifted and squared, which sets the largest
    eigenvalue apart from the others, and bounded again. An allowance for the rounding
    of every product is added: the bound errs on the safe side, as a certificate must,
    where `spectral_norm` is a lower bound.

    Args:
        x: `[*batch, m, n]`, real floating, any scale from 1e-30 to 1e30 in float32;
            computed in at least float32.
        doublings: number of squarings, ≥ 0. With `k = min(m, n)` and
            `p = 2^(doublings + 2)` the bound is at most `k^(1/p)` times the norm (1.056
            for 5 doublings and `k = 1024`), apart from rounding. Gaussian matrices of
            768 × 768 are bounded by 1.091, 1.021, 1.005 and 1.001 times the norm with
            2, 3, 4 and 5 doublings, orthogonal ones by 1.0025 times with any number.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            then `x` should have at least as many rows, in all, as columns.

    Returns:
        `[*batch]`, at least float32; 0 for zero, NaN for a non-finite matrix. The
        allowance for rounding is below 1 % up to 1024 × 1024 in float32.

    Raises:
        ValueError: for negative `doublings`.

    Cost: `2·m·n·k + 2·doublings·k³` FLOPs.

    Example:
        >>> spectral_norm_bound(jnp.diag(jnp.array([3.0, 1.0]))).round(2)
        Array(3., dtype=float32)

    Source: H. Wolkowicz, G. Styan, "Bounds for eigenvalues using traces" (Linear
    Algebra Appl. 29, 1980), theorem 2.1; the allowance: N. Higham, T. Mary, "A new
    approach to probabilistic rounding error analysis" (SIAM J. Sci. Comput. 41, 2019),
    theorem 3.1.
    """
    require_matrices(x, "spectral_norm_bound")
    if doublings < 0:
        raise ValueError(f"doublings must be at least 0, got {doublings}.")
    y, scale = near_one(widen(x), axis_name)
    tall = axis_name is not None or x.shape[-2] >= x.shape[-1]
    y = y if tall else y.mT
    eps = float(jnp.finfo(y.dtype).eps)
    square = gram(y, axis_name)
    rounding = _rounding(row_count(y, axis_name), eps) * _trace(square)
    bound = jnp.sqrt(_eigenvalue_bound(square, doublings) + rounding)
    # A few dozen roundings of numbers.
    return (scale * bound * (1 + 32 * eps))[..., 0, 0]


def _eigenvalue_bound(square: Square, doublings: int) -> Float[Array, "*batch 1 1"]:
    """A bound of the largest eigenvalue of positive semidefinite matrices.

    Eigenvalues of mean `μ` whose deviations from it have the Euclidean norm `δ` lie in
    `μ ± √(1 − 1/k)·δ`. The root of such a bound for `(square − c)²` bounds the norm of
    `square − c`, so `c` and this root bound the largest eigenvalue, whatever `c` is.
    They do so tightly if no eigenvalue is farther from `c` than the largest. That is
    certain of the middle between a lower bound of the least eigenvalue and one of the
    largest, for which `tr(square²)/tr(square)` serves.

    Without doublings the bound is at most `κ = √k` times the largest eigenvalue `λ`.
    Each doubling replaces `κ` by its root, as `c + (λ − c)·√κ ≤ λ·√κ`.
    """
    size, eps = max(1, square.shape[-1]), float(jnp.finfo(square.dtype).eps)
    mean = _trace(square) / size
    spread = _length(_shifted(square, mean))
    within = math.sqrt(1 - 1 / size) * spread
    direct = mean * (1 + _rounding(size, eps)) + within
    if doublings == 0:
        return direct
    least = jnp.maximum(0, mean - within)
    most = mean + spread * (spread / nonzero(mean * size))
    centre = (least + most) / 2
    shifted = _shifted(square, centre)
    length = _length(shifted)
    shifted = shifted / nonzero(length)
    # Rounding may make the square unsymmetric. Its symmetric part has the same trace
    # and no larger a length, so the bound holds for that.
    rest = _eigenvalue_bound(commuting_product(shifted, shifted), doublings - 1)
    return jnp.minimum(direct, centre + length * jnp.sqrt(rest + _rounding(size, eps)))


def _shifted(square: Square, centre: Array) -> Square:
    identity = jnp.eye(square.shape[-1], dtype=square.dtype)
    return square - centre * jnp.broadcast_to(identity, square.shape)


def _trace(square: Square) -> Float[Array, "*batch 1 1"]:
    return jnp.trace(square, axis1=-2, axis2=-1)[..., None, None]


def _length(square: Square) -> Float[Array, "*batch 1 1"]:
    """Frobenius norm of each matrix, and an allowance for the rounding of the sum."""
    eps = float(jnp.finfo(square.dtype).eps)
    length = jnp.linalg.norm(square, axis=(-2, -1), keepdims=True)
    return length * (1 + _rounding(square.shape[-1] ** 2, eps))


def _rounding(length: int, eps: float) -> float:
    """Error of a product of sums of `length` terms, relative to `‖left‖_F·‖right‖_F`.

    It is `4·√length` half rounding units: a few times what is seen, and exceeded with
    a probability below 1e-3 where the errors are independent.
    """
    return 2 * math.sqrt(length) * eps


def nuclear_norm(x: Matrix) -> PerMatrix:
    """Nuclear norm `‖x‖_*`, the sum of the singular values; dual of the spectral norm.

    Args:
        x: `[*batch, m, n]`, real floating; computed in at least float32.

    Returns:
        `[*batch]`, at least float32; 0 for an empty matrix.

    Cost: on a CPU the singular values of each matrix (LAPACK), elsewhere a polar
    factor.

    Example:
        >>> nuclear_norm(jnp.diag(jnp.array([3.0, -1.0])))
        Array(4., dtype=float32)
    """
    require_matrices(x, "nuclear_norm")

    def by_svd(x: Array) -> Array:
        return jnp.sum(jnp.linalg.svd(x, compute_uv=False), axis=-1)

    def by_products(x: Array) -> Array:
        return nuclear_norm_by_products(x)[..., 0, 0]

    return chosen_by_platform(by_svd, by_products)(widen(x))


def _unit(v: Array) -> Array:
    v = v / nonzero(jnp.max(jnp.abs(v), axis=(-2, -1), keepdims=True))
    return v / nonzero(jnp.sqrt(jnp.sum(v * v, axis=(-2, -1), keepdims=True)))
