"""The sphere of matrices with a given spectral norm."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._base import check_size, Manifold, Size
from manifold_optax.linalg import dot, gram, matmul, max_abs, nonzero


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

    def random_point(
        self, key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32
    ) -> Matrix:
        """Gaussian matrix, scaled; drawn in float32, then cast."""
        return self.project(jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        scaled = x / nonzero(max_abs(x, axis_name))
        return scaled / nonzero(leading_triple(scaled, axis_name).norm)

    def _to_tangent(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        normal = leading_triple(point, axis_name).outer
        return vector - normal * dot(normal, vector, axis_name)

    def _residual(self, x: Array, axis_name: AxisName) -> Array:
        return jnp.abs(leading_triple(x, axis_name).norm - 1)[..., 0, 0]


class LeadingTriple(NamedTuple):
    """Largest singular value `[*batch, 1, 1]` and its singular vectors, as columns."""

    norm: Array
    left: Array
    right: Array

    @property
    def outer(self) -> Array:
        """`u vᵀ`, the gradient of the spectral norm."""
        return matmul(self.left, self.right.mT)


def leading_triple(x: Array, axis_name: AxisName = None) -> LeadingTriple:
    """Largest singular value and vectors, by the Gram matrix of the short side.

    An eigendecomposition is exact to rounding also where the two largest singular
    values nearly agree, which Muon's steps make common and where a power iteration
    needs thousands of steps for 1e-6. Squaring costs nothing at the largest one.
    """
    if axis_name is None and x.shape[-2] < x.shape[-1]:
        turned = leading_triple(x.mT)
        return LeadingTriple(turned.norm, turned.right, turned.left)
    if 0 in x.shape:
        ends = [jnp.zeros((*x.shape[:-2], size, 1), x.dtype) for size in x.shape[-2:]]
        return LeadingTriple(jnp.zeros((*x.shape[:-2], 1, 1), x.dtype), *ends)
    largest = max_abs(x, axis_name)
    scaled = x / nonzero(largest)
    right = jnp.linalg.eigh(gram(scaled, axis_name)).eigenvectors[..., -1:]
    image = matmul(scaled, right)
    norm = jnp.sqrt(dot(image, image, axis_name))
    return LeadingTriple(largest * norm, image / nonzero(norm), right)
