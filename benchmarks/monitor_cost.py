"""Cost of `mo.monitor`: training steps with it and without it, interleaved.

    .venv/bin/python benchmarks/monitor_cost.py

prints, for a small transformer-like network, the CPU time of ten training steps without
a monitor (gradient of 2048 tokens, update and apply, donated; one core), the share of
the optimizer in it, and the ratios of the same ten steps with one: as it is
(`every=10`, one of the ten is measured), in groups, with the counts alone, and measured
at every step. The last column is how many FLOPs of products `every=10` adds to the ten
updates, in the compiled programs.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any

# One core, chosen before JAX starts its threads: times on shared cores are noise.
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import optax
import peers
from stepping import head, interleaved, median_ratio, milliseconds, ratio, row

import manifold_optax as mo
import trees
from manifold_optax.diagnostics import COUNTS

EVERY = 10
TOKENS = 2048
# (layers, width); six matrices in each layer.
TREES = ((2, 192), (2, 384))
BASE, UPDATE = "without", "update alone"
ROLES = mo.roles({r"w\w*": "matrix"}, default="other")
VARIANTS: dict[str, dict[str, Any]] = {
    "every=10": {"every": EVERY},
    "every=10, groups": {"every": EVERY, "groups": ROLES},
    "counts": {"measures": COUNTS},
    "every=1": {"every": 1},
}


def loss(params: Any, tokens: Any) -> Any:
    """Products of a transformer without attention's softmax; every matrix is used."""
    h = tokens
    for layer in params.values():
        normal = h / jnp.sqrt(1 + jnp.mean(jnp.square(h), axis=-1, keepdims=True))
        mixed = jnp.tanh(normal @ layer["wq"]) * (normal @ layer["wk"])
        h = h + (mixed + normal @ layer["wv"]) @ layer["wo"]
        inner = jax.nn.relu(h @ layer["w_up"] + 0 * layer["scale"][0])
        h = h + inner @ layer["w_down"] + layer["bias"]
    return jnp.mean(jnp.square(h))


class Training:
    """Ten compiled steps that keep parameters and state."""

    def __init__(self, tx: optax.GradientTransformation, params: Any, tokens: Any):
        def step(params: Any, state: Any, tokens: Any) -> Any:
            gradients = params if tokens is None else jax.grad(loss)(params, tokens)
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        self.state = jax.tree.map(jnp.array, params), jax.jit(tx.init)(params)
        self.tokens = tokens
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*self.state, tokens)
        self.compiled: Any = lowered.compile()

    def __call__(self) -> Any:
        """Ten steps, of which one is measured; the new parameters."""
        for _ in range(EVERY):
            self.state = self.compiled(*self.state, self.tokens)
            jax.block_until_ready(self.state)
        return self.state[0]


def optimizers() -> dict[str, optax.GradientTransformation]:
    """What is watched."""
    return {
        "AdamW": optax.adamw(peers.RATE),
        "hybrid(muon)": peers.whole_model(mo.muon(0.02)),
    }


def flops(tx: optax.GradientTransformation, params: Any) -> int:
    """Products of an update, in the compiled program."""
    return mo.programs.dot_flops(Training(tx, params, None).compiled)


def rows(params: Any, pairs: int) -> Iterator[str]:
    """The table of one network."""
    width = params["layer_0"]["bias"].size
    tokens = jax.random.normal(jax.random.key(1), (TOKENS, width))
    yield from head(
        *("optimizer", "CPU ms, ten steps", "update alone, of it"),
        *(f"{name}, median [quartiles]" for name in VARIANTS),
        "FLOPs added to the updates",
    )
    for name, tx in optimizers().items():
        watched = {k: mo.monitor(tx, axes=ROLES, **v) for k, v in VARIANTS.items()}
        runs: dict[str, Callable[[], Any]] = {
            BASE: Training(tx, params, tokens),
            UPDATE: Training(tx, params, None),
        }
        runs |= {k: Training(own, params, tokens) for k, own in watched.items()}
        times = interleaved(runs, pairs)
        base, every = flops(tx, params), flops(watched["every=1"], params)
        yield row(
            [
                name,
                milliseconds(times, BASE),
                f"{median_ratio(times, UPDATE, BASE):.2f}",
                *(ratio(times, variant, BASE) for variant in VARIANTS),
                f"{(every - base) / (EVERY * base):.2%}" if base else "–",
            ]
        )


def report(options: argparse.Namespace) -> Iterator[str]:
    """Lines of the tables, as they are found."""
    yield f"jax {jax.__version__}, CPU, one core, {options.pairs} interleaved pairs"
    for layers, width in TREES[:1] if options.quick else TREES:
        tree = trees.transformer_tree(layers, width)
        # Of the size of usual starts, so that nothing overflows.
        params = jax.tree.map(lambda x: x / x.shape[0] ** 0.5, tree)
        yield f"\n{layers} layers of width {width}, {6 * layers} matrices:\n"
        yield from rows(params, options.pairs)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Cost of the monitor.")
    parser.add_argument("--pairs", type=int, default=20, help="pairs per ratio, ≥ 2")
    parser.add_argument("--quick", action="store_true", help="the small network only")
    for line in report(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
