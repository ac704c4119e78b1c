"""Products in float32, TF32 and bfloat16: what they cost, and how far they are off."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
from gpu_timing import Deadline, rounds_of, spread
from stepping import head, row

import trees

TITLE = "Precision of the products"
CONDITION = 1e3

TEXT = f"""\
Muon's update of one matrix in float32 with singular values from 1 to {1 / CONDITION:g}.
'error': relative error of the direction, in the Frobenius norm, against the same
polynomial in float64 by NumPy. float32 and TF32 are set by
`jax.default_matmul_precision`, 'default' is what JAX does where nothing is set (on
NVIDIA's GPUs TF32, on TPUs bfloat16), bfloat16 is `compute_dtype`. In the Gram form
the small products are at full precision in all of them. A CPU computes the first three
alike."""

# Name, matmul precision of JAX, dtype of the operands.
PRODUCTS: tuple[tuple[str, str | None, Any], ...] = (
    ("float32", "float32", None),
    ("TF32", "tensorfloat32", None),
    ("default", None, None),
    ("bfloat16", None, jnp.bfloat16),
)


@dataclasses.dataclass(frozen=True)
class PrecisionBudget:
    """Which matrix is measured, and for how long."""

    shape: tuple[int, int]
    seconds: float
    """Of the whole table."""
    measure: float
    """Of one median."""


def table(budget: PrecisionBudget) -> Iterator[str]:
    """The table."""
    m, n = budget.shape
    matrix = trees.conditioned_tree({"w": np.zeros(budget.shape)}, CONDITION)["w"]
    yield from head(*("matrix", "products", "form", "ms, median [quartiles]", "error"))
    deadline = Deadline(budget.seconds)
    for form in ("direct", "gram"):
        for name, precision, dtype in PRODUCTS:
            tx = peers.bf16_muon(form=form, dtype=dtype)
            make = functools.partial(_cells, tx, precision, matrix, budget)
            first = (f"{m} x {n}", name, form)
            found = lambda make=make, first=first: [row([*first, *make()])]
            yield from deadline.rows(", ".join(first), found)


def _cells(
    tx: optax.GradientTransformation,
    precision: str | None,
    matrix: Any,
    budget: PrecisionBudget,
) -> tuple[str, str]:
    gradient = jnp.asarray(matrix, jnp.float32)
    state = tx.init(gradient)
    # A function of its own: the precision in force is read when it is traced.
    with jax.default_matmul_precision(precision):
        update = jax.jit(lambda g, s: tx.update(g, s, g))
        compiled = update.lower(gradient, state).compile()
    seconds = rounds_of(lambda: compiled(gradient, state), seconds=budget.measure)
    found = np.asarray(compiled(gradient, state)[0], np.float64)
    error = peers.direction_error([found], [matrix])
    return spread(seconds), f"{error:.1e}"
