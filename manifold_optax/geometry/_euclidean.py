"""Euclidean space: no constraint."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._manifold import Manifold


@dataclasses.dataclass(frozen=True)
class Euclidean(Manifold):
    """All matrices. Projections are the identity, a retraction is the sum.

    Example:
        >>> Euclidean().to_tangent(jnp.zeros((2, 2)), jnp.eye(2))
        Array([[1., 0.],
               [0., 1.]], dtype=float32)
    """

    @property
    def size(self) -> float:
        """Always 1: all sizes of Euclidean space are the same."""
        return 1.0

    def unit(self) -> "Euclidean":
        """Itself."""
        return self

    def random_point(
        self, key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Matrix:
        """Standard Gaussian matrix."""
        return jax.random.normal(key, shape, dtype)

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        del axis_name
        return x

    def _to_tangent(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        del point, axis_name
        return vector

    def _residual(self, x: Array, axis_name: AxisName) -> Array:
        del axis_name
        return jnp.zeros(x.shape[:-2], x.dtype)
