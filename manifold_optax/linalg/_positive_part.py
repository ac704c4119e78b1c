"""The part of a symmetric matrix on its positive eigenvalues.

Two ways to it: an eigendecomposition, the fast way on a CPU, and the matrix sign
function by products alone, the fast way on an accelerator.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from manifold_optax._typing import Schedule, Square
from manifold_optax.linalg._device import chosen_by_platform
from manifold_optax.linalg._polar_express import polar_express
from manifold_optax.linalg._reductions import (
    identity_like,
    matmul,
    near_one,
    nonzero,
    symmetric,
)

_LEAST = 2.0
"""Rounding units, relative to the bound of the norm, of the least eigenvalue whose sign
is found: what is nearer to 0 is rounding of the matrix."""

_SAFETY = 1.01
"""Factor on the bound of the norm, and on the input of every row.

The rows rise steeply beyond the largest number that they are made for, twelve-fold from
one to the next. An eigenvalue that rounding moves there, in the middle of the way too,
would end at infinity: with 1.001 in float32 none does, with 1 some do.
"""


def positive_part(y: Square) -> Square:
    """Nearest positive semidefinite matrix to each symmetric one.

    Args:
        y: `[*batch, n, n]`, symmetric, at least float32, any scale.

    Example:
        >>> positive_part(jnp.diag(jnp.array([2.0, -1.0]))).round(5)
        Array([[2., 0.],
               [0., 0.]], dtype=float32)
    """
    return chosen_by_platform(positive_part_by_eigh, positive_part_by_products)(y)


def positive_part_by_eigh(y: Square) -> Square:
    """`positive_part`; costs an eigendecomposition and a product of `n × n`."""
    values, vectors = jnp.linalg.eigh(y)
    return matmul(vectors * jnp.maximum(values, 0)[..., None, :], vectors.mT)


def positive_part_by_products(y: Square) -> Square:
    """`positive_part`; costs 42 products of `n × n` matrices in float32.

    It errs by some ten rounding units of `‖y‖₂`.
    """
    return symmetric(matmul(y, positive_projector(y)))


def positive_projector(y: Square) -> Square:
    """Orthogonal projector onto the eigenvectors of positive eigenvalues, by products.

    Args:
        y: `[*batch, n, n]`, symmetric, at least float32, any scale.

    Returns:
        An array like `y`, with eigenvalues 1 for positive eigenvalues of `y` and 0 for
        negative ones. Between, the projector is smooth: eigenvalues within `2·n^(1/4)`
        rounding units of 0, relative to `‖y‖₂`, get numbers from 0 to 1, and 0 gets
        1/2. Elsewhere what should be 0 is below a rounding unit.

    Cost: 41 products of `n × n` matrices in float32, 86 in float64.

    Source: the Newton–Schulz iteration of the matrix sign function in N. Higham,
    "Functions of Matrices" (SIAM, 2008), chapter 5, with the rows of `polar_express`;
    the last two rows: R. McWeeny, "Some recent advances in density matrix theory" (Rev.
    Mod. Phys. 32, 1960).
    """
    y, _ = near_one(y)
    power = matmul(y, y)
    unit = y / (_SAFETY * jnp.sqrt(norm_bound(power)))
    table = jnp.asarray(_rows(float(jnp.finfo(y.dtype).eps)), y.dtype)
    identity = identity_like(y)

    def advance(step: ArrayLike, x: Array) -> Array:
        a, b, c = table[step]
        square = matmul(x, x)
        value = a * identity + b * square + c * matmul(square, square)
        return symmetric(matmul(x, value))

    sign = jax.lax.fori_loop(0, len(table), advance, unit)
    projector = (identity + sign) / 2
    for _ in range(2):
        square = matmul(projector, projector)
        projector = symmetric(matmul(square, 3 * identity - 2 * projector))
    return projector


def norm_bound(square: Square) -> Array:
    """Lesser of two upper bounds of the spectral norm, `[*batch, 1, 1]`; 1 for 0."""
    rows = jnp.sum(jnp.abs(square), axis=-1, keepdims=True)
    largest_row = jnp.max(rows, axis=-2, keepdims=True)
    length = jnp.linalg.norm(square, axis=(-2, -1), keepdims=True)
    return nonzero(jnp.minimum(length, largest_row))


@functools.cache
def _rows(eps: float) -> Schedule:
    """As few rows as bring every number from `_LEAST` rounding units to 1 near to 1.

    The two rows after them take an eigenvalue `δ` of the projector, half the distance
    that the sign has from ±1, to `27·δ⁴`: that must be a rounding unit.
    """
    unfinished = 2 * (eps / 27) ** (1 / 4)
    least, low, rows = _LEAST * eps, 0.0, ()
    while 1 - low > unfinished:
        rows = polar_express(len(rows) + 1, lower=least, safety=_SAFETY)
        low = least
        for a, b, c in rows:
            low = low * (a + b * low**2 + c * low**4)
    return rows
