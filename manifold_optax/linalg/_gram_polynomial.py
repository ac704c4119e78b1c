"""Several rows of a schedule as one polynomial of the small Gram matrix."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import Schedule
from manifold_optax.linalg._reductions import symmetric

_FIRST = 150.0
"""Largest growth of a rounding error of the first Gram matrix before a restart.

A row of slope `a` multiplies it by `a²`. The first Gram matrix has the trace 1, and so
the smallest errors: three rows of JORDAN (140) stay within 1.5 times the error of the
direct form (3e-5 in the spectral norm, in float32, for 16 to 256 rows, conditions of 10
to 1e7 and one large singular value); three of YOU (260) are ten times worse.
"""

_LATER = 75.0
"""The same for later ones, of singular values near 1.

Two rows of any schedule, none of which has a steeper one than CANS (`a² = 72`). Three
rows of JORDAN or YOU at the end are five to ten times worse than the direct form.
"""

_SPLIT = 2e5
"""The same where each restart is an all-reduce: five rows of all published schedules.

In float32 their error is 2e-4 for JORDAN, 4e-4 for YOU and 1e-3 for POLAR_EXPRESS
(Frobenius, relative; one singular value ten thousand times the others: 1e-2), far
below the distance of the polynomial from 1; eight rows would err by 7e-2.
"""

_WIDE_COST = 8.0
"""Cost on accelerators of a FLOP at full precision, in FLOPs of the long products.

They run in TF32 or bfloat16 by default: 15 times as many per second on an H200 (data
sheet), 6 on a TPU, where a product at full precision is six of bfloat16.
"""

_WIDE_COST_CPU = 2.0
"""The same on a CPU for narrow operands: 400 against 200 GFLOP/s with avx512_bf16."""


def segments(schedule: Schedule) -> tuple[Schedule, ...]:
    """Rows between two restarts of the Gram form, for a matrix on one device."""
    return _join(schedule, _FIRST, _LATER)


def split_segments(schedule: Schedule, spare: float) -> tuple[Schedule, ...]:
    """The same where rows are split.

    `spare` is the rounding unit of the matrix divided by that of its Gram matrix.
    """
    return _join(schedule, _SPLIT * spare, _SPLIT * spare)


def relative_cost(narrow: bool, *, on_cpu: bool) -> float:
    """Cost of a FLOP of the small products in FLOPs of the long ones."""
    if on_cpu:
        return _WIDE_COST_CPU if narrow else 1.0
    return _WIDE_COST


def flops(
    joined: tuple[Schedule, ...], short: int, long: int, *, small_cost: float = 1.0
) -> float:
    """FLOPs of all rows, with a Gram product of the long side for each of `joined`."""
    squares = sum(1 for rows in joined for row in rows if row[2])
    others = 3 * sum(len(rows) - 1 for rows in joined)
    # In the direct form there are no small products between two long ones.
    small = small_cost if others else 1.0
    return 4 * short**2 * long * len(joined) + small * 2 * short**3 * (squares + others)


def polynomial(
    rows: Schedule,
    gram: Array,
    product: Callable[..., Array],
    *,
    symmetrize: bool = False,
) -> tuple[float, Array]:
    """The polynomial of the rows as `factor·I + matrix`, of the Gram matrix `gram`.

    Args:
        rows: applied one after another.
        gram: symmetric, `[*batch, k, k]`.
        product: `commuting_product`, or the same of other operands.
        symmetrize: whether to remove the skew part that rounding leaves, which grows
            with every row: half the error for five rows, and a transposition for each.
    """
    factor, matrix = 1.0, jnp.zeros_like(gram)
    for index, (a, b, c) in enumerate(rows):
        z = product(gram, gram, gram, alpha=c, beta=b) if c else b * gram
        matrix = product(matrix, z, factor * z + a * matrix) if index else z
        factor *= a
        if index + 1 < len(rows):
            # `gram` becomes p·gram·p for the row's p = a·I + z; all of them commute.
            t = product(gram, z, gram, beta=a)
            gram = product(z, t, t, beta=a)
            gram = symmetric(gram) if symmetrize else gram
    return factor, matrix


def _join(schedule: Schedule, first: float, later: float) -> tuple[Schedule, ...]:
    joined: list[Schedule] = []
    growth = math.inf
    for row in schedule:
        if growth <= (first if len(joined) == 1 else later):
            joined[-1] = (*joined[-1], row)
        else:
            joined.append((row,))
            growth = 1.0
        growth *= row[0] ** 2
    return tuple(joined)
