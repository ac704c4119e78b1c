"""Ratios of optimizer steps, interleaved in one process on one pinned core.

    .venv/bin/python benchmarks/optimizer_step.py --table docs/performance.md \
        --figure docs/performance.png

prints, and writes where told, these tables:

1. The whole step (update and apply, donated) on transformer-like trees and on tall
   matrices: CPU time against `optax.contrib.muon` and `torch.optim.Muon`, temporary
   memory, FLOPs, products and instructions of the compiled program, and how far the
   directions are from float64.
2. CPU time against the width of the model, which is also the figure.
3. Compile time and instructions against the number of matrices.
4. A training step of the published MLP (3072-128-64-10, batch 1024): manifold Muon
   and the others against AdamW.

`.venv/bin/python -m pip install --group peers` installs what is compared with.
"""

import argparse
import itertools
import os
import pathlib
import statistics
from collections.abc import Iterator
from typing import Any

# One core, chosen before JAX starts its threads: times on shared cores are noise.
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import optax
import peers
import step_figure
from document import print_all, write_chapter
from stepping import (
    head,
    interleaved,
    median_ratio,
    milliseconds,
    ratio,
    row,
    Step,
    update_flops,
)

import manifold_optax as mo
import trees

CHAPTER = "Single device"
# (layers, width) of table 1; tall matrices as in an embedding or a readout.
TREES = ((6, 384), (2, 384))
TALL = (12, 3072, 128)
WIDTHS = (64, 96, 128, 192, 256, 384, 512)
SMALL_WIDTHS = (64, 128)
FIGURE_LAYERS = 2
CONDITION = 1e3
# Layers of six matrices: 6, 24 and 96 of them.
DEPTHS = (1, 4, 16)

STEP_TEXT = f"""\
Update and apply, donated; vectors by Adam. `torch.optim.Muon` is as it ships (products
in bfloat16, in place), with `torch.optim.AdamW` for the vectors, on one thread. 'of
peak': FLOPs per second of the whole step, over those of a float32 product of 1024 x
1024 in the same process. 'dots' are those in the text of the program, loops taken once.
'error': largest relative error of a direction against the same polynomial in float64,
for matrices of these shapes with singular values from 1 to {1 / CONDITION:g}."""
COMPILE_TEXT = "Width 64. CPU seconds to trace, lower and compile, one core."


def optimizers() -> dict[str, optax.GradientTransformation]:
    """The rows of the tables, without PyTorch."""
    return {peers.ADAMW: optax.adamw(peers.RATE), **peers.muons()}


def runs_on(tree: Any, torch: Any) -> dict[str, Any]:
    """A step of every optimizer, PyTorch's included where it is installed."""
    runs: dict[str, Any] = {k: Step(tx, tree, tree) for k, tx in optimizers().items()}
    if torch is not None:
        runs[peers.TORCH] = peers.TorchStep(torch, tree, tree)
    return runs


def matmul_rate(pairs: int, size: int = 1024) -> float:
    """FLOPs per CPU second of a float32 product."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    times = interleaved({"product": lambda: product(x, x)}, pairs)
    return 2 * size**3 / statistics.median(times["product"])


def step_table(tree: Any, torch: Any, pairs: int) -> Iterator[str]:
    """Table 1 for one tree."""
    runs, every = runs_on(tree, torch), optimizers()
    times = interleaved(runs, pairs)
    rate = matmul_rate(pairs)
    # A single layer has all shapes.
    first = dict(itertools.islice(tree.items(), 1))
    hard = trees.conditioned_tree(first, CONDITION)
    errors = peers.errors(torch, peers.muons(), hard)
    yield from head(
        *("step", "CPU ms", f"of {peers.OPTAX}, median [quartiles]"),
        *(f"of {peers.TORCH}", "temp MB", "GFLOP", "of peak"),
        *("dots", "instructions", "error"),
    )
    for name, run in runs.items():
        facts: tuple[object, ...] = ("–", "–", "–", "–", "–")
        if isinstance(run, Step):
            flops = update_flops(every[name], tree)
            share = flops / statistics.median(times[name]) / rate
            temp = f"{run.temporary_bytes / 1e6:.1f}"
            counts = (run.dots, run.instructions)
            facts = (temp, f"{flops / 1e9:.3g}", f"{share:.2f}", *counts)
        error = f"{errors[name]:.1e}" if name in errors else "–"
        ratios = (ratio(times, name, base) for base in (peers.OPTAX, peers.TORCH))
        yield row([name, milliseconds(times, name), *ratios, *facts, error])


def width_times(torch: Any, widths: tuple[int, ...], pairs: int) -> Any:
    """Times of every optimizer at every width."""
    found = {}
    for width in widths:
        tree = trees.transformer_tree(FIGURE_LAYERS, width)
        found[width] = interleaved(runs_on(tree, torch), pairs)
    return found


def width_table(found: Any) -> Iterator[str]:
    """Table 2: median ratios to `optax.contrib.muon`."""
    names = [name for name in next(iter(found.values())) if name != peers.OPTAX]
    yield from head("width", f"{peers.OPTAX}, CPU ms", *names)
    for width, times in found.items():
        ratios = (f"{median_ratio(times, k, peers.OPTAX):.3f}" for k in names)
        yield row([width, milliseconds(times, peers.OPTAX), *ratios])


def compile_table(depths: tuple[int, ...]) -> Iterator[str]:
    """Table 3."""
    every = {
        **optimizers(),
        "mo.hybrid(mo.manifold_muon) f32": peers.whole_model(mo.manifold_muon(0.1)),
    }
    matrices = [6 * layers for layers in depths]
    yield from head(
        "step",
        *(f"{count} matrices: s / instructions" for count in matrices),
        f"instructions per matrix, {matrices[-2]} to {matrices[-1]}",
        "of AdamW's",
    )
    slopes: dict[str, float] = {}
    for name, tx in every.items():
        cells, counts = [], []
        for layers in depths:
            tree = trees.transformer_tree(layers, 64)
            step = Step(tx, tree, tree)
            counts.append(step.instructions)
            cells.append(f"{step.compile_seconds:.1f} / {counts[-1]}")
        slopes[name] = (counts[-1] - counts[-2]) / (matrices[-1] - matrices[-2])
        share = slopes[name] / slopes[peers.ADAMW]
        yield row([name, *cells, f"{slopes[name]:.0f}", f"{share:.2f}"])


def mlp_table(pairs: int) -> Iterator[str]:
    """Table 4."""
    sizes, batch = (3072, 128, 64, 10), 1024
    keys = jax.random.split(jax.random.key(0), len(sizes) + 1)
    params = {
        f"w{i}": jax.random.uniform(keys[i], (m, n), minval=-1, maxval=1) / m**0.5
        for i, (m, n) in enumerate(itertools.pairwise(sizes))
    }
    images = jax.random.normal(keys[-1], (batch, sizes[0]))
    labels = jax.random.randint(keys[-2], (batch,), 0, sizes[-1])

    def loss(params: Any) -> Any:
        x = images
        for i in range(len(sizes) - 1):
            x = x @ params[f"w{i}"]
            x = jax.nn.relu(x) if i < len(sizes) - 2 else x
        return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()

    trained = {
        "AdamW": (optax.adamw(3e-3, weight_decay=0.1), mo.Euclidean()),
        "Muon": (mo.muon(0.02), mo.Euclidean()),
        "hyperspherical": (mo.hyperspherical_descent(0.2), mo.Sphere()),
        "manifold Muon": (mo.manifold_muon(0.1), mo.Stiefel()),
    }
    runs = {}
    for name, (tx, manifold) in trained.items():

        def step(params: Any, state: Any, tx: Any = tx) -> Any:
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        start = mo.project(params, manifold)
        state = tx.init(start)
        compiled = jax.jit(step).lower(start, state).compile()
        runs[name] = lambda go=compiled, p=start, s=state: go(p, s)
    times = interleaved(runs, pairs)
    yield from head("step", "CPU ms", "ratio to AdamW, median [quartiles]")
    for name in trained:
        yield row([name, milliseconds(times, name), ratio(times, name, "AdamW")])


def report(options: argparse.Namespace) -> Iterator[str]:
    """Lines of the chapter, as they are found."""
    torch, pairs = peers.load_torch(), options.pairs
    versions = [f"jax {jax.__version__}", f"optax {optax.__version__}"]
    versions += [] if torch is None else [f"torch {torch.__version__}"]
    yield f"{', '.join(versions)}, CPU, one core, {pairs} interleaved pairs. Printed by"
    yield "\n```\n.venv/bin/python benchmarks/optimizer_step.py\n```"
    if options.figure is not None:
        yield f"\n![Cost of a step against the width]({options.figure.name})"
    yield f"\n### Whole step\n\n{STEP_TEXT}"
    for layers, width in TREES[1:] if options.quick else TREES:
        yield f"\n{layers} layers of width {width}, {6 * layers} matrices:\n"
        yield from step_table(trees.transformer_tree(layers, width), torch, pairs)
    count, m, n = TALL
    yield f"\n{count} matrices of {m} x {n}:\n"
    yield from step_table(trees.tall_tree(count, m, n), torch, pairs)
    yield f"\n### Width\n\n{FIGURE_LAYERS} layers; medians, {peers.OPTAX} is 1.\n"
    found = width_times(torch, SMALL_WIDTHS if options.quick else WIDTHS, pairs)
    yield from width_table(found)
    if options.figure is not None:
        step_figure.write_figure(options.figure, found)
    yield f"\n### Compilation\n\n{COMPILE_TEXT}\n"
    yield from compile_table(DEPTHS[:2] if options.quick else DEPTHS)
    yield "\n### Training step of an MLP\n\n3072-128-64-10, batch 1024.\n"
    yield from mlp_table(pairs)


def main() -> None:
    """Prints the chapter and writes it."""
    parser = argparse.ArgumentParser(description="Ratios of optimizer steps.")
    parser.add_argument("--pairs", type=int, default=20, help="pairs per ratio, ≥ 2")
    parser.add_argument("--quick", action="store_true", help="the small cases only")
    parser.add_argument("--figure", type=pathlib.Path, help="PNG to write")
    parser.add_argument("--table", type=pathlib.Path, help="Markdown file to write")
    options = parser.parse_args()
    lines = print_all(report(options))
    if options.table is not None:
        write_chapter(options.table, "Performance", CHAPTER, lines)


if __name__ == "__main__":
    main()
