"""Optimizer steps and the Stiefel solver on one accelerator, against its peak.

    .venv/bin/python benchmarks/gpu_step.py --table docs/performance.md

prints, and writes where told, these tables:

1. The whole step (update and apply, donated) at the shapes of GPT-2 small and of a
   model of a billion parameters, in float32 and in bfloat16: wall time, share of the
   matmul peak, temporary memory. PyTorch's rows need a CUDA build of it.
2. The Stiefel x spectral solver by size and backend.

`--small` takes small shapes: it shows on any machine, in a minute, that all of it
works.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

# Or JAX takes most of the memory at once, and leaves PyTorch none.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import dot_flops
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
from document import print_all, write_chapter
from stepping import head, row, Step

import trees
from manifold_optax import geometry

CHAPTER = "One accelerator"
TEXT = """\
Update and apply, donated; vectors by Adam. Median wall time of a step over rounds of
several, with quartiles. 'of peak': FLOPs per second of the products over those of one
bfloat16 product in the same process; of float32 rows too, which cannot reach it.
'torch': `torch.optim.Muon` with `torch.optim.AdamW` for the vectors, eager."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Shapes of a transformer's layers."""

    name: str
    layers: int
    width: int

    def tree(self, dtype: Any) -> Any:
        """Parameters of this dtype."""
        return trees.transformer_tree(self.layers, self.width, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is measured."""

    models: tuple[Model, ...]
    solver_shapes: tuple[tuple[int, int], ...]
    peak_size: int
    rounds: int
    steps: int
    """Steps of a round: many, so that the wait at its end does not count."""


FULL = Budget(
    (Model("GPT-2 small", 12, 768), Model("1B", 16, 2048)),
    ((512, 128), (512, 256), (1024, 256), (1024, 512), (2048, 512), (2048, 1024)),
    peak_size=8192,
    rounds=10,
    steps=5,
)
SMALL = Budget((Model("small", 1, 64),), ((128, 64),), peak_size=256, rounds=3, steps=2)
# In the order of the tables: the baseline of a dtype first.
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    peers.OPTAX: lambda: optax.contrib.muon(peers.RATE),
    peers.ADAMW: lambda: optax.adamw(peers.RATE),
    "mo.hybrid(muon)": lambda: peers.whole_model(peers.bf16_muon(dtype=None)),
    "mo.hybrid(muon), bf16 products": lambda: peers.whole_model(peers.bf16_muon()),
    "mo.hybrid(muon), bf16 products, direct form": lambda: peers.whole_model(
        peers.bf16_muon(form="direct")
    ),
}


def rounds_of(
    run: Callable[[], Any], wait: Callable[[Any], Any], budget: Budget
) -> list[float]:
    """Seconds of a step in each round, after a warm-up of one round."""
    seconds = []
    for _ in range(budget.rounds + 1):
        start = time.perf_counter()
        for _ in range(budget.steps - 1):
            run()
        wait(run())
        seconds.append((time.perf_counter() - start) / budget.steps)
    return seconds[1:]


def spread(seconds: list[float]) -> str:
    """Median and quartiles in milliseconds."""
    # Inclusive: the quartiles of a few rounds stay within what was measured.
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive")
    low, middle, high = (1e3 * x for x in quartiles)
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def peak_rate(budget: Budget) -> float:
    """FLOPs per second of one bfloat16 product."""
    size = budget.peak_size
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    seconds = rounds_of(lambda: product(x, x), jax.block_until_ready, budget)
    return 2 * size**3 / statistics.median(seconds)


def step_flops(tx: optax.GradientTransformation, tree: Any) -> int:
    """FLOPs of the products of an update."""
    state = jax.eval_shape(tx.init, tree)
    return dot_flops.dot_flops(tx.update, tree, state, tree)


def jax_rows(model: Model, dtype: Any, peak: float, budget: Budget) -> Iterator[str]:
    """Rows of table 1 of one dtype; only one optimizer is in memory at a time."""
    tree = model.tree(dtype)
    baseline = 0.0
    for name, make in OPTIMIZERS.items():
        tx = make()
        flops = step_flops(tx, tree)
        step = Step(tx, tree, tree)
        seconds = rounds_of(step, jax.block_until_ready, budget)
        median = statistics.median(seconds)
        baseline = baseline or median
        yield row(
            [
                *(model.name, jnp.dtype(dtype).name, name, spread(seconds)),
                *(f"{median / baseline:.3f}", f"{flops / 1e12:.3g}"),
                f"{flops / median / peak:.2f}",
                f"{step.temporary_bytes / 1e9:.2f}",
                f"{step.compile_seconds:.1f}",
            ]
        )
        del step


def torch_row(torch: Any, model: Model, dtype: Any, budget: Budget) -> str:
    """PyTorch's row of table 1, on the same card."""
    tree = jax.tree.map(np.asarray, model.tree(dtype))
    step = peers.TorchStep(torch, tree, tree, device="cuda")
    seconds = rounds_of(step, lambda _: torch.cuda.synchronize(), budget)
    del step
    torch.cuda.empty_cache()
    name = jnp.dtype(dtype).name
    empty = ("–",) * 5
    return row([model.name, name, "torch.optim.Muon", spread(seconds), *empty])


def step_table(torch: Any, peak: float, budget: Budget) -> Iterator[str]:
    """Table 1."""
    yield from head(
        *("model", "parameters", "step", "ms, median [quartiles]"),
        *(f"of {peers.OPTAX}", "TFLOP", "of peak", "temp GB", "compile CPU s"),
    )
    for model in budget.models:
        for dtype in (jnp.float32, jnp.bfloat16):
            yield from jax_rows(model, dtype, peak, budget)
            if torch is not None:
                yield torch_row(torch, model, dtype, budget)


def solver(backend: str, *, certify: bool) -> Any:
    """The compiled solver with its defaults."""
    options = {"certify": certify, "backend": backend}
    return jax.jit(functools.partial(geometry.stiefel_spectral_direction, **options))


def solver_table(budget: Budget) -> Iterator[str]:
    """Table 2."""
    yield from head("size", "backend", "ms, median [quartiles]", "certified gap")
    for m, n in budget.solver_shapes:
        point_key, key = jax.random.split(jax.random.key(m + n))
        point = jnp.linalg.qr(jax.random.normal(point_key, (m, n)))[0]
        gradient = jax.random.normal(key, (m, n))
        for backend in geometry.BACKENDS:
            gap = float(solver(backend, certify=True)(point, gradient).gap)
            fast = solver(backend, certify=False).lower(point, gradient).compile()
            run = lambda go=fast, p=point, g=gradient: go(p, g)
            seconds = rounds_of(run, jax.block_until_ready, budget)
            yield row([f"{m}x{n}", backend, spread(seconds), f"{gap:.0e}"])


def cuda_torch() -> Any:
    """PyTorch where it can use the same card, else None."""
    torch = peers.load_torch()
    if torch is not None and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device: its rows are left out.")
        return None
    return torch


def report(budget: Budget) -> Iterator[str]:
    """Lines of the chapter, as they are found."""
    torch, peak = cuda_torch(), peak_rate(budget)
    device = jax.devices()[0].device_kind
    versions = [f"jax {jax.__version__}", f"optax {optax.__version__}"]
    versions += [] if torch is None else [f"torch {torch.__version__}"]
    yield f"{', '.join(versions)}, {device}. Printed by"
    yield "\n```\n.venv/bin/python benchmarks/gpu_step.py\n```"
    size = budget.peak_size
    yield f"\nA bfloat16 product of {size} x {size}: {peak / 1e12:.3g} TFLOP/s."
    yield f"\n### Whole step\n\n{TEXT}\n"
    yield from step_table(torch, peak, budget)
    yield "\n### Stiefel solver\n\nOne matrix, float32.\n"
    yield from solver_table(budget)


def main() -> None:
    """Prints the chapter and writes it."""
    parser = argparse.ArgumentParser(description="Steps on one accelerator.")
    parser.add_argument("--small", action="store_true", help="small shapes")
    parser.add_argument("--table", type=pathlib.Path, help="Markdown file to write")
    options = parser.parse_args()
    lines = print_all(report(SMALL if options.small else FULL))
    if options.table is not None:
        write_chapter(options.table, "Performance", CHAPTER, lines)


if __name__ == "__main__":
    main()
