"""Float64 oracle of steepest directions of spectral norm 1, independent of the library.

Any point of the dual bounds the optimum from above, and any feasible direction from
below: a direction that attains the bound of this file is proved optimal.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

Array = NDArray[np.float64]

# Smoothings of the nuclear norm, relative to the mean singular value: below 1e-6 its
# kinks stop L-BFGS, and 1e-6 itself is a relative error of at most 1e-6.
_SMOOTHINGS = tuple(10.0**-k for k in range(1, 7))


def least_nuclear_norm(
    g: Array,
    normal: Callable[[Array], Array],
    pull: Callable[[Array, Array], Array],
    n: int,
) -> float:
    """Least nuclear norm of `g + normal(c)` that L-BFGS finds over vectors c of size n.

    `pull(c, x)` is the gradient of <x, normal(c)> by c.
    """
    scale = np.linalg.svd(g, compute_uv=False).mean()
    best = np.inf
    # Away from 0, where a factor c of a square c c^T has no gradient.
    start = 1e-2 * np.random.default_rng(0).standard_normal(n)

    def smoothed(c: Array, smoothing: float) -> tuple[float, Array]:
        u, s, vt = np.linalg.svd(g / scale + normal(c), full_matrices=False)
        smooth = np.hypot(s, smoothing)
        return float(smooth.sum()), pull(c, (u * (s / smooth)) @ vt)

    for smoothing in _SMOOTHINGS:
        options = {"maxiter": 300, "maxcor": 20, "ftol": 1e-15, "gtol": 1e-9}
        start = optimize.minimize(
            smoothed, start, smoothing, "L-BFGS-B", jac=True, options=options
        ).x
        best = min(best, float(np.linalg.norm(g / scale + normal(start), "nuc")))
    return scale * best


def optimum_orthogonal_to(normals: Sequence[ArrayLike], g: Array) -> float:
    """Largest <a, g> over ||a||_2 <= 1 orthogonal to all `normals`."""
    basis = np.stack([np.asarray(x, np.float64) for x in normals])

    def normal(c: Array) -> Array:
        return np.tensordot(c, basis, axes=1)

    def pull(c: Array, x: Array) -> Array:
        return np.tensordot(basis, x, axes=2)

    return least_nuclear_norm(g, normal, pull, len(basis))


def optimum_in_band(w: Array, g: Array, low: float, high: float) -> float:
    """Largest <a, g> over ||a||_2 <= 1 for which w - t a stays in the band at first.

    The multipliers are squares c c^T of square factors on the faces at both ends.
    """
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    faces = []
    for sign, active in ((1, s >= high - 1e-5), (-1, (s <= low + 1e-5) & (low > 0))):
        if active.any():
            faces.append((sign, u[:, active], vt[active].T))
    sizes = [left.shape[1] for _, left, _ in faces]

    def factors(c: Array) -> list[Array]:
        parts = np.split(c, np.cumsum([k * k for k in sizes])[:-1])
        return [part.reshape(k, k) for part, k in zip(parts, sizes, strict=True)]

    def normal(c: Array) -> Array:
        total = np.zeros_like(g)
        for (sign, left, right), b in zip(faces, factors(c), strict=True):
            total += sign * left @ b @ b.T @ right.T
        return total

    def pull(c: Array, x: Array) -> Array:
        slopes = []
        for (sign, left, right), b in zip(faces, factors(c), strict=True):
            y = left.T @ x @ right
            slopes.append((sign * (y + y.T) @ b).ravel())
        return np.concatenate(slopes)

    if not faces:
        return float(np.linalg.norm(g, "nuc"))
    return least_nuclear_norm(g, normal, pull, sum(k * k for k in sizes))
