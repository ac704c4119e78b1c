"""Steepest direction on the Stiefel manifold under the spectral norm.

At a point `W` with `WᵀW = I` (`m × n`, `m ≥ n`) it solves

    maximise ⟨A, G⟩   over   WᵀA + AᵀW = 0,  ‖A‖₂ ≤ 1

With `K = skew(WᵀG)`, `G⊥ = G − W WᵀG` and `C = G⊥ᵀG⊥` all iterations are on `n × n`
matrices, in `_stiefel_spectral_dual`: they give the tangent block `X`, skew with
`‖X‖₂ ≤ 1`. It is completed to the best feasible

    A = W X + G⊥ L (Lᵀ C L)^{-1/2} Lᵀ,   L Lᵀ = I − XᵀX

which is tangent and of norm ≤ 1 whatever the accuracy of `X`, for a point on the
manifold.

The dual problem: J. Bernstein, "Modular Manifolds", Thinking Machines Lab (2025). The
fixed point that the steps iterate: J. Su, "Muon on the Stiefel manifold", kexue.fm
11221 (2025). The extrapolation: Y. Nesterov (1983).
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from manifold_optax._checks import require_one_of
from manifold_optax._typing import AxisName
from manifold_optax.geometry._certified import CertifiedDirection
from manifold_optax.geometry._stiefel_spectral_certificate import (
    BY_EIGH,
    BY_PRODUCTS,
)
from manifold_optax.geometry._stiefel_spectral_dual import (
    backend as backend_named,
    Direction,
    solve,
    solve_within,
)
from manifold_optax.linalg import polar
from manifold_optax.linalg._device import by_platform, on_cpu
from manifold_optax.linalg._float64 import in_float64
from manifold_optax.linalg._reductions import (
    dot,
    gram,
    inner,
    matmul,
    normalize,
    row_count,
    skew,
)

BACKENDS = ("eigh", "products", "products64")
"""Ways to take the roots of small matrices: eigendecompositions in float64, products in
the dtype of the point, products in float64."""

_LONGEST = 256
"""Limit of the steps of a run that stops by tolerance."""


_ROUNDING = 16
"""Rounding units by which a certificate raises its bound, relative to the gradient."""


def stiefel_spectral_direction(
    point: Float[Array, "m n"],
    gradient: Float[Array, "m n"],
    *,
    steps: int | None = None,
    tolerance: float | None = None,
    backend: str | None = None,
    certify: bool = False,
    axis_name: AxisName = None,
) -> CertifiedDirection:
    """Unit-spectral-norm tangent `A` with the largest inner product with `gradient`.

    Args:
        point: `[m, n]` with orthonormal columns to 1e-6, `m ≥ n`, at least float32. Off
            the manifold the direction is neither tangent nor bounded; see `tangency`.
        gradient: `[m, n]`, any scale.
        steps: majorise-minimise steps, ≥ 0. `None`: 2 to 8 by shape and backend. With a
            `tolerance` the largest number, `None`: 256. Square matrices and single
            columns have closed forms and ignore both.
        tolerance: relative duality gap at which to stop, > 0; `None`: a fixed number of
            steps. Each step is then certified by an eigendecomposition, on every
            platform, at four times its cost. `gap` is filled and shows whether the
            tolerance was met. In float32 gaps below 4e-6 cannot be certified, and none
            where most of the gradient is normal to the manifold; in float64 gradients
            of low rank end near 4e-6.
        backend: one of `BACKENDS`. `"eigh"`: `n × n` eigendecompositions in float64;
            `"products"`: products alone, in the dtype of the point; `"products64"`:
            products in float64, for accelerators that are as fast in it. `None`: the
            first on a CPU, the second elsewhere.
        certify: also bound the distance from the optimum. By `"eigh"`: two more `n × n`
            eigendecompositions and `4·m·n²` FLOPs, half of them in float64. By the
            others: a polar factor `m × n`, `12·m·n²` FLOPs and 50 products of `n × n`
            matrices, in the dtype of the point; in float32 the bound is `n` rounding
            units and 1e-6 to 3e-5 above the dual value.
        axis_name: mesh axes over which the rows are split, inside `jax.shard_map`.

    Returns:
        The direction with `‖A‖₂ ≤ 1`, its gap (`None` unless asked for by `certify` or
        `tolerance`) and its tangency. A zero gradient, or one normal to the manifold,
        gives zero; a non-finite one gives NaN.

        The gap of the default number of steps depends on the shape and the gradient.
        The largest measured by `"eigh"` is 7e-4 in the mixed cases from 64 × 10 to
        1024 × 128, 7e-3 in small trainings (80 × 64), and 3e-2 for small matrices near
        square (5 × 4); by `"products"` 3e-3, 3e-2 and 2e-2. `docs/stiefel_solver.md`
        has the tables.

    Raises:
        ValueError: for an unknown backend.

    Cost: `22·m·n²` FLOPs, and `4 + steps` eigendecompositions, or `155 + 41·steps`
    products of `n × n` matrices (in float64 `233 + 73·steps`).
    """
    if backend is not None:
        require_one_of("backend", backend, BACKENDS)
    found = functools.partial(
        _direction,
        steps=steps,
        tolerance=tolerance,
        backend=backend,
        certify=certify or tolerance is not None,
        axis_name=axis_name,
    )
    return by_platform(found, point, gradient)


def default_steps(rows: int, columns: int, backend: str) -> int:
    """Steps by shape: the nearer to square, the harder; what the cost leaves room for.

    Measured on gradients and momentum of networks (`docs/stiefel_solver.md`), in
    float64: four steps give gaps of 3e-3 for m ≥ 2n, where two give 1e-2; near square
    eight leave 7e-3. In float32 products rounding stops at 6e-3, and two steps come
    near that.
    """
    near_square = rows < 2 * columns
    if backend == "products":
        return 4 if near_square else 2
    return 8 if near_square else 4


def _direction(
    point: Array,
    gradient: Array,
    *,
    steps: int | None,
    tolerance: float | None,
    backend: str | None,
    certify: bool,
    axis_name: AxisName,
) -> CertifiedDirection:
    rows, columns = row_count(point, axis_name), point.shape[1]
    name = backend or ("eigh" if on_cpu() else "products")
    bounds = BY_EIGH if name == "eigh" else BY_PRODUCTS
    unit = normalize(gradient, axis_name)
    overlap = inner(point, unit, axis_name)
    rotation = skew(overlap)
    # The second subtraction removes what the first leaves behind in float32.
    normal_free = unit - matmul(point, overlap)
    normal_free -= matmul(point, inner(point, normal_free, axis_name))

    if rows == columns:
        direction = matmul(point, skew(polar(rotation)))
        bound = bounds.square(rotation) if certify else 0
    elif columns == 1:
        direction = normalize(normal_free, axis_name)
        bound = jnp.sqrt(dot(normal_free, normal_free, axis_name))[0, 0]
    else:
        if steps is None:
            steps = (
                default_steps(rows, columns, name) if tolerance is None else _LONGEST
            )
        found = _reduced(rotation, normal_free, name, steps, tolerance, axis_name)
        direction = _embed(point, normal_free, found, axis_name)
        dual = point, rotation, normal_free, found.shift
        bound = bounds.tangent(*dual, axis_name) if certify else 0

    # ‖K‖² + ‖G⊥‖² is the squared length of the tangent part of the unit gradient.
    length = jnp.sum(rotation**2) + dot(normal_free, normal_free, axis_name)[0, 0]
    eps = jnp.finfo(point.dtype).eps
    is_normal = length <= (64 * eps) ** 2
    direction = jnp.where(is_normal, jnp.zeros_like(direction), direction)
    gap = None
    if certify:
        # The rounding of K, C and the inner product below, for a gradient of norm 1:
        # it counts for more where most of the gradient is normal to the manifold.
        bound = bound + _ROUNDING * eps * (1 + bound)
        norm = bounds.length(direction, axis_name)
        value = dot(direction, unit, axis_name)[0, 0] / jnp.maximum(norm, 1)
        gap = jnp.where(is_normal, 0, (bound - value) / bound)
    return CertifiedDirection(direction, gap, _tangency(point, direction, axis_name))


def _reduced(
    rotation: Array,
    normal_free: Array,
    name: str,
    steps: int,
    tolerance: float | None,
    axis_name: AxisName,
) -> Direction:
    chosen = backend_named(name, rotation.dtype, tolerance)
    eps = float(jnp.finfo(rotation.dtype).eps)

    def reduced(rotation: Array, normal_free: Array) -> Direction:
        square = gram(normal_free, axis_name)
        if tolerance is None:
            return solve(rotation, square, steps=steps, backend=chosen)
        return solve_within(
            rotation,
            square,
            tolerance=tolerance,
            rounding=(_ROUNDING + 2) * eps,
            steps=steps,
            backend=chosen,
        )

    return (in_float64(reduced) if chosen.wide else reduced)(rotation, normal_free)


def _embed(
    point: Array, normal_free: Array, blocks: Direction, axis_name: AxisName
) -> Array:
    """`W·tangent + G⊥·mixing·restᵀ`, tangent and of norm ≤ 1 up to rounding."""
    isometry = matmul(normal_free, blocks.mixing)
    # In float32 its singular values may come out as 1.1: small eigenvalues of C are
    # noise. (3s − s³)/2 maps [0, √3] into [0, 1], and what is near 1 to 1.
    identity = jnp.eye(point.shape[1], dtype=point.dtype)
    polish = 1.5 * identity - gram(isometry, axis_name) / 2
    rest = matmul(isometry, matmul(polish, blocks.rest.T))
    correction = blocks.tangent - inner(point, rest, axis_name)
    return matmul(point, correction) + rest


def _tangency(point: Array, direction: Array, axis_name: AxisName) -> Array:
    overlap = inner(point, direction, axis_name)
    length = jnp.sqrt(dot(direction, direction, axis_name))[0, 0]
    off = jnp.linalg.norm(overlap + overlap.T)
    return jnp.where(length > 0, off / jnp.where(length > 0, length, 1), off)
