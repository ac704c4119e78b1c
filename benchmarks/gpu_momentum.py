"""Muon with momentum in four, three, two bytes and one: time of a step, state."""

import dataclasses
import statistics
from collections.abc import Iterator
from typing import Any

import jax
from gpu_timing import Deadline, held_bytes, rounds_of, spread
from stepping import head, row, Step

import manifold_optax as mo
import trees

TITLE = "Momentum in fewer bytes"

TEXT = """\
`mo.muon(0.02, momentum=mo.Average(0.95, dtype=…))` on the matrices of the model, update
and apply, donated, at JAX's default matmul precision. 'state': what the optimizer keeps
from step to step. 'held': arguments, results and temporaries of the step, by XLA's
`memory_analysis`."""

DTYPES = (None, "bfloat16+int8", "bfloat16", "int8")


@dataclasses.dataclass(frozen=True)
class MomentumBudget:
    """Which matrices are measured, and for how long."""

    layers: int
    width: int
    seconds: float
    """Of the whole table."""
    measure: float
    """Of one median."""


def table(budget: MomentumBudget) -> Iterator[str]:
    """The table."""
    tree = trees.transformer_tree(budget.layers, budget.width)
    matrices = jax.tree.map(lambda x: x if x.ndim == 2 else None, tree)
    count = sum(leaf.size for leaf in jax.tree.leaves(matrices))
    yield f"{budget.layers} layers of width {budget.width}, {count / 1e6:.3g} M.\n"
    yield from head(
        *("momentum", "ms, median [quartiles]", "of float32", "state MB"),
        *("bytes per parameter", "held MB"),
    )
    deadline, baseline = Deadline(budget.seconds), []
    for dtype in DTYPES:
        name = dtype or "float32"

        def rows(name: str = name, dtype: Any = dtype) -> Iterator[str]:
            tx = mo.muon(0.02, momentum=mo.Average(0.95, dtype))
            step = Step(tx, matrices, matrices)
            state = sum(leaf.nbytes for leaf in jax.tree.leaves(step.state))
            seconds = rounds_of(step, seconds=budget.measure)
            baseline.append(statistics.median(seconds))
            ratio = baseline[-1] / baseline[0]
            yield row(
                [
                    *(f"`{name}`", spread(seconds), f"{ratio:.2f}"),
                    *(f"{state / 1e6:.3g}", f"{state / count:.3f}"),
                    f"{held_bytes(step.compiled) / 1e6:.3g}",
                ]
            )

        yield from deadline.rows(name, rows)
