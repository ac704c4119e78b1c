"""What a manifold is.

Two small interfaces carry the whole theory. A **manifold** is a constraint on one
matrix: it can project onto itself, project a vector onto its tangent space, and retract
a step. A **norm** measures a step: its linear minimization oracle (`steepest`) is the
unit-norm matrix with the largest inner product with a gradient. An optimizer is a pair
of them: the steepest unit tangent direction, a step of the learning rate, a retraction.

Examples: Euclidean space with the spectral norm gives Muon; the sphere with the
Frobenius norm gives hyperspherical descent; the Stiefel manifold with the spectral norm
gives manifold Muon.

A manifold comes in sizes: a radius, or a scale of all singular values. All sizes are
the unit manifold, enlarged: with `s` the size and `R` the unit retraction,
`R_s(p + u) = s · R((p + u)/s)`. Subclasses therefore write the unit case only, and a
direction on the manifold of size `s` is `s` times the direction at `p/s`: the learning
rate is the length of the step in units of `s`.
"""

import abc
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix, PerMatrix
from manifold_optax.linalg._exact_norms import repeatable_norm
from manifold_optax.linalg._inputs import require_matrices
from manifold_optax.linalg._scaling import divide

Size: TypeAlias = float | str
"""Radius or scale: a number > 0, or the name of a rule of `SIZE_RULES`."""

SIZE_RULES = {
    "rms": "√(fan_out/fan_in): the RMS→RMS norm of a unit point becomes 1",
    "kept": "the Frobenius norm of the incoming point, matrix by matrix, to 21 bits",
}

_M = TypeVar("_M", bound="Manifold")


class Manifold(abc.ABC):
    """A constraint on matrices `[*batch, fan_out, fan_in]`; frozen, static, hashable.

    All methods work on the last two axes and any batch axes before them and compute in
    at least float32. Points come back in the dtype of the point, tangent vectors in
    that of the vector, residuals in at least float32. An array that is not real
    floating raises TypeError, one of fewer than two axes ValueError.

    `axis_name` names the mesh axes that split the rows, inside `jax.shard_map`; the
    size is then a number. A zero matrix whose size is its own norm stays zero.

    Rows are fan-out here, whatever the array order: with the size `"rms"` a Flax kernel
    `(fan_in, fan_out)` must be transposed first, or go through `mo.project` and the
    transformations, which know its axes.
    """

    @property
    @abc.abstractmethod
    def size(self) -> Size:
        """Radius or scale."""

    @abc.abstractmethod
    def unit(self: _M) -> _M:
        """The same manifold at size 1."""

    @property
    def transposable(self) -> bool:
        """Whether the unit manifold contains `xᵀ` where it contains `x`."""
        return True

    def project(self, x: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """Nearest point of the manifold in the Frobenius norm."""
        scale = self._scale(x, axis_name)
        return (scale * self._project(divide(x, scale), axis_name)).astype(x.dtype)

    def retract(
        self, point: Matrix, vector: Matrix, *, axis_name: AxisName = None
    ) -> Matrix:
        """Point of the manifold that `point + vector` projects to; size of `point`.

        Manifolds with a field `retraction` may name another retraction there.
        """
        scale = self._scale(point, axis_name)
        base, step = divide(point, scale), divide(vector, scale)
        return (scale * self._retract(base, step, axis_name)).astype(point.dtype)

    def to_tangent(
        self, point: Matrix, vector: Matrix, *, axis_name: AxisName = None
    ) -> Matrix:
        """Orthogonal projection of `vector` onto the tangent space at `point`."""
        base = divide(point, self._scale(point, axis_name))
        wide = vector.astype(base.dtype)
        return self._to_tangent(base, wide, axis_name).astype(vector.dtype)

    def residual(self, x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """Relative distance of each matrix from the manifold, ≥ 0, `[*batch]`.

        A matrix that is sharded on an Explicit mesh is gathered first.
        """
        x = _whole(x)
        return self._residual(divide(x, self._scale(x, axis_name)), axis_name)

    def random_point(
        self, key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Matrix:
        """Random point of shape `[*batch, fan_out, fan_in]`.

        A Gaussian matrix, drawn in float32 for every dtype, and projected in the wider
        of float32 and `dtype`: accurate to the rounding of `dtype`. It is uniformly
        distributed on spheres, `Oblique` and `Stiefel` (Haar measure).
        """
        wide = jnp.promote_types(dtype, jnp.float32)
        x = jax.random.normal(key, shape, jnp.float32).astype(wide)
        return self.project(self._place(x)).astype(dtype)

    def _place(self, x: Array) -> Array:
        """A Gaussian matrix moved near the manifold; as it is unless redefined."""
        return x

    def scale_of(
        self, point: Array, fan_out: int, fan_in: int, axes: tuple[int, ...] = (-2, -1)
    ) -> float | Array:
        """Size at `point` as a number, or as one number per matrix with the axes kept.

        Args:
            point: array that holds its matrices along `axes`, in whatever order.
            fan_out: number of outputs of the linear map.
            fan_in: number of inputs of the linear map.
            axes: the axes of `point` that make up one matrix.
        """
        if self.size == "rms":
            return float((fan_out / fan_in) ** 0.5) if fan_in else 1.0
        if self.size == "kept":
            return repeatable_norm(point, axes)
        return float(self.size)

    def _scale(self, point: Matrix, axis_name: AxisName) -> float | Array:
        require_matrices(point, type(self).__name__)
        if axis_name is not None and isinstance(self.size, str):
            raise ValueError(
                f"{self} has a size that depends on the whole matrix, but the rows are "
                f"split over {axis_name!r}; divide by scale_of(...) outside and use "
                "unit()."
            )
        fan_out, fan_in = point.shape[-2:]
        return self.scale_of(point, fan_out, fan_in)

    @abc.abstractmethod
    def _project(self, x: Array, axis_name: AxisName) -> Array: ...

    def _retract(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        return self._project(point + vector, axis_name)

    @abc.abstractmethod
    def _to_tangent(
        self, point: Array, vector: Array, axis_name: AxisName
    ) -> Array: ...

    @abc.abstractmethod
    def _residual(self, x: Array, axis_name: AxisName) -> Array: ...


def _whole(x: Array) -> Array:
    """`x` with no matrix split over the axes of an Explicit mesh."""
    sharding = jax.typeof(x).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return x
    spec = (*sharding.spec, *(None,) * x.ndim)[: x.ndim - 2]
    whole = PartitionSpec(*spec, None, None)
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, whole))


def check_size(name: str, size: Size, rules: tuple[str, ...]) -> None:
    """Raises unless `size` is a number > 0 or one of the named `rules`."""
    if isinstance(size, str):
        if size not in rules:
            known = "; ".join(f"{rule!r}: {SIZE_RULES[rule]}" for rule in rules)
            choices = f" or a named rule ({known})" if rules else ""
            raise ValueError(f"{name} must be a number > 0{choices}, got {size!r}.")
    elif isinstance(size, bool) or not isinstance(size, int | float):
        raise TypeError(f"{name} must be a number > 0, got {size!r}.")
    elif not 0 < size < float("inf"):
        raise ValueError(f"{name} must be > 0 and finite, got {size!r}.")
