"""The sphere of matrices with a given Frobenius norm."""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from manifold_optax._checks import require_one_of
from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._manifold import check_size, Manifold, Size
from manifold_optax.geometry._retractions import geodesic_step, short_repr
from manifold_optax.linalg._exact_norms import exactly_normalized
from manifold_optax.linalg._reductions import dot, frobenius_norm

RETRACTIONS = ("projection", "geodesic")


@dataclasses.dataclass(frozen=True, repr=False)
class Sphere(Manifold):
    """Matrices of Frobenius norm `radius`.

    Args:
        radius: a number > 0; `"rms"`: √(fan_out/fan_in); or `"kept"`: the norm of the
            incoming point, so that each matrix stays on the sphere that it started on.
            Of a float32 norm 21 bits are read: the first landing may move it by 5.4e-7
            of itself, and no later one does.
        retraction: how a step lands. `"projection"`: the nearest point of the sphere; a
            tangent step of length `t` turns by the angle `atan(t/radius)`.
            `"geodesic"`: along the great circle of the tangent part of the step, by an
            arc as long as that part; the radial part is ignored.

    Raises:
        ValueError: for a radius that is not positive, an unknown rule or retraction.

    Example:
        >>> Sphere(2.0).project(jnp.array([[3.0, 4.0]]))
        Array([[1.2, 1.6]], dtype=float32)

    Source: J. Bernstein, "Modular Manifolds", Thinking Machines Lab (2025); the
    geodesic: Absil, Mahony, Sepulchre (2008), example 5.4.1.
    """

    radius: Size = 1.0
    retraction: str = "projection"

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_size("radius", self.radius, ("rms", "kept"))
        require_one_of("retraction", self.retraction, RETRACTIONS)

    def __repr__(self) -> str:
        """The radius, and the retraction if it is not the default."""
        return short_repr(self)

    @property
    def size(self) -> Size:
        """The radius."""
        return self.radius

    def unit(self) -> "Sphere":
        """The unit sphere."""
        return dataclasses.replace(self, radius=1.0)

    def random_point(
        self, key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Matrix:
        """Uniformly distributed point, as for every manifold.

        Raises:
            ValueError: for radius `"kept"`, which has no points of its own.
        """
        if self.radius == "kept":
            raise ValueError(
                "Sphere('kept') takes its radius from the incoming point, so it has no "
                "random point; draw a matrix of the norm you want, or give a number."
            )
        return super().random_point(key, shape, dtype)

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        # The norm of the result is 1 to less than a rounding unit: a sphere that takes
        # its radius from the point does not walk away.
        return exactly_normalized(x, axis_name)

    def _retract(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        if self.retraction == "geodesic":
            return geodesic_step(point, vector, axis_name)
        return self._project(point + vector, axis_name)

    def _to_tangent(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        return vector - point * dot(point, vector, axis_name)

    def _residual(self, x: Array, axis_name: AxisName) -> Array:
        return jnp.abs(frobenius_norm(x, axis_name) - 1)[..., 0, 0]
