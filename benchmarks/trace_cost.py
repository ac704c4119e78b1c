"""What it costs to trace a program for a CPU and for accelerators, not for one alone.

Prints the table of docs/performance.md ("What runs on which device").
"""

import time

import jax
import jax.numpy as jnp
import optax

import manifold_optax as mo

SHAPES = ((128, 64), (256, 128)) * 6
REPEATS = 5


def cost(tx: optax.GradientTransformation, platforms: str) -> tuple[float, int]:
    """Least seconds to trace and lower an update, and its compiled instructions."""
    jax.config.update("jax_platforms", platforms)
    tree = {str(k): jnp.ones(shape) for k, shape in enumerate(SHAPES)}
    like = jax.eval_shape(lambda: tree)
    state = jax.eval_shape(tx.init, like)
    seconds = []
    lowered = None
    for _ in range(REPEATS):
        jax.clear_caches()
        start = time.perf_counter()
        lowered = jax.jit(lambda *arrays: tx.update(*arrays)).lower(like, state, like)
        seconds.append(time.perf_counter() - start)
    assert lowered is not None
    lines = str(lowered.compile().as_text()).splitlines()
    return min(seconds), sum(" = " in line for line in lines)


def main() -> None:
    """Prints the table."""
    jax.devices()
    print("| optimizer | one platform: s / instructions | any platform |")
    print("|---|---|---|")
    for name, tx in (("muon", mo.muon(0.1)), ("manifold_muon", mo.manifold_muon(0.1))):
        found = [cost(tx, platforms) for platforms in ("cpu", "")]
        cells = [f"{seconds:.2f} / {count}" for seconds, count in found]
        print(f"| `mo.{name}` | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
