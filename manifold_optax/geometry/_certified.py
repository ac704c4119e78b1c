"""A direction and a bound on how far it is from the best one."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix, PerMatrix
from manifold_optax.linalg._leading import leading_triple
from manifold_optax.linalg._reductions import dot, frobenius_norm, nonzero


class CertifiedDirection(NamedTuple):
    """A feasible direction `A` for a gradient `G`, and what is known of its quality."""

    direction: Matrix
    gap: PerMatrix | None
    """(upper bound of ⟨A, G⟩ − ⟨A, G⟩)/upper bound, 0 where nothing can be gained.

    `None` where it was not asked for.
    """
    tangency: PerMatrix | None = None
    """`‖WᵀA + AᵀW‖_F / ‖A‖_F` at the point `W`, on the Stiefel manifold.

    It is rounding for a point on the manifold. `None` on other manifolds, whose
    directions are tangent by construction.
    """


def certify(
    tangent: Array,
    gradient: Array,
    upper: Array,
    nothing: Array,
    axis_name: AxisName = None,
) -> CertifiedDirection:
    """Scales a feasible direction to spectral norm 1 and compares it with the bound.

    Args:
        tangent: `[*batch, m, n]`, of any length in a cone of allowed directions.
        gradient: like `tangent`.
        upper: `[*batch, 1, 1]`, bound of `⟨A, gradient⟩` over the allowed `‖A‖₂ ≤ 1`.
        nothing: `[*batch, 1, 1]`, where the gradient has no allowed part: gives 0.
        axis_name: mesh axes over which the rows are split, inside `jax.shard_map`.
    """
    length = leading_triple(tangent, axis_name).norm
    direction = tangent / nonzero(length)
    # A bound of one nuclear norm comes out too small by this at most: `polar` drops
    # singular values below 100 rounding units.
    bound = upper * (1 + 128 * jnp.finfo(upper.dtype).eps)
    value = dot(direction, gradient, axis_name)
    gap = jnp.maximum((bound - value) / nonzero(bound), 0)
    return CertifiedDirection(
        jnp.where(nothing, jnp.zeros_like(direction), direction),
        jnp.where(nothing, jnp.zeros_like(gap), gap)[..., 0, 0],
    )


def has_nothing(part: Array, axis_name: AxisName = None) -> Array:
    """Whether `part` of a unit gradient is rounding noise, `[*batch, 1, 1]`."""
    return frobenius_norm(part, axis_name) <= 64 * jnp.finfo(part.dtype).eps
