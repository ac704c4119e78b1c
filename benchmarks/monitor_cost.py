"""Cost of `mo.monitor`: whole steps with it and without it, interleaved on one core.

    .venv/bin/python benchmarks/monitor_cost.py

prints, for transformer-like trees, the CPU time of ten steps (update and apply,
donated) without a monitor, and the ratios of the same ten steps with one: as it is
(`every=10`, one of the ten is measured), with the counts alone, with all measures but
the counts, and measured at every step. The last columns are the FLOPs of the products
in the compiled program and how much of them a monitor with `every=10` adds.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any

# One core, chosen before JAX starts its threads: times on shared cores are noise.
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import optax
import peers
from stepping import head, interleaved, milliseconds, ratio, row, Step

import manifold_optax as mo
import trees
from manifold_optax.diagnostics import COUNTS, MEASURES

EVERY = 10
# (layers, width); six matrices in each layer.
TREES = ((2, 384), (2, 192), (2, 64))
BASE = "without"
SAMPLED = tuple(n for n in MEASURES if n not in COUNTS and n != "residual")
VARIANTS: dict[str, dict[str, Any]] = {
    "every=10": {"every": EVERY},
    "counts": {"measures": COUNTS},
    "no counts": {"every": EVERY, "measures": SAMPLED},
    "every=1": {"every": 1},
}
ROLES = mo.roles({r"w\w*": "matrix"}, default="other")


def optimizers() -> dict[str, tuple[optax.GradientTransformation, mo.Manifold | None]]:
    """What is watched, and the manifold of the residual."""
    stiefel, sphere = mo.Stiefel(), mo.Sphere("kept")
    return {
        "AdamW": (optax.adamw(peers.RATE), None),
        "muon": (peers.whole_model(mo.muon(0.02)), None),
        "spel": (peers.whole_model(mo.spel(0.02)), stiefel),
        "hyperball": (peers.whole_model(mo.hyperball(0.02, manifold=sphere)), sphere),
        "manifold_muon": (peers.whole_model(mo.manifold_muon(0.02)), stiefel),
    }


def ten(step: Step) -> Callable[[], Any]:
    """Ten steps, of which one is measured."""

    def run() -> Any:
        for _ in range(EVERY - 1):
            jax.block_until_ready(step())
        return step()

    return run


def rows(tree: Any, pairs: int) -> Iterator[str]:
    """The table of one tree."""
    yield from head(
        *("optimizer", "CPU ms, ten steps"),
        *(f"{name}, median [quartiles]" for name in VARIANTS),
        *("GFLOP of ten steps", "added by every=10"),
    )
    for name, (tx, manifold) in optimizers().items():
        params = tree
        if manifold is not None:
            params = jax.jit(mo.project, static_argnums=1, static_argnames="axes")(
                tree, manifold, axes=ROLES
            )
        steps = {BASE: Step(tx, params, tree)}
        for variant, arguments in VARIANTS.items():
            own = dict(arguments)
            if manifold is not None and variant != "counts":
                names = own.get("measures", MEASURES)
                own |= {"manifold": manifold, "measures": tuple({*names, "residual"})}
            steps[variant] = Step(mo.monitor(tx, axes=ROLES, **own), params, tree)
        times = interleaved({k: ten(step) for k, step in steps.items()}, pairs)
        base = mo.programs.dot_flops(steps[BASE].compiled)
        every = mo.programs.dot_flops(steps["every=1"].compiled)
        yield row(
            [
                name,
                milliseconds(times, BASE),
                *(ratio(times, variant, BASE) for variant in VARIANTS),
                f"{EVERY * base / 1e9:.3g}",
                f"{(every - base) / (EVERY * base):.2%}" if base else "–",
            ]
        )


def report(options: argparse.Namespace) -> Iterator[str]:
    """Lines of the tables, as they are found."""
    yield f"jax {jax.__version__}, CPU, one core, {options.pairs} interleaved pairs"
    for layers, width in TREES[1:2] if options.quick else TREES:
        tree = trees.transformer_tree(layers, width)
        yield f"\n{layers} layers of width {width}, {6 * layers} matrices:\n"
        yield from rows(tree, options.pairs)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Cost of the monitor.")
    parser.add_argument("--pairs", type=int, default=20, help="pairs per ratio, ≥ 2")
    parser.add_argument("--quick", action="store_true", help="the middle tree only")
    for line in report(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
