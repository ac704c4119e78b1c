"""Square root of a positive semidefinite matrix, with its inverse and Lyapunov map.

Two ways to the same three things. `eigh_root` takes an eigendecomposition, the fast way
on a CPU; `product_root` takes matrix products alone, the fast way on an accelerator,
whose eigendecompositions are slow and sequential. Both are for one matrix, `[n, n]`.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from manifold_optax._typing import Schedule
from manifold_optax.linalg._lyapunov import lyapunov_by_products
from manifold_optax.linalg._polar_express import polar_express
from manifold_optax.linalg._reductions import matmul, symmetric
from manifold_optax.linalg._symmetric import commuting_product


class EighRoot(NamedTuple):
    """Root of a regularised matrix, as its eigendecomposition."""

    values: Float[Array, " n"]
    vectors: Float[Array, "n n"]

    @property
    def matrix(self) -> Array:
        """The root `Q`."""
        return matmul(self.vectors * self.values[None], self.vectors.T)

    @property
    def inverse(self) -> Array:
        """`Q⁻¹`."""
        return matmul(self.vectors / self.values[None], self.vectors.T)

    @property
    def trace(self) -> Array:
        """`tr Q`."""
        return jnp.sum(self.values)

    def symmetrize(self, h: Array, *, rough: bool = False) -> Array:
        """Symmetric solution `r` of `Q r + r Q = Q h + hᵀ Q`; always exact."""
        del rough
        rotated = matmul(self.vectors.T, matmul(h, self.vectors))
        shares = self.values[:, None] / (self.values[:, None] + self.values[None])
        r = shares * rotated
        return matmul(self.vectors, matmul(r + r.T, self.vectors.T))


class ProductRoot(NamedTuple):
    """Root of a regularised matrix and its inverse, found by products."""

    matrix: Float[Array, "n n"]
    inverse: Float[Array, "n n"]
    bound: Float[Array, ""]
    """An upper bound of `‖Q‖₂`, of the same magnitude."""

    @property
    def trace(self) -> Array:
        """`tr Q`."""
        return jnp.trace(self.matrix)

    def symmetrize(self, h: Array, *, rough: bool = False) -> Array:
        """Symmetric solution `r` of `Q r + r Q = Q h + hᵀ Q`; `rough`: to 1 %."""
        moved = matmul(self.matrix, h)
        unit = self.matrix / self.bound
        return lyapunov_by_products(unit, moved + moved.T, rough=rough) / self.bound


def eigh_root(
    square: Float[Array, "n n"], *, epsilon: float, floor: float | Array = 0.0
) -> EighRoot:
    """Root of `square + ε²·max(‖square‖₂, floor)·I` by eigendecomposition.

    Args:
        square: symmetric positive semidefinite, up to rounding.
        epsilon: condition that the root may have, inverted; it lifts the rounding
            noise in `square` to a definite matrix, at a cost in bias.
        floor: a magnitude below which `square` counts as small.
    """
    values, vectors = jnp.linalg.eigh(square)
    clipped = jnp.maximum(values, 0)
    ridge = jnp.maximum(epsilon**2 * jnp.maximum(values[-1], floor), 1e-30)
    return EighRoot(jnp.sqrt(clipped + ridge), vectors)


def product_root(
    square: Float[Array, "n n"],
    *,
    epsilon: float,
    rows: int,
    floor: float | Array = 0.0,
) -> ProductRoot:
    """Root of `square + ε²·λ·I` by the coupled polynomial iteration, products alone.

    With `s` the singular values of the root, scaled into [ε, 1], each row `s·p(s²)` of
    Polar Express takes `R = s²` to `R·p(R)²` and the inverse root `Z` to `Z·p(R)`.

    Args:
        square: symmetric positive semidefinite, up to rounding.
        epsilon: as for `eigh_root`; it also decides how many rows are needed: for 2e-3
            the root is good to 2.4e-2 after five rows and to 1e-5 after six.
        rows: number of rows, ≥ 1.
        floor: a magnitude below which `square` counts as small.

    Cost: `4·rows − 2` products of `n × n` matrices.
    """
    identity = jnp.eye(len(square), dtype=square.dtype)
    magnitude = jnp.maximum(jnp.maximum(jnp.linalg.norm(square), floor), 1e-30)
    scaled = square / magnitude
    # Schatten 4-norm of the root, ≥ its spectral norm. The rows rise steeply beyond
    # s = 1: 1e-4 keeps rounding away from there. (The floor is for a zero matrix.)
    power = commuting_product(scaled, scaled)
    top = jnp.maximum(1.0001 * jnp.sqrt(jnp.linalg.norm(power)), 1e-2)
    scaled, power, ridge = scaled / top, power / top**2, epsilon**2
    start = (scaled + ridge * identity) / (1 + ridge)
    power = (power + 2 * ridge * scaled + ridge**2 * identity) / (1 + ridge) ** 2

    inverse, remaining = identity, start
    for row, (a, b, c) in enumerate(_rows(rows, epsilon)):
        power = commuting_product(remaining, remaining) if row else power
        factor = a * identity + b * remaining + c * power
        inverse = commuting_product(inverse, factor) if row else factor
        if row < rows - 1:
            moved = commuting_product(factor, remaining)
            remaining = symmetric(commuting_product(moved, factor))
    size = jnp.sqrt(magnitude * top) * math.sqrt(1 + ridge)
    root = symmetric(commuting_product(start, inverse))
    return ProductRoot(size * root, symmetric(inverse) / size, size)


@functools.cache
def _rows(rows: int, epsilon: float) -> Schedule:
    return polar_express(rows, lower=epsilon, safety=1.0)
