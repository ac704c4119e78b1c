"""Float64 NumPy/SciPy oracles: slow, plain, and independent of the library.

Conventions: a matrix `w` [m, n] is tall (m >= n) with orthonormal columns, and every
direction is one of ascent, <direction, g> >= 0; a step moves against it.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, optimize

Array = NDArray[np.float64]
Schedule = Sequence[Sequence[float]]

EPS = float(np.finfo(np.float64).eps)

GRADIENT_KINDS = (
    "gaussian",
    "power",
    "low_rank_noise",
    "rank_deficient",
    "readout",
    "rank_one",
)

# Smoothings of the dual, relative to the root mean square singular value. Below 1e-7
# the kinks of the nuclear norm stop L-BFGS, and the duality gap is smaller already.
_SMOOTHINGS = tuple(10.0**-k for k in range(1, 8))


class Optimum(NamedTuple):
    """Bracket `lower <= optimum <= upper`, and the feasible direction at `lower`."""

    lower: float
    upper: float
    direction: Array

    @property
    def gap(self) -> float:
        """Relative width of the bracket; 0 where the optimum is 0."""
        return (self.upper - self.lower) / self.upper if self.upper > 0 else 0.0


def _float64(x: ArrayLike) -> Array:
    return np.asarray(x, dtype=np.float64)


def sym(x: Array) -> Array:
    """Symmetric part."""
    return (x + x.T) / 2


def skew(x: Array) -> Array:
    """Skew-symmetric part."""
    return (x - x.T) / 2


def polar(x: ArrayLike, tolerance: float | None = None) -> Array:
    """Partial isometry U_r V_r^T of any matrix; zero goes to zero.

    Singular values up to `tolerance` (max(m, n) eps) times the largest count as zero.
    """
    x = _float64(x)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    tolerance = max(x.shape) * EPS if tolerance is None else tolerance
    return (u * (s > tolerance * s[0])) @ vt


def schedule_image(schedule: Schedule, s: ArrayLike) -> Array:
    """Image of `s` under the odd quintics a s + b s^3 + c s^5, rows in order."""
    s = _float64(s)
    for a, b, c in schedule:
        s = s * (a + b * s**2 + c * s**4)
    return s


def newton_schulz(x: ArrayLike, schedule: Schedule) -> Array:
    """Newton-Schulz of x / ||x||_F, by the polynomial of its singular values."""
    u, s, vt = np.linalg.svd(_float64(x), full_matrices=False)
    norm = np.linalg.norm(s)
    return (u * schedule_image(schedule, s / norm if norm > 0 else s)) @ vt


def sphere_direction(w: ArrayLike, g: ArrayLike) -> Array:
    """Unit tangent direction of steepest ascent on the sphere through `w`."""
    w, g = _float64(w), _float64(g)
    unit = w / np.linalg.norm(w)
    tangent = g - unit * np.sum(unit * g)
    norm = np.linalg.norm(tangent)
    # What the projection leaves of a radial gradient is rounding, not a direction.
    if norm <= 64 * EPS * np.linalg.norm(g):
        return np.zeros_like(w)
    return tangent / norm


def sphere_step(w: ArrayLike, g: ArrayLike, lr: float, radius: float = 1.0) -> Array:
    """Hyperspherical descent on the sphere of `radius`, exactly retracted."""
    direction = sphere_direction(w, g)
    # The direction is a unit tangent, or zero; the exact length covers both.
    length = np.sqrt(1 + lr**2 * np.sum(direction**2))
    return (_float64(w) - lr * radius * direction) / length


def stiefel_tangent(w: ArrayLike, v: ArrayLike) -> Array:
    """Orthogonal projection of `v` to the tangent space: v - w sym(w^T v)."""
    w, v = _float64(w), _float64(v)
    return v - w @ sym(w.T @ v)


def column_direction(w: ArrayLike, g: ArrayLike) -> Array:
    """Manifold Muon's direction for n = 1: the normalised projected gradient."""
    tangent = stiefel_tangent(w, g)
    return tangent / np.linalg.norm(tangent)


def square_direction(w: ArrayLike, g: ArrayLike) -> Array:
    """Manifold Muon's direction for m = n: w polar(skew(w^T g)).

    An odd n makes one singular value of the skew part zero, and `polar` keeps it so.
    """
    w = _float64(w)
    return w @ skew(polar(skew(w.T @ _float64(g))))


def lyapunov(a: ArrayLike, b: ArrayLike) -> Array:
    """Solution R of a R + R a = b, for a symmetric positive definite `a`."""
    return linalg.solve_continuous_lyapunov(_float64(a), _float64(b))


def muon_momentum(
    grads: Sequence[ArrayLike], beta: float, nesterov: bool = True, debias: bool = True
) -> list[Array]:
    """What Muon orthogonalises at steps 1, 2, ..., from m = beta m + (1 - beta) g.

    That is m, or with `nesterov` beta m + (1 - beta) g. `debias` divides every term by
    the sum of its weights, in Nadam's way: m by that of the *next* step if `nesterov`.
    """

    def weight(step: int) -> float:
        return 1 - beta**step if debias else 1.0

    outputs = []
    average = np.zeros_like(_float64(grads[0]))
    for step, grad in enumerate(map(_float64, grads), start=1):
        average = beta * average + (1 - beta) * grad
        ahead = beta * average / weight(step + 1) + (1 - beta) * grad / weight(step)
        outputs.append(ahead if nesterov else average / weight(step))
    return outputs


def _smoothed_dual(
    variables: Array, w: Array, g: Array, smoothing: float
) -> tuple[float, Array, Array]:
    """Value of sum sqrt(sigma^2 + smoothing^2), sigma of g + w L; gradients by g, L.

    The variables are all n^2 entries of L: its gradient is symmetric, so that L-BFGS
    stays with symmetric matrices when it starts from one.
    """
    multiplier = sym(variables.reshape(w.shape[1], -1))
    u, s, vt = np.linalg.svd(g + w @ multiplier, full_matrices=False)
    smooth = np.hypot(s, smoothing)
    primal = (u * (s / smooth)) @ vt
    return float(smooth.sum()), primal, sym(w.T @ primal)


def _best_for_skew_part(x: Array, w: Array, g: Array) -> Array:
    """Best feasible direction whose skew part w^T A is `x`, scaled into the unit ball.

    With N = I - x^T x, A = w x + B is feasible for B = Z N^(1/2), Z any contraction
    orthogonal to w, and polar(g_perp N^(1/2)) is the best Z. `w` is [+-I; 0] here, so
    that the rows below n are its complement and orthogonality is exact.
    """
    n = w.shape[1]
    x = x / max(1.0, np.linalg.norm(x, 2))
    eigenvalues, vectors = np.linalg.eigh(np.eye(n) - x.T @ x)
    root = (vectors * np.sqrt(np.maximum(eigenvalues, 0))) @ vectors.T
    direction = w @ x
    if len(w) > n:
        u, _, vt = np.linalg.svd(g[n:] @ root, full_matrices=False)
        direction[n:] += u @ vt @ root
    return direction


def _bracket(w: Array, g: Array, multiplier: Array, candidate: Array) -> Optimum:
    """Certify: the multiplier bounds from above, the candidate made feasible below."""
    direction = stiefel_tangent(w, candidate)
    direction = direction / max(1.0, np.linalg.norm(direction, 2))
    # Rounded outwards, so that a gap of zero does not turn into a negative one.
    upper = float(np.linalg.norm(g + w @ multiplier, "nuc")) * (1 + 1e-13)
    return Optimum(float(np.sum(g * direction)), upper, direction)


def stiefel_spectral_optimum(
    w: ArrayLike, g: ArrayLike, *, max_iterations: int = 200, tolerance: float = 1e-6
) -> Optimum:
    """Certified optimum of max <g, A> s.t. w^T A + A^T w = 0 and ||A||_2 <= 1.

    L-BFGS on the smoothed dual min_L sum sqrt(sigma(g + w L)^2 + eps^2), L symmetric,
    eps from 1e-1 to 1e-7, until the bracket is as tight as `tolerance`. `upper` is the
    exact dual value ||g + w L||_*, which bounds the optimum for every L. Gaps are below
    1e-4 on every kind of gradient up to 128 x 64, and at `tolerance` on most.

    Args:
        w: Matrix [m, n], m >= n, whose columns are orthonormal in float64.
        g: Gradient [m, n].
        max_iterations: Limit of the L-BFGS iterations for each eps.
        tolerance: Relative gap to stop at.
    """
    w, g = _float64(w), _float64(g)
    n = w.shape[1]
    shift = sym(w.T @ g)
    tangent = g - w @ shift
    norm = float(np.linalg.norm(tangent))
    if norm <= 64 * EPS * np.linalg.norm(g):
        return Optimum(0.0, 0.0, np.zeros_like(w))
    scale = norm / np.sqrt(n)
    # Exact: some optimal A lies in the span of w and g, of at most 2n dimensions.
    basis, triangle = np.linalg.qr(np.hstack([w, tangent / scale]))
    w_small, g_small = triangle[:, :n], triangle[:, n:]

    def dual(variables: Array, smoothing: float) -> tuple[float, Array]:
        value, _, slope = _smoothed_dual(variables, w_small, g_small, smoothing)
        return value, slope.ravel()

    best = Optimum(-np.inf, np.inf, np.zeros_like(w_small))
    variables, multiplier = np.zeros(n * n), np.zeros((n, n))
    options = {"maxiter": max_iterations, "maxcor": 20, "ftol": 1e-15, "gtol": 1e-9}
    for smoothing in _SMOOTHINGS:
        variables = optimize.minimize(
            dual, variables, smoothing, "L-BFGS-B", jac=True, options=options
        ).x
        _, primal, _ = _smoothed_dual(variables, w_small, g_small, smoothing)
        candidate = _best_for_skew_part(skew(w_small.T @ primal), w_small, g_small)
        trial = sym(variables.reshape(n, n))
        bracket = _bracket(w_small, g_small, trial, candidate)
        if bracket.upper < best.upper:
            best, multiplier = best._replace(upper=bracket.upper), trial
        if bracket.lower > best.lower:
            best = bracket._replace(upper=best.upper)
        if best.gap <= tolerance:
            break
    return _bracket(w, g, scale * multiplier - shift, basis @ best.direction)


def stiefel_point(rng: np.random.Generator, m: int, n: int) -> Array:
    """Uniform random matrix [m, n] with orthonormal columns."""
    return polar(rng.standard_normal((m, n)))


def gradient(kind: str, rng: np.random.Generator, m: int, n: int) -> Array:
    """Random gradient [m, n] of one of `GRADIENT_KINDS`."""

    def low_rank(rank: int) -> Array:
        return rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))

    if kind == "gaussian":
        return rng.standard_normal((m, n))
    if kind == "power":
        left = stiefel_point(rng, m, n) / np.arange(1, n + 1)
        return left @ stiefel_point(rng, n, n)
    if kind == "low_rank_noise":
        return low_rank(max(1, n // 8)) + 1e-2 * rng.standard_normal((m, n))
    if kind == "rank_deficient":
        return low_rank(max(1, n // 4))
    if kind == "readout":
        # The gradient of a softmax cross-entropy readout [features, classes] has rows
        # of sum zero, which puts the dual optimum at a kink.
        dense = rng.standard_normal((m, n))
        return dense - dense.mean(axis=1, keepdims=True)
    if kind == "rank_one":
        return low_rank(1)
    raise ValueError(f"kind must be one of {GRADIENT_KINDS}; got {kind!r}")


def momentum_gradients(
    sizes: Sequence[int] = (128, 64, 32, 10), steps: int = 40
) -> list[tuple[str, Array, Array]]:
    """Momentum of a ReLU network on scikit-learn's digits, batches of 128.

    The 64 pixels are lifted to sizes[0] random features. Training is momentum-SGD
    (0.95), each kernel [inputs, outputs] put back on the Stiefel manifold by `polar`.
    Returned is (name, w, momentum) of each kernel at the last step.
    """
    # Not at the top: scikit-learn is optional, and only this generator needs it.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    rng = np.random.default_rng(0)
    pixels, labels = load_digits(return_X_y=True)
    lifted = np.maximum(pixels @ rng.standard_normal((64, sizes[0])), 0)
    # Unit mean square: orthonormal kernels keep the scale from layer to layer.
    inputs = lifted / np.sqrt(np.mean(lifted**2))
    targets = np.eye(10)[labels]

    shapes = list(itertools.pairwise(sizes))
    kernels = [stiefel_point(rng, *shape) for shape in shapes]
    momenta = [np.zeros(shape) for shape in shapes]
    for step in range(steps):
        batch = rng.choice(len(inputs), size=128, replace=False)
        grads = mlp_gradients(kernels, inputs[batch], targets[batch])
        pairs = zip(momenta, grads, strict=True)
        momenta = [0.95 * m + 0.05 * g for m, g in pairs]
        if step < steps - 1:
            pairs = zip(kernels, momenta, strict=True)
            kernels = [polar(w - m) for w, m in pairs]
    names = [f"{m}x{n}" for m, n in shapes]
    return list(zip(names, kernels, momenta, strict=True))


def mlp_gradients(kernels: list[Array], x: Array, targets: Array) -> list[Array]:
    """Gradients of the mean softmax cross-entropy of a ReLU network without bias."""
    activations = [x]
    for kernel in kernels[:-1]:
        activations.append(np.maximum(activations[-1] @ kernel, 0))
    logits = activations[-1] @ kernels[-1]
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    delta = (weights / weights.sum(axis=1, keepdims=True) - targets) / len(x)
    grads = []
    for kernel, activation in zip(kernels[::-1], activations[::-1], strict=True):
        grads.append(activation.T @ delta)
        # A ReLU passes the gradient where its own output is positive.
        delta = (delta @ kernel.T) * (activation > 0)
    return grads[::-1]


# Su's 8 x 4 case (kexue.fm 11221): the rows of the point, then those of the gradient.
_SU = """
    0.69453734 -0.26590866 -0.44721806 0.2753041
    -0.11738148 -0.5588003 -0.17580748 0.3218624
    -0.4515288 -0.23489913 -0.26683152 -0.25739142
    0.02392521 0.02664689 0.48423648 0.6193399
    0.45194831 -0.25206333 0.27654836 -0.60242337
    0.21197332 -0.09174792 0.24521762 -0.08484317
    -0.15496767 -0.26446804 -0.34942415 -0.01877318
    -0.16181251 -0.6474956 0.45243263 -0.01776086
    -17.85745 -10.758921 -2.9583392 6.245008
    -28.883093 19.772121 8.086545 -21.564013
    -1.6274693 -14.96859 3.4465332 3.1070817
    -7.8890743 1.5304767 -8.949573 9.579629
    2.246596 14.46572 12.8451 -2.7370298
    -0.9496974 6.9879804 2.849277 1.1148484
    -8.115278 -18.054405 -0.19287404 7.0389237
    -15.062008 -15.02901 2.9083247 21.706533
"""
_SU_TABLE = np.array(_SU.split(), dtype=np.float64).reshape(2, 8, 4)
# The printed digits of the point are orthonormal to 1e-6 only.
SU_POINT, SU_GRADIENT = polar(_SU_TABLE[0]), _SU_TABLE[1]
SU_OPTIMUM = 90.04813
