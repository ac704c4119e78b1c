"""Newton–Schulz: an odd polynomial of a matrix, by matrix products alone."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._checks import require_one_of
from manifold_optax._typing import AxisName, Matrix, Schedule
from manifold_optax.linalg._coefficients import check_schedule, JORDAN
from manifold_optax.linalg._reductions import (
    matmul,
    max_abs,
    nonzero,
    normalize,
    row_count,
    symmetric,
)

FORMS = ("auto", "direct", "gram")
PRECONDITIONERS = ("frobenius", "schatten")

_RESTART = 75.0
"""Largest growth of a rounding error of the Gram matrix before a restart.

A row of slope `a` multiplies it by `a²`. Of 20, 70, 160, 300, 1000 and 10 000 about the
largest that kept the error of float32 within twice that of the direct form (in the
spectral norm 1e-5 for JORDAN and YOU, 1e-4 for POLAR_EXPRESS), for 16 to 256 rows and
conditions of 10 to 1e8; 160 is 13 times worse for YOU. (Nearly rank-one matrices lose
more, a factor of six of 2e-6.) The steepest published row, of CANS, has `a² = 72`.
"""


def newton_schulz(
    x: Matrix,
    schedule: Schedule = JORDAN,
    *,
    form: str = "auto",
    preconditioner: str = "frobenius",
    compute_dtype: Any = None,
    axis_name: AxisName = None,
) -> Matrix:
    """Approximate orthogonal polar factor `U f(S) Vᵀ` of `x = U S Vᵀ`.

    `x` is divided by a norm and then, for each row `(a, b, c)` of the schedule,
    replaced by `a·x + (b·A + c·A²)·x` with the smaller Gram matrix `A` of `x`. The
    singular values pass through the rows one after another. The schedules tuned for
    Muon do not converge to 1: this is a direction, never a retraction (for which there
    is `polar`).

    Args:
        x: `[*batch, m, n]`, real floating, any scale from 1e-30 to 1e30 in float32.
        schedule: rows `(a, b, c)`, one per step.
        form: `"direct"`: two products with the long side at each step. `"gram"`: two
            at each restart (JORDAN: three times in all), and between them the rows act
            on the small Gram matrix; its rounding differs from that of `"direct"`, by
            about as much as that errs. `"auto"`: the one with fewer FLOPs for the
            whole matrix, which for JORDAN is `"gram"` where the long side is more than
            1.5 times the short one.
        preconditioner: the norm, an upper bound of `‖x‖₂`. `"frobenius"`: `‖x‖_F`.
            `"schatten"`: `‖xxᵀ‖_F^½`, the tighter Schatten-4 norm, from the first Gram
            matrix: small singular values end nearer to 1, at no product more.
        compute_dtype: dtype of the operands of the products, e.g. `jnp.bfloat16`;
            sums are always accumulated in at least float32. `None`: the dtype of `x`,
            at least float32. The products run at JAX's default matmul precision. Those
            of the Gram form between two restarts are in at least float32, at full
            precision.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            then `x` must have at least as many rows, in all, as columns. The only
            matrix that is summed over them is the Gram matrix, once a step in the
            direct form and once a restart in the Gram form.

    Returns:
        An array like `x`. A zero matrix gives zero; a matrix with a NaN or an infinite
        entry gives NaN everywhere.

    Raises:
        ValueError: for a schedule that is not a tuple of rows of three numbers, or an
            unknown form or preconditioner.

    Cost: with `k = min(m, n)`, `4·m·n·k + 2·k³` FLOPs a row in the direct form, and
    `4·m·n·k + (4·r − 3)·2·k³` for every `r` rows between restarts in the Gram form;
    `2·k³` less for each row with `c = 0`.

    Example:
        >>> x = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> jnp.round(jnp.diag(newton_schulz(x)), 2)
        Array([1.12, 0.68, 0.7 ], dtype=float32)

    Source: K. Jordan et al., "Muon" (2024); the Gram form: Dao-AILab,
    gram-newton-schulz (2026); the Schatten norm: `optax.contrib.muon`.
    """
    check_schedule(schedule)
    require_one_of("form", form, FORMS)
    require_one_of("preconditioner", preconditioner, PRECONDITIONERS)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    operand = wide if compute_dtype is None else jnp.dtype(compute_dtype)

    def product(left: Array, right: Array) -> Array:
        return jnp.matmul(
            left.astype(operand), right.astype(operand), preferred_element_type=wide
        )

    def gram_of(y: Array) -> Array:
        # Row times row ("NT"): the fastest form of a dot product on every backend.
        gram = product(y, y.mT)
        return gram if axis_name is None else jax.lax.psum(gram, axis_name)

    # Rows are the short side throughout.
    tall = axis_name is not None or x.shape[-2] >= x.shape[-1]
    y = (x.mT if tall else x).astype(wide)
    if preconditioner == "schatten":
        y = y / nonzero(max_abs(y, axis_name))
        gram = gram_of(y)
        norm = nonzero(jnp.linalg.norm(gram, axis=(-2, -1), keepdims=True))
        y, gram = y / jnp.sqrt(norm), gram / norm
    else:
        y, gram = normalize(y, axis_name), None

    long = row_count(x, axis_name) if tall else x.shape[-1]
    segments = _segments(schedule, form, y.shape[-2], long)
    restarts = len(segments) < len(schedule)
    for rows in segments:
        y = y.astype(operand)
        gram = gram_of(y) if gram is None else gram
        if restarts:
            factor, matrix = _polynomial(rows, symmetric(gram), matmul)
        else:
            factor, matrix = _polynomial(rows, gram, product)
        y = factor * y.astype(wide) + product(matrix, y)
        gram = None
    return (y.mT if tall else y).astype(x.dtype)


def _polynomial(
    rows: Schedule, gram: Array, product: Callable[[Array, Array], Array]
) -> tuple[float, Array]:
    """The polynomial of the rows as `factor·I + matrix`, of the Gram matrix `gram`.

    The multiple of I is kept apart, so that a narrow dtype of the long products does
    not round it.
    """
    factor, matrix = 1.0, jnp.zeros_like(gram)
    for index, (a, b, c) in enumerate(rows):
        z = b * gram + c * product(gram, gram) if c else b * gram
        matrix = factor * z + a * matrix + product(matrix, z) if index else z
        factor *= a
        if index + 1 < len(rows):
            # `gram` becomes p·gram·p for the row's p = a·I + z; all of them commute.
            t = a * gram + product(gram, z)
            gram = symmetric(a * t + product(z, t))
    return factor, matrix


def _segments(
    schedule: Schedule, form: str, short: int, long: int
) -> tuple[Schedule, ...]:
    """Rows between two Gram products of the long side: one each in the direct form."""
    direct = tuple((row,) for row in schedule)
    if form == "direct":
        return direct
    joined: list[Schedule] = []
    growth = math.inf
    for row in schedule:
        if growth <= _RESTART:
            joined[-1] = (*joined[-1], row)
        else:
            joined.append((row,))
            growth = 1.0
        growth *= row[0] ** 2
    restarted = tuple(joined)
    if form == "gram" or _flops(restarted, short, long) < _flops(direct, short, long):
        return restarted
    return direct


def _flops(segments: tuple[Schedule, ...], short: int, long: int) -> int:
    squares = sum(1 for rows in segments for row in rows if row[2])
    others = 3 * sum(len(rows) - 1 for rows in segments)
    return 4 * short**2 * long * len(segments) + 2 * short**3 * (squares + others)
