"""Float64 NumPy bracket of the Stiefel x spectral optimum, for any size up to 1024.

    max <G, A>  subject to  W^T A + A^T W = 0 and ||A||_2 <= 1

Independent of the library: singular values instead of Gram matrices, little
smoothing, and a bracket that holds whatever the iteration did.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Over-relaxation of the fixed point. Up to 2 is locally safe; over hundreds of steps
# 1.7 came closer than 1.3, which is better for a few.
RELAXATION = 1.7
# Smoothings relative to the largest singular value, and the steps at each. The first is
# best where singular values at the optimum are zero, the last on most other cases.
SMOOTHINGS = (1e-5, 1e-6, 1e-8)
STEPS = 400


class Bracket(NamedTuple):
    """`lower <= optimum <= upper`."""

    lower: float
    upper: float

    @property
    def width(self) -> float:
        """Relative width; 0 where the optimum is 0."""
        return (self.upper - self.lower) / self.upper if self.upper > 0 else 0.0


def skew(x: Array) -> Array:
    """Skew-symmetric part."""
    return (x - x.T) / 2


def reduce(point: Array, gradient: Array) -> tuple[Array, Array]:
    """(K, R) [n, n]: skew part of W^T G, and the triangle of the part orthogonal to W.

    The optimum depends on them only: some optimal A lies in the span of W and G.
    """
    inside = point.T @ gradient
    outside = gradient - point @ inside
    outside -= point @ (point.T @ outside)
    return skew(inside), np.linalg.qr(outside)[1]


def primal_value(x: Array, k: Array, r: Array) -> float:
    """Value of the best feasible direction whose skew part W^T A is x / max(1, |x|)."""
    x = x / max(1.0, np.linalg.norm(x, 2))
    eigenvalues, vectors = np.linalg.eigh(np.eye(len(x)) - x.T @ x)
    root = (vectors * np.sqrt(np.maximum(eigenvalues, 0))) @ vectors.T
    return float(np.sum(k * x) + np.linalg.norm(r @ root, "nuc"))


def optimum(point: ArrayLike, gradient: ArrayLike, tolerance: float = 1e-6) -> Bracket:
    """Bracket of the optimum, until it is `tolerance` wide or the steps are used up.

    Majorise-minimise on the dual f(S) = ||[K + S; R]||_*, S symmetric, which bounds the
    optimum from above for every S; each S also yields a feasible direction.
    """
    w, g = (np.asarray(x, dtype=np.float64) for x in (point, gradient))
    k, r = reduce(w, g)
    norm = float(np.hypot(np.linalg.norm(k), np.linalg.norm(r)))
    if norm <= 64 * np.finfo(np.float64).eps * np.linalg.norm(g):
        return Bracket(0.0, 0.0)
    k, r = k / norm, r / norm
    best = Bracket(-np.inf, np.inf)
    multiplier = _start(k, r)
    for smoothing, step in itertools.product(SMOOTHINGS, range(STEPS)):
        h = k + multiplier
        _, s, vt = np.linalg.svd(np.vstack([h, r]), full_matrices=False)
        best = best._replace(upper=min(best.upper, float(s.sum()) * (1 + 1e-13)))
        q = np.hypot(s, smoothing * s[0])
        if step % 5 == 0:
            x = skew(h @ (vt.T / q) @ vt)
            best = best._replace(lower=max(best.lower, primal_value(x, k, r)))
            if best.width <= tolerance:
                break
        multiplier = multiplier + RELAXATION * _lyapunov_step(h, q, vt)
    return Bracket(best.lower * norm, best.upper * norm)


def _lyapunov_step(h: Array, q: Array, vt: Array) -> Array:
    """Solution R of Q R + R Q = -(T + T^T), T = Q h, with Q = V diag(q) V^T."""
    middle = vt @ h @ vt.T
    t = q[:, None] * middle
    return vt.T @ (-(t + t.T) / (q[:, None] + q)) @ vt


def _start(k: Array, r: Array) -> Array:
    """The better of S = 0 and of the first step in the metric of R alone."""
    _, s, vt = np.linalg.svd(r)
    start = _lyapunov_step(k, np.hypot(s, 1e-4 * max(s[0], 1e-30)), vt)
    values = [
        np.linalg.norm(np.vstack([k + x, r]), "nuc") for x in (np.zeros_like(k), start)
    ]
    return start if values[1] < values[0] else np.zeros_like(k)


def feasible_value(point: Array, gradient: Array, direction: ArrayLike) -> float:
    """<G, A> of a direction projected to the tangent space and into the unit ball."""
    return float(np.sum(gradient * _feasible(point, direction)))


def completed_value(point: Array, gradient: Array, direction: ArrayLike) -> float:
    """<G, A> of the best feasible direction with the skew part W^T A of `direction`.

    What a solver's result is worth to one who pays for the completion besides. The
    skew part is taken both as it is and as scaled by `feasible_value`, so that this is
    never below it.
    """
    k, r = reduce(point, gradient)
    pair = (np.asarray(direction, dtype=np.float64), _feasible(point, direction))
    return max(primal_value(skew(point.T @ a), k, r) for a in pair)


def _feasible(point: Array, direction: ArrayLike) -> Array:
    a = np.asarray(direction, dtype=np.float64)
    overlap = point.T @ a
    a = a - point @ (overlap + overlap.T) / 2
    return a / max(1.0, float(np.linalg.norm(a, 2)))
