"""The sphere of a p-norm of the entries, and its steepest direction."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._entry_norms import check_exponent, p_norm, signed_power
from manifold_optax.geometry._manifold import check_size, Manifold
from manifold_optax.linalg._reductions import (
    dot,
    frobenius_norm,
    near_one,
    nonzero,
    normalize,
)

_BISECTIONS = 40
"""Steps from the widest bracket, 4, to 4e-12, which is below rounding in float32."""


@dataclasses.dataclass(frozen=True)
class PNormSphere(Manifold):
    """Matrices whose entries have the p-norm `radius`.

    `project` divides by the p-norm: the radial projection, which is the nearest point
    for p = 2 only.

    Args:
        p: a number with 1 < p < ∞.
        radius: a number > 0.

    Raises:
        ValueError: for an exponent or radius out of range.

    Example:
        >>> PNormSphere(3.0, 6.0).project(jnp.array([[6.0, 8.0, 10.0]])).round(4)
        Array([[3., 4., 5.]], dtype=float32)

    Source: J. Su, kexue.fm 11196 (2025).
    """

    p: float
    radius: float = 1.0

    def __post_init__(self) -> None:
        """Checks the exponent and the radius."""
        check_exponent(self.p)
        check_size("radius", self.radius, ())

    @property
    def size(self) -> float:
        """The radius."""
        return self.radius

    def unit(self) -> "PNormSphere":
        """The unit sphere of the p-norm."""
        return PNormSphere(self.p)

    def normal(self, point: Array) -> Array:
        """Gradient of the p-norm at a point of norm 1: `sign(w)·|w|^(p−1)`."""
        return signed_power(point, self.p - 1)

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        scaled, _ = near_one(x, axis_name)
        return scaled / nonzero(p_norm(scaled, self.p, axis_name))

    def _to_tangent(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        normal = normalize(self.normal(point), axis_name)
        return vector - normal * dot(normal, vector, axis_name)

    def _residual(self, x: Array, axis_name: AxisName) -> Array:
        return jnp.abs(p_norm(x, self.p, axis_name) - 1)[..., 0, 0]


def p_norm_direction(
    normal: Matrix, gradient: Matrix, p: float, axis_name: AxisName = None
) -> Matrix:
    """The `a` with p-norm 1 and `⟨normal, a⟩ = 0` that has the largest `⟨a, gradient⟩`.

    By duality `a ∝ (g + λn)^[q−1]` with `x^[r] = sign(x)|x|^r`, where λ minimises the
    q-norm of `g + λn`: the root of a nondecreasing function, found by bisection within
    `|λ| ≤ 2‖g‖_q/‖n‖_q`. What the bisection leaves is projected away.

    Args:
        normal: `[*batch, m, n]`, in at least float32; zero: no constraint.
        gradient: like `normal`, any scale.
        p: exponent of the norm, 1 < p < ∞.
        axis_name: mesh axes over which the rows are split, inside `jax.shard_map`.

    Returns:
        An array like `gradient`; 0 for a gradient along the normal. Feasible for every
        `p`; the inner product is the largest to 3e-5 in float32 for `p` up to 3, to
        2e-3 for 10, 4 % for 64: small entries then decide, whose roots are rounding.

    Example:
        >>> normal, gradient = jnp.array([[1.0, 0.0]]), jnp.array([[7.0, -2.0]])
        >>> p_norm_direction(normal, gradient, 3.0)
        Array([[ 0., -1.]], dtype=float32)

    Cost: 40 passes over the entries.
    """
    q = p / (p - 1)
    unit = normalize(normal, axis_name)

    def tangent(x: Array) -> Array:
        return x - unit * dot(unit, x, axis_name)

    free = tangent(tangent(normalize(gradient, axis_name)))
    noise = 64 * jnp.finfo(free.dtype).eps
    length = frobenius_norm(free, axis_name)
    is_normal = length <= noise
    free = free / nonzero(p_norm(free, q, axis_name))
    across = unit / nonzero(p_norm(unit, q, axis_name))

    def halve(_: ArrayLike, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        powers = signed_power(free + middle * across, q - 1)
        beyond = dot(across, powers, axis_name) > 0
        return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

    # Like a number of the matrix, so that it varies over the same mesh axes.
    end = jnp.full_like(length, 2)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (-end, end))
    found = tangent(signed_power(free + (low + high) / 2 * across, q - 1))
    found = tangent(near_one(found, axis_name)[0])
    found = found / nonzero(p_norm(found, p, axis_name))
    return jnp.where(is_normal, jnp.zeros_like(found), found)
