"""The sphere of matrices with a given spectral norm."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName
from manifold_optax.geometry._manifold import check_size, Manifold, Size
from manifold_optax.linalg._leading import leading_triple, spectral_gradient
from manifold_optax.linalg._reductions import dot, near_one, nonzero


@dataclasses.dataclass(frozen=True)
class SpectralSphere(Manifold):
    """Matrices of spectral norm `radius`: the largest singular value is fixed.

    `project` divides by the spectral norm. That is the radial projection of the
    spectral sphere optimizer, not the nearest point: it scales all singular values, as
    a step of spectral norm 1 grows them all, where the nearest point would move the
    largest one only. Where the largest singular value is not simple the set has an
    edge, and the tangent space is that of one of its faces.

    Args:
        radius: a number > 0, or `"rms"`: √(fan_out/fan_in), so that the RMS→RMS norm is
            1. With `"rms"` take the norm `Spectral` for steps: the size already holds
            the factor that `RmsToRms` would put in again.

    Raises:
        ValueError: for a radius that is not positive, or an unknown rule.

    Example:
        >>> SpectralSphere(3.0).project(jnp.diag(jnp.array([2.0, 1.0])))
        Array([[3. , 0. ],
               [0. , 1.5]], dtype=float32)

    Source: the spectral sphere optimizer; J. Su, kexue.fm 11241 (2025).
    """

    radius: Size = 1.0

    def __post_init__(self) -> None:
        """Checks the radius."""
        check_size("radius", self.radius, ("rms",))

    @property
    def size(self) -> Size:
        """The radius."""
        return self.radius

    def unit(self) -> "SpectralSphere":
        """Matrices of spectral norm 1."""
        return SpectralSphere()

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        scaled, _ = near_one(x, axis_name)
        return scaled / nonzero(leading_triple(scaled, axis_name).norm)

    def _to_tangent(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        normal = spectral_gradient(point, axis_name)
        return vector - normal * dot(normal, vector, axis_name)

    def _residual(self, x: Array, axis_name: AxisName) -> Array:
        return jnp.abs(leading_triple(x, axis_name).norm - 1)[..., 0, 0]
