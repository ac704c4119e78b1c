"""Norms that see a matrix as the list of its entries: largest one, sum, p-norm."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix, PerMatrix
from manifold_optax.geometry._blocks import Blocks
from manifold_optax.geometry._norm import BlockNorm, Norm
from manifold_optax.linalg._reductions import max_abs, near_one, nonzero
from manifold_optax.linalg._scaling import widen


@dataclasses.dataclass(frozen=True)
class Max(BlockNorm):
    """`max |x|`, dual `Σ |g|`; steepest: the sign.

    Example:
        >>> Max().steepest(jnp.array([[3.0, -4.0]]))
        Array([[ 1., -1.]], dtype=float32)
    """

    blocks: ClassVar[Blocks] = "entries"

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """`sign(g)`, 0 where the gradient is 0, NaN where it is not finite."""
        del axis_name
        return jnp.where(jnp.isfinite(gradient), jnp.sign(gradient), jnp.nan)


@dataclasses.dataclass(frozen=True)
class L1(Norm):
    """`Σ |x|`, dual `max |g|`; steepest: the sign of the largest entry, 0 elsewhere.

    Of several entries of the same largest modulus the first one moves, row by row in
    the matrix as the kernel sees it.

    Example:
        >>> L1().steepest(jnp.array([[3.0, -4.0]]))
        Array([[ 0., -1.]], dtype=float32)
    """

    def value(self, x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """Sum of the moduli of each matrix, `[*batch]`."""
        total = jnp.sum(jnp.abs(widen(x)), axis=(-2, -1))
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    def dual_value(self, gradient: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """Largest modulus of each matrix, `[*batch]`."""
        return max_abs(widen(gradient), axis_name)[..., 0, 0]

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """`sign(g)` at the largest modulus, 0 elsewhere; NaN where `g` is not finite.

        With split rows it takes two messages of one number per device.
        """
        if 0 in gradient.shape:
            return gradient
        rows, columns = gradient.shape[-2:]
        flat = jnp.abs(gradient).reshape(*gradient.shape[:-2], rows * columns)
        first = jnp.argmax(flat, axis=-1)[..., None, None]
        order = jnp.arange(rows * columns).reshape(rows, columns)
        chosen = jnp.broadcast_to(order, gradient.shape) == first
        if axis_name is not None:
            chosen = chosen & _holds_the_largest(gradient, axis_name)
        found = jnp.where(chosen, jnp.sign(gradient), jnp.zeros_like(gradient))
        return jnp.where(jnp.isfinite(gradient), found, jnp.nan)


@dataclasses.dataclass(frozen=True)
class PNorm(Norm):
    """`(Σ |x|^p)^(1/p)`, dual: the q-norm with `1/p + 1/q = 1`.

    Steepest: `sign(g)·|g|^(q−1)`, of length 1. The exponents 2, 1 and ∞ are those of
    `Frobenius`, `L1` and `Max`.

    Args:
        p: a number with 1 < p < ∞.

    Raises:
        ValueError: for another exponent.

    Example:
        >>> PNorm(3.0).value(jnp.array([[3.0, 4.0, 5.0]])).round(4)
        Array(6., dtype=float32)

    Source: J. Su, kexue.fm 11196 (2025).
    """

    p: float

    def __post_init__(self) -> None:
        """Checks the exponent."""
        check_exponent(self.p)

    @property
    def dual_exponent(self) -> float:
        """`q = p/(p − 1)`."""
        return self.p / (self.p - 1)

    def value(self, x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """p-norm of the entries of each matrix, `[*batch]`."""
        return p_norm(widen(x), self.p, axis_name)[..., 0, 0]

    def dual_value(self, gradient: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """q-norm of the entries of each matrix, `[*batch]`."""
        return p_norm(widen(gradient), self.dual_exponent, axis_name)[..., 0, 0]

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """`sign(g)·|g|^(q−1)`, divided by its p-norm."""
        wide, _ = near_one(widen(gradient), axis_name)
        powers = signed_power(wide, self.dual_exponent - 1)
        length = p_norm(powers, self.p, axis_name)
        return (powers / nonzero(length)).astype(gradient.dtype)


def check_exponent(p: float) -> None:
    """Raises ValueError unless `1 < p < ∞`."""
    if not 1 < p < float("inf"):
        raise ValueError(
            f"p must satisfy 1 < p < inf, got {p!r}; for p = 1 and p = inf there are "
            "the norms L1 and Max."
        )


def p_norm(x: Array, p: float, axis_name: AxisName = None) -> Array:
    """p-norm of the entries of each matrix, with the axes kept; scale-safe."""
    scaled, largest = near_one(x, axis_name)
    total = jnp.sum(jnp.abs(scaled) ** p, axis=(-2, -1), keepdims=True)
    total = total if axis_name is None else jax.lax.psum(total, axis_name)
    return largest * total ** (1 / p)


def signed_power(x: Array, exponent: float) -> Array:
    """`sign(x)·|x|^exponent`, for an exponent > 0."""
    return jnp.sign(x) * jnp.abs(x) ** exponent


def _holds_the_largest(gradient: Array, axis_name: AxisName) -> Array:
    """Whether this part of a split matrix is the first that holds the largest entry."""
    local = max_abs(gradient)
    part = jnp.broadcast_to(jax.lax.axis_index(axis_name), local.shape)
    beyond = jax.lax.axis_size(axis_name)
    candidate = jnp.where(local == max_abs(gradient, axis_name), part, beyond)
    return part == jax.lax.pmin(candidate, axis_name)
