"""The Stiefel x spectral solver on one accelerator, with each of its backends."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from gpu_timing import Deadline, rounds_of, spread
from stepping import head, row

from manifold_optax import geometry

TITLE = "Stiefel solver"

TEXT = """\
`geometry.stiefel_spectral_direction` of one matrix in float32, by size and backend,
with its defaults. The time is without the certificate; the gap is what it certifies."""


@dataclasses.dataclass(frozen=True)
class SolverBudget:
    """Which sizes are solved, and for how long."""

    shapes: tuple[tuple[int, int], ...]
    seconds: float
    """Of the whole table."""
    measure: float
    """Of one median."""


def table(budget: SolverBudget) -> Iterator[str]:
    """The table."""
    yield from head("size", "backend", "ms, median [quartiles]", "certified gap")
    deadline = Deadline(budget.seconds)
    for shape in budget.shapes:
        for backend in geometry.BACKENDS:
            make = functools.partial(_rows, shape, backend, budget)
            yield from deadline.rows(f"{shape[0]} x {shape[1]}, {backend}", make)


def _solver(backend: str, *, certify: bool) -> Any:
    options = {"certify": certify, "backend": backend}
    return jax.jit(functools.partial(geometry.stiefel_spectral_direction, **options))


def _rows(shape: tuple[int, int], backend: str, budget: SolverBudget) -> Iterator[str]:
    point_key, key = jax.random.split(jax.random.key(sum(shape)))
    point = jnp.linalg.qr(jax.random.normal(point_key, shape))[0]
    gradient = jax.random.normal(key, shape)
    gap = float(_solver(backend, certify=True)(point, gradient).gap)
    fast = _solver(backend, certify=False).lower(point, gradient).compile()
    seconds = rounds_of(lambda: fast(point, gradient), seconds=budget.measure)
    yield row([f"{shape[0]} x {shape[1]}", backend, spread(seconds), f"{gap:.0e}"])
