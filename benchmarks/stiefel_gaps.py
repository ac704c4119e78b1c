"""Gaps of the Stiefel x spectral solvers, certified in float64 outside the library."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import dual_ascent_reference
import jax
import jax.numpy as jnp
import numpy as np
import stiefel_cases
import stiefel_optimum

from manifold_optax import geometry
from manifold_optax.linalg._reductions import matmul

# (point, gradient) -> (direction, the solver's own gap or NaN)
Method = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

BACKENDS = geometry.BACKENDS


class Gap(NamedTuple):
    """One method on one case. Gaps are relative to the upper bound of the optimum."""

    case: str
    kind: str
    shape: tuple[int, int]
    method: str
    certified: float
    """Of the direction made feasible: projected, and scaled into the unit ball."""
    completed: float
    """Of the best feasible direction with its skew part W^T A."""
    own: float
    """What the solver certifies itself; NaN where it does not."""
    norm: float
    """Spectral norm of the direction as returned."""
    tangency: float
    """||W^T A + A^T W||_F / ||A||_F as returned."""


def library(backend: str, certify: bool = False) -> Method:
    """`stiefel_spectral_direction` with its defaults."""

    def solve(point: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = geometry.stiefel_spectral_direction(
            point, gradient, certify=certify, backend=backend
        )
        # Without a certificate there is no gap, which the tables show as NaN.
        return found.direction, jnp.array(jnp.nan) if found.gap is None else found.gap

    return solve


def reference(
    dtype: Any, normalise: bool, tolerance: float | None = 1e-6, steps: int = 100
) -> Method:
    """The published dual ascent."""

    def solve(point: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = dual_ascent_reference.dual_ascent(
            point,
            gradient,
            steps=steps,
            tolerance=tolerance,
            dtype=dtype,
            normalise=normalise,
        )
        return found.direction, jnp.array(jnp.nan)

    return solve


def project_then_polar(
    point: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """SPEL (arXiv 2601.21487): polar factor of the projected gradient, not tangent."""
    sign = dual_ascent_reference.msign(_tangent(point, gradient), jnp.float32)
    return sign, jnp.array(jnp.nan)


def polar_then_project(
    point: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Muon's direction projected to the tangent space, of norm up to 2/sqrt(3)."""
    sign = dual_ascent_reference.msign(gradient, jnp.float32)
    return _tangent(point, sign), jnp.array(jnp.nan)


def _tangent(point: jax.Array, x: jax.Array) -> jax.Array:
    overlap = matmul(point.T, x)
    return x - matmul(point, (overlap + overlap.T) / 2)


def published(tolerance: float | None = 1e-6) -> dict[str, Method]:
    """The reference in two dtypes, its gradient as it is or normalised."""
    return {
        name + suffix: reference(dtype, normalise, tolerance)
        for normalise, suffix in ((False, ""), (True, ", normalised"))
        for name, dtype in (
            ("reference f32", jnp.float32),
            ("reference bf16", jnp.bfloat16),
        )
    }


def methods(certify: bool = True, tolerance: float | None = 1e-6) -> dict[str, Method]:
    """All methods by name, ours first; `tolerance` is the reference's."""
    cheap = {
        "project, polar": project_then_polar,
        "polar, project": polar_then_project,
    }
    own = {f"ours, {name}": library(name, certify) for name in BACKENDS}
    return own | published(tolerance) | cheap


def measure(
    cases: Iterable[stiefel_cases.Case], by_name: Mapping[str, Method]
) -> Iterator[Gap]:
    """Gap of every method on every case; each method is compiled once per shape."""
    compiled = {name: jax.jit(method) for name, method in by_name.items()}
    for case in cases:
        upper = stiefel_optimum.optimum(case.point, case.gradient).upper
        for name, method in compiled.items():
            yield _gap(case, name, method, upper)


def _gap(case: stiefel_cases.Case, name: str, method: Method, upper: float) -> Gap:
    point, gradient = case.point, case.gradient
    found, own = method(*(jnp.asarray(x, jnp.float32) for x in (point, gradient)))
    direction = np.asarray(found, np.float64)
    feasible = stiefel_optimum.feasible_value(point, gradient, direction)
    completed = stiefel_optimum.completed_value(point, gradient, direction)
    overlap = point.T @ direction
    return Gap(
        case.name,
        case.kind,
        (point.shape[0], point.shape[1]),
        name,
        certified=1 - feasible / upper,
        completed=1 - completed / upper,
        own=float(own),
        norm=float(np.linalg.norm(direction, 2)),
        tangency=float(np.linalg.norm(overlap + overlap.T) / np.linalg.norm(direction)),
    )


def scale_sweep(
    cases: Iterable[stiefel_cases.Case], scales: Iterable[float]
) -> Iterator[tuple[float, Gap]]:
    """Gaps of ours and of the reference with the gradient scaled to each norm."""
    names = ["ours, products", "reference f32", "reference bf16"]
    compiled = {name: jax.jit(methods(certify=False)[name]) for name in names}
    for case in cases:
        unit = case.gradient / np.linalg.norm(case.gradient)
        upper = stiefel_optimum.optimum(case.point, unit).upper
        for scale in scales:
            scaled = case._replace(gradient=scale * unit)
            for name, method in compiled.items():
                yield scale, _gap(scaled, name, method, scale * upper)


def geometric_mean(gaps: Iterable[float]) -> float:
    """Geometric mean; a gap below the bracket's own width counts as that, 1e-6."""
    # Otherwise one gap of rounding size would outweigh all others.
    return math.exp(np.mean([math.log(max(gap, 1e-6)) for gap in gaps]))


@functools.cache
def one_msign_flops(m: int, n: int) -> int:
    """FLOPs of one matrix sign of ten rows: the unit in which costs are compared."""
    return len(dual_ascent_reference.MSIGN_SCHEDULE) * (4 * m * n**2 + 2 * n**3)
