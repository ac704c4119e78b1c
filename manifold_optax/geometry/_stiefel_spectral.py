"""Steepest direction on the Stiefel manifold under the spectral norm.

At a point `W` with `WᵀW = I` (`m × n`, `m ≥ n`) it solves

    maximise ⟨A, G⟩   over   WᵀA + AᵀW = 0,  ‖A‖₂ ≤ 1

through its dual: minimise `tr Q(S)` over symmetric `S`, with `Q(S) = M(S)^{1/2}`,
`M(S) = (K + S)ᵀ(K + S) + C`, `K = skew(WᵀG)`, `C = G⊥ᵀG⊥` and `G⊥ = G − W WᵀG`. All
iterations are on `n × n` matrices. In the order of the code:

1. `S` starts at 0 or at the solution of first-order perturbation theory in `K`,
   whichever has the lower dual value.
2. A few steps of majorise-minimise: `Q R + R Q = −(T + Tᵀ)`, `T = Q(K + S)`, `S += ωR`.
3. The tangent block `X = skew((K + S) Q⁻¹)`, scaled into the unit ball, is completed
   to the best feasible `A = W X + G⊥ N^{1/2} (N^{1/2} C N^{1/2})^{-1/2} N^{1/2}`, with
   `N = I − XᵀX`: tangent and of norm ≤ 1 whatever the accuracy of `S`, for a point
   on the manifold.

The dual problem: J. Bernstein, "Modular Manifolds", Thinking Machines Lab (2025). The
fixed point of step 2: J. Su, "Muon on the Stiefel manifold", kexue.fm 11221 (2025).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manifold_optax._typing import AxisName
from manifold_optax.linalg import (
    dot,
    gram,
    inner,
    matmul,
    normalize,
    polar,
    row_count,
    skew,
    solve_lyapunov_in_basis,
    symmetric,
)

_RELAXATION = 1.3
"""Over-relaxation ω of step 2, measured best of 1, 1.3, 1.5, 1.7; below 2 is stable."""


class SpectralDirection(NamedTuple):
    """The direction, and two numbers that tell how good it is."""

    direction: Float[Array, "m n"]
    gap: Float[Array, ""]
    """(upper bound − ⟨A, G⟩/max(1, ‖A‖₂)) / upper bound; NaN unless asked for."""
    tangency: Float[Array, ""]
    """`‖WᵀA + AᵀW‖_F / ‖A‖_F`."""


def stiefel_spectral_direction(
    point: Float[Array, "m n"],
    gradient: Float[Array, "m n"],
    *,
    steps: int | None = None,
    certify: bool = False,
    axis_name: AxisName = None,
) -> SpectralDirection:
    """Unit-spectral-norm tangent `A` with the largest inner product with `gradient`.

    Args:
        point: `[m, n]` with orthonormal columns to 1e-6, `m ≥ n`, at least float32. Off
            the manifold the direction is neither tangent nor bounded; `tangency` tells.
        gradient: `[m, n]`, any scale.
        steps: majorise-minimise steps, ≥ 0. `None`: 1 for m ≥ 4n, 2 for m ≥ 2n, else 4.
            Square matrices and single columns have closed forms and ignore it.
        certify: also bound the distance from the optimum (one more `n × n`
            eigendecomposition and `2·m·n²` FLOPs).
        axis_name: mesh axes over which the rows are split, inside `jax.shard_map`.

    Returns:
        The direction with `‖A‖₂ ≤ 1`, its gap and its tangency. A zero gradient, or one
        normal to the manifold, gives zero; a non-finite one gives NaN.

    Cost: about `30·m·n²` FLOPs and `5 + max(steps, 1)` `n × n` eigendecompositions.
    """
    rows, columns = row_count(point, axis_name), point.shape[1]
    unit = normalize(gradient, axis_name)
    overlap = inner(point, unit, axis_name)
    rotation = skew(overlap)
    # The second subtraction removes what the first leaves behind in float32.
    normal_free = unit - matmul(point, overlap)
    normal_free -= matmul(point, inner(point, normal_free, axis_name))
    square = gram(normal_free, axis_name)

    if rows == columns:
        direction = matmul(point, skew(polar(rotation)))
        bound = jnp.linalg.svd(rotation, compute_uv=False).sum()
    elif columns == 1:
        direction = normalize(normal_free, axis_name)
        bound = jnp.sqrt(square[0, 0])
    else:
        count = _default_steps(rows, columns) if steps is None else steps
        shift = _dual_solution(rotation, square, count)
        tangent, mixing, half, bound = _best_feasible(rotation, square, shift)
        isometry = matmul(normal_free, mixing)
        # In float32 its singular values may come out as 1.1: small eigenvalues of C are
        # noise. (3s − s³)/2 maps [0, √3] into [0, 1], and what is near 1 to 1.
        polish = (
            1.5 * jnp.eye(columns, dtype=point.dtype) - gram(isometry, axis_name) / 2
        )
        rest = matmul(isometry, matmul(polish, half))
        rest -= matmul(point, inner(point, rest, axis_name))
        direction = matmul(point, tangent) + rest

    # ‖K‖² + tr C is the squared length of the tangent part of the unit gradient.
    length = jnp.sum(rotation**2) + jnp.trace(square)
    noise = (64 * jnp.finfo(point.dtype).eps) ** 2
    direction = jnp.where(length <= noise, jnp.zeros_like(direction), direction)
    gap = jnp.full((), jnp.nan, point.dtype)
    if certify:
        norm = jnp.sqrt(jnp.max(jnp.linalg.eigvalsh(gram(direction, axis_name))))
        value = dot(direction, unit, axis_name)[0, 0] / jnp.maximum(norm, 1)
        gap = jnp.where(length <= noise, 0, (bound - value) / bound)
    return SpectralDirection(direction, gap, _tangency(point, direction, axis_name))


def _default_steps(rows: int, columns: int) -> int:
    """Steps that the measured gaps call for: the nearer to square, the harder."""
    if rows >= 4 * columns:
        return 1
    return 2 if rows >= 2 * columns else 4


class _Root(NamedTuple):
    """Eigendecomposition of a regularised square root of a semidefinite matrix."""

    values: Array
    vectors: Array

    def power(self, exponent: float) -> Array:
        return matmul(self.vectors * self.values[None] ** exponent, self.vectors.T)


def _root(square: Array, floor: Array) -> tuple[_Root, Array]:
    """Root of `square + ε²·max(‖square‖, floor)·I`, and the trace of the exact root."""
    values, vectors = jnp.linalg.eigh(square)
    # ε trades the noise of a squared matrix in this dtype for bias (MM needs Q ≻ 0).
    epsilon = 1e-3 if square.dtype == jnp.float32 else 1e-4
    ridge = epsilon**2 * jnp.maximum(values[-1], floor)
    clipped = jnp.maximum(values, 0)
    root = _Root(jnp.sqrt(clipped + jnp.maximum(ridge, 1e-30)), vectors)
    return root, jnp.sum(jnp.sqrt(clipped))


def _dual_solution(rotation: Array, square: Array, steps: int) -> Array:
    """Symmetric `S` that nearly minimises `tr Q(S)`."""
    floor = 1e-4 * jnp.sum(rotation**2) / jnp.sqrt(1.0 * len(rotation))

    def root_at(shift: Array) -> _Root:
        return _root(gram(rotation + shift) + square, floor)[0]

    def improvement(root: _Root, shift: Array) -> Array:
        moved = matmul(root.power(1.0), rotation + shift)
        return -solve_lyapunov_in_basis(root.values, root.vectors, moved + moved.T)

    zero = jnp.zeros_like(square)
    start = improvement(_root(square, floor)[0], zero)
    plain, perturbed = root_at(zero), root_at(start)
    better = jnp.sum(perturbed.values) < jnp.sum(plain.values)
    shift = jnp.where(better, start, zero)
    root = jax.tree.map(lambda p, q: jnp.where(better, p, q), perturbed, plain)
    for step in range(steps):
        root = root_at(shift) if step else root
        shift = shift + _RELAXATION * improvement(root, shift)
    return shift


def _best_feasible(
    rotation: Array, square: Array, shift: Array
) -> tuple[Array, Array, Array, Array]:
    """Blocks of the feasible direction, `W·tangent + G⊥·mixing·half`; a dual bound."""
    trace = jnp.sum(rotation**2) + jnp.trace(square)
    moved = rotation + shift
    root, dual_value = _root(gram(moved) + square, 1e-4 * trace)
    tangent = skew(matmul(moved, root.power(-1.0)))
    values, vectors = jnp.linalg.eigh(gram(tangent))
    # Strictly inside the ball, so that N is definite; 1e-5 is above float32 rounding.
    shrink = (1 - 1e-5) / jnp.maximum(1, jnp.sqrt(jnp.maximum(values[-1], 0)))
    rest = jnp.sqrt(jnp.maximum(1 - shrink**2 * values, 0))
    half = matmul(vectors * rest[None], vectors.T)
    inside = symmetric(matmul(half, matmul(square, half)))
    # Without the ridge rounding noise in C would be blown up to a direction.
    ridge = 1e-8 * trace * jnp.eye(len(square), dtype=square.dtype)
    inverse = _root(inside + ridge, jnp.zeros_like(trace))[0].power(-1.0)
    return shrink * tangent, matmul(half, inverse), half, (1 + 1e-4) * dual_value


def _tangency(point: Array, direction: Array, axis_name: AxisName) -> Array:
    overlap = inner(point, direction, axis_name)
    length = jnp.sqrt(dot(direction, direction, axis_name))[0, 0]
    off = jnp.linalg.norm(overlap + overlap.T)
    return jnp.where(length > 0, off / jnp.where(length > 0, length, 1), off)
