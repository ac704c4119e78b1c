"""Ratios of optimizer steps, interleaved in one process on one pinned core.

    .venv/bin/python benchmarks/optimizer_step.py

prints three tables:

1. The whole step (update and apply) of `hybrid(muon)` against `optax.contrib.muon`, the
   same mathematics, on a transformer-like tree of 6 layers of width 384: ratio of CPU
   times, temporary memory, dot products in the compiled program.
2. Compiled instructions per extra matrix against AdamW's.
3. A training step of the published MLP (3072-128-64-10, batch 1024): manifold Muon
   and the others against AdamW.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# One core, chosen before JAX starts its threads: times on shared cores are noise.
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import optax

import manifold_optax as mo

Step = Callable[..., Any]


def transformer_tree(layers: int, width: int) -> dict[str, Any]:
    """Per layer: four square matrices, one wide, one tall, and two vectors."""
    shapes = dict.fromkeys(("wq", "wk", "wv", "wo"), (width, width))
    shapes |= {"w_up": (width, 4 * width), "w_down": (4 * width, width)}
    keys = iter(jax.random.split(jax.random.key(0), 8 * layers))
    return {
        f"layer_{i}": {
            **{k: jax.random.normal(next(keys), s) for k, s in shapes.items()},
            "scale": jax.random.normal(next(keys), (width,)),
            "bias": jax.random.normal(next(keys), (width,)),
        }
        for i in range(layers)
    }


def compiled_step(tx: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """Compiled `(params, state, gradients) -> (params, state)` and its first state."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    return jax.jit(step).lower(params, state, params).compile(), state


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - start


def interleaved(
    runs: dict[str, Callable[[], Any]], pairs: int
) -> dict[str, list[float]]:
    """CPU seconds of each run, measured in turn `pairs` times after a warm-up."""
    for run in runs.values():
        cpu_seconds(run)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(pairs):
        for name, run in runs.items():
            times[name].append(cpu_seconds(run))
    return times


def ratio(times: dict[str, list[float]], name: str, baseline: str) -> str:
    """Median and quartiles of the ratios of the pairs."""
    ratios = [a / b for a, b in zip(times[name], times[baseline], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def instructions(compiled: Any) -> int:
    """Number of instructions of a compiled program."""
    return sum(" = " in line for line in compiled.as_text().splitlines())


def muon_like_optax() -> optax.GradientTransformation:
    """`hybrid` with the vectors treated as `optax.contrib.muon` treats them."""
    others = optax.adamw(0.02, weight_decay=0.0, nesterov=True)
    return mo.hybrid(mo.muon(0.02), others=others)


def whole_step(pairs: int, layers: int = 6, width: int = 384) -> None:
    """Table 1."""
    params = transformer_tree(layers, width)
    optimizers = {
        "optax.contrib.muon": optax.contrib.muon(0.02),
        "mo.hybrid(mo.muon)": muon_like_optax(),
        "optax.adamw": optax.adamw(0.02),
    }
    runs, facts = {}, {}
    for name, tx in optimizers.items():
        step, state = compiled_step(tx, params)
        runs[name] = lambda step=step, state=state: step(params, state, params)
        text = step.as_text()
        temp = step.memory_analysis().temp_size_in_bytes / 1e6
        facts[name] = (f"{temp:.0f}", text.count(" dot("), instructions(step))
    times = interleaved(runs, pairs)
    print(f"\n{layers} layers, width {width}, {pairs} interleaved pairs")
    print(
        "| step | CPU ms | ratio, median [quartiles] | temp MB | dots | instructions |"
    )
    print("|---|---|---|---|---|---|")
    for name in optimizers:
        median = statistics.median(times[name]) * 1e3
        temp, dots, count = facts[name]
        against = ratio(times, name, "optax.contrib.muon")
        print(f"| {name} | {median:.0f} | {against} | {temp} | {dots} | {count} |")


def compile_growth() -> None:
    """Table 2."""
    optimizers = {
        "optax.adamw": optax.adamw(0.02),
        "mo.hybrid(mo.muon)": muon_like_optax(),
        "mo.hybrid(mo.manifold_muon)": mo.hybrid(mo.manifold_muon(0.1)),
        "optax.contrib.muon": optax.contrib.muon(0.02),
    }
    print("\ncompiled instructions by number of matrices, width 64")
    print("| step | 24 | 48 | per extra matrix | of AdamW's |")
    print("|---|---|---|---|---|")
    base = 1.0
    for name, tx in optimizers.items():
        counts = [
            instructions(compiled_step(tx, transformer_tree(layers, 64))[0])
            for layers in (4, 8)
        ]
        slope = (counts[1] - counts[0]) / 24
        base = slope if name == "optax.adamw" else base
        print(
            f"| {name} | {counts[0]} | {counts[1]} | {slope:.0f} | {slope / base:.2f} |"
        )


def mlp_step(pairs: int) -> None:
    """Table 3."""
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

    optimizers = {
        "AdamW": (optax.adamw(3e-3, weight_decay=0.1), mo.Euclidean()),
        "Muon": (mo.muon(0.02), mo.Euclidean()),
        "hyperspherical": (mo.hyperspherical_descent(0.2), mo.Sphere()),
        "manifold Muon": (mo.manifold_muon(0.1), mo.Stiefel()),
    }
    runs = {}
    for name, (tx, manifold) in optimizers.items():

        def step(params: Any, state: Any, tx: Any = tx) -> Any:
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        start = mo.project(params, manifold)
        state = tx.init(start)
        compiled = jax.jit(step).lower(start, state).compile()
        runs[name] = lambda go=compiled, p=start, s=state: go(p, s)
    times = interleaved(runs, pairs)
    print(f"\nMLP 3072-128-64-10, batch 1024, {pairs} interleaved pairs")
    print("| step | CPU ms | ratio to AdamW, median [quartiles] |\n|---|---|---|")
    for name in optimizers:
        median = statistics.median(times[name]) * 1e3
        print(f"| {name} | {median:.1f} | {ratio(times, name, 'AdamW')} |")


def main() -> None:
    """Runs all three."""
    parser = argparse.ArgumentParser(description="Ratios of optimizer steps.")
    parser.add_argument("--pairs", type=int, default=20, help="pairs per ratio, ≥ 2")
    pairs = parser.parse_args().pairs
    print(f"jax {jax.__version__}, optax {optax.__version__}, one core")
    whole_step(pairs)
    compile_growth()
    mlp_step(pairs)


if __name__ == "__main__":
    main()
