"""The Stiefel manifold: all singular values equal."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._base import check_size, Manifold, Size
from manifold_optax.linalg import gram, inner, matmul, polar, symmetric


@dataclasses.dataclass(frozen=True)
class Stiefel(Manifold):
    """Matrices with all singular values equal to `scale`.

    `XᵀX = s² I` for a tall matrix, `XXᵀ = s² I` for a wide one. A square orthogonal
    matrix has determinant +1 or −1, and no step crosses from one sign to the other.

    Args:
        scale: a number > 0, or `"rms"`: √(fan_out/fan_in) of the linear map (below 1
            for a tall Flax kernel `(fan_in, fan_out)`).

    Raises:
        ValueError: for a scale that is not positive, or an unknown rule.

    Example:
        >>> point = Stiefel().random_point(jax.random.key(0), (5, 3))
        >>> bool(Stiefel().residual(point) < 1e-6)
        True

    Source: P.-A. Absil, R. Mahony, R. Sepulchre, "Optimization Algorithms on Matrix
    Manifolds" (Princeton, 2008), section 3.3.2; the polar factor as its retraction is
    in section 4.1.1.
    """

    scale: Size = 1.0

    def __post_init__(self) -> None:
        """Checks the scale."""
        check_size("scale", self.scale, ("rms",))

    @property
    def size(self) -> Size:
        """The scale."""
        return self.scale

    def unit(self) -> "Stiefel":
        """Matrices with all singular values equal to 1."""
        return Stiefel()

    def random_point(
        self, key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32
    ) -> Matrix:
        """Uniformly distributed point (Haar measure); drawn in float32, then cast."""
        return self.project(jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        return polar(x, axis_name=axis_name)

    def _to_tangent(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        if axis_name is None and point.shape[-2] < point.shape[-1]:
            return self._to_tangent(point.mT, vector.mT, None).mT
        normal = symmetric(inner(point, vector, axis_name))
        return vector - matmul(point, normal)

    def _residual(self, x: Array, axis_name: AxisName) -> Array:
        tall = axis_name is not None or x.shape[-2] >= x.shape[-1]
        square = gram(x if tall else x.mT, axis_name)
        if square.shape[-1] == 0:
            return jnp.zeros(x.shape[:-2], x.dtype)
        identity = jnp.eye(square.shape[-1], dtype=square.dtype)
        difference = square - jnp.broadcast_to(identity, square.shape)
        return jnp.max(jnp.abs(jnp.linalg.eigvalsh(difference)), axis=-1)
