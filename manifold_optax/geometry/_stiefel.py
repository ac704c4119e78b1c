"""The Stiefel manifold: all singular values equal."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._checks import require_one_of
from manifold_optax._typing import AxisName
from manifold_optax.geometry._manifold import check_size, Manifold, Size
from manifold_optax.geometry._retractions import (
    cubic_step,
    isometry_step,
    orthonormal_factor,
    short_repr,
)
from manifold_optax.linalg import polar
from manifold_optax.linalg._device import chosen_by_platform
from manifold_optax.linalg._leading import leading_triple
from manifold_optax.linalg._reductions import gram, inner, matmul, symmetric

RETRACTIONS = ("polar", "qr", "cubic", "isometry")


@dataclasses.dataclass(frozen=True, repr=False)
class Stiefel(Manifold):
    """Matrices with all singular values equal to `scale`.

    `XᵀX = s² I` for a tall matrix, `XXᵀ = s² I` for a wide one. A square orthogonal
    matrix has determinant +1 or −1, and no step crosses from one sign to the other.

    Args:
        scale: a number > 0, or `"rms"`: √(fan_out/fan_in) of the linear map (below 1
            for a tall Flax kernel `(fan_in, fan_out)`).
        retraction: how a step lands, in units of the scale; `project` is always the
            polar factor.
            `"polar"`: the polar factor, i.e. the nearest point; for every step.
            `"qr"`: the Q factor with a positive diagonal of R; for every step, to first
            order the same. One LAPACK call, no iteration; not with split rows. It
            depends on the order of the columns (of the long side).
            `"cubic"`: one step `(3x − xxᵀx)/2` towards the polar factor, four times
            cheaper or more. It leaves singular values `1 − (3/8)·η⁴` after a tangent
            step of norm `η` and does not add up: the next step corrects the last one.
            For steps with `η` up to about 0.3; at `√2` it sends values to 0.
            `"isometry"`: the polar factor in closed form, twice as cheap or more as
            `"polar"`, for a step that is a multiple of a tangent partial isometry (all
            singular values `η` or 0). One cubic step keeps it on the manifold to
            rounding, for any number of steps. For other tangent vectors the error is of
            order `η⁸`; a vector that is not tangent leaves a residual of the square of
            its normal part.

    Raises:
        ValueError: for a scale that is not positive, an unknown rule or retraction.

    Example:
        >>> point = Stiefel().random_point(jax.random.key(0), (5, 3))
        >>> bool(Stiefel().residual(point) < 1e-6)
        True

    Source: P.-A. Absil, R. Mahony, R. Sepulchre, "Optimization Algorithms on Matrix
    Manifolds" (Princeton, 2008), section 3.3.2; the polar and QR retractions are in
    section 4.1.1; the single cubic step is J. Su's "streaming" (kexue.fm 11654, 2026).
    """

    scale: Size = 1.0
    retraction: str = "polar"

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_size("scale", self.scale, ("rms",))
        require_one_of("retraction", self.retraction, RETRACTIONS)

    def __repr__(self) -> str:
        """The scale, and the retraction if it is not the default."""
        return short_repr(self)

    @property
    def size(self) -> Size:
        """The scale."""
        return self.scale

    def unit(self) -> "Stiefel":
        """Matrices with all singular values equal to 1."""
        return dataclasses.replace(self, scale=1.0)

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        return polar(x, axis_name=axis_name)

    def _retract(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        if self.retraction == "polar":
            return self._project(point + vector, axis_name)
        if axis_name is None and point.shape[-2] < point.shape[-1]:
            return self._retract(point.mT, vector.mT, None).mT
        if self.retraction == "qr":
            return orthonormal_factor(point + vector, axis_name)
        if self.retraction == "cubic":
            return cubic_step(point + vector, axis_name)
        return isometry_step(point, vector, axis_name)

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

        def by_eigh(difference: Array) -> Array:
            return jnp.max(jnp.abs(jnp.linalg.eigvalsh(difference)), axis=-1)

        def by_products(difference: Array) -> Array:
            return leading_triple(difference).norm[..., 0, 0]

        return chosen_by_platform(by_eigh, by_products)(difference)
