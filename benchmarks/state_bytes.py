"""Bytes of state per parameter, by optimizer, beside AdamW's.

    .venv/bin/python benchmarks/state_bytes.py --table docs/performance.md

prints a Markdown table, and writes it where told. The bytes are those of the arguments
and of the results of the compiled update, by XLA's `memory_analysis`, less those of
parameters and gradients: what a device holds from step to step.
"""

import argparse
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import optax
from document import print_all, write_chapter
from stepping import head, row

import manifold_optax as mo
import trees

CHAPTER = "Bytes of state"
LAYERS, WIDTH = 1, 256
DTYPES = (None, "bfloat16+int8", "bfloat16", "int8")

TEXT = f"""\
Per parameter of matrices in float32 ({LAYERS} layer of width {WIDTH}), by XLA's
`memory_analysis` of the compiled update: the results without the updates. Momentum in
fewer bytes is `momentum=mo.Average(0.95, dtype=…)`, for every optimizer with momentum.
'temp': what the update holds beside its arguments and results."""


def optimizers() -> Iterator[tuple[str, Any]]:
    """Every optimizer of matrices, with momentum in each dtype."""
    yield "optax.adamw", optax.adamw(0.1)
    yield "optax.contrib.muon", optax.contrib.muon(0.1)
    for preset in (mo.muon, mo.normuon, mo.scion, mo.sign_descent, mo.hyperball):
        for dtype in DTYPES:
            kept = "float32" if dtype is None else dtype
            tx = preset(0.1, momentum=mo.Average(0.95, dtype))
            yield f"mo.{preset.__name__}, {kept}", tx


def table() -> Iterator[str]:
    """The lines of the chapter."""
    yield f"jax {jax.__version__}, optax {optax.__version__}, CPU. Printed by"
    yield "\n```\n.venv/bin/python benchmarks/state_bytes.py\n```\n"
    yield TEXT
    yield ""
    yield from head("optimizer", "bytes of state", "of AdamW's", "temp")
    layers = trees.transformer_tree(LAYERS, WIDTH)
    params = jax.tree.map(lambda x: x if x.ndim == 2 else None, layers)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    adamw = None
    for name, tx in optimizers():
        state = tx.init(params)
        # Optax's own update has no extra arguments; ours ignores them.
        program = jax.jit(tx.update).lower(params, state, params).compile()
        memory: Any = program.memory_analysis()
        updates = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        held = (memory.output_size_in_bytes - updates) / count
        adamw = held if adamw is None else adamw
        temp = memory.temp_size_in_bytes / count
        yield row((f"`{name}`", f"{held:.3f}", f"{held / adamw:.3f}", f"{temp:.1f}"))


def main() -> None:
    """Prints the table, and writes it where told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=pathlib.Path, help="Markdown file to write to")
    arguments = parser.parse_args()
    lines = print_all(table())
    if arguments.table is not None:
        write_chapter(arguments.table, "Performance", CHAPTER, lines)


if __name__ == "__main__":
    main()
