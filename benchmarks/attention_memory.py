"""Memory and time of attention that tells its largest logits, beside Flax's.

    .venv/bin/python benchmarks/attention_memory.py

prints a table by sequence length: the temporary memory of the compiled program, read
from XLA, and the CPU time of one call, interleaved in one process on one pinned core.
A call is an output with its gradient in query, key and value, causal, of one batch
element with 4 heads of width 32; `largest_logits` is the statistic alone.
"""

import os
from collections.abc import Callable
from typing import Any

# One core, chosen before JAX starts its threads: times on shared cores are noise.
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
from document import print_all
from flax import nnx
from stepping import head, interleaved, milliseconds, ratio, row

from manifold_optax import attention

LENGTHS = (512, 1024, 2048, 4096)
HEADS, WIDTH = 4, 32
PAIRS = 5
OURS = "dot_product_attention"
FLAX = "nnx.dot_product_attention"
STATISTIC = "largest_logits"
MEBIBYTE = 2**20


def main() -> None:
    """Prints the table."""
    lines = head(
        "length", "function", "temporary MiB", "CPU ms", f"time against {FLAX}"
    )
    for length in LENGTHS:
        shape = (1, length, HEADS, WIDTH)
        keys = jax.random.split(jax.random.key(0), 3)
        arrays = [jax.random.normal(key, shape) for key in keys]
        programs = {
            OURS: with_gradient(ours).lower(*arrays).compile(),
            FLAX: with_gradient(flax).lower(*arrays).compile(),
            STATISTIC: jax.jit(statistic).lower(*arrays).compile(),
        }
        times = interleaved(
            {name: bound(program, arrays) for name, program in programs.items()}, PAIRS
        )
        for name, program in programs.items():
            memory = program.memory_analysis().temp_size_in_bytes / MEBIBYTE
            cells = (milliseconds(times, name), ratio(times, name, FLAX))
            lines.append(row((length, f"`{name}`", f"{memory:.1f}", *cells)))
    print_all(lines)


def ours(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[Any, Any]:
    """Output and largest logits, for the model and for the optimizer."""
    return attention.dot_product_attention(query, key, value, is_causal=True)


def flax(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[Any, Any]:
    """Output, and no statistic."""
    return nnx.dot_product_attention(query, key, value, is_causal=True), ()


def statistic(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """The largest logits alone, for another kernel."""
    del value
    return attention.largest_logits(query, key, is_causal=True)


def with_gradient(function: Callable[..., tuple[Any, Any]]) -> Any:
    """A jitted function to the loss, the statistic and the gradient."""

    def loss(*arrays: jax.Array) -> tuple[jax.Array, Any]:
        output, largest = function(*arrays)
        return jnp.sum(output**2), largest

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def bound(program: Any, arrays: list[jax.Array]) -> Callable[[], Any]:
    """A call of the compiled program."""
    return lambda: program(*arrays)


if __name__ == "__main__":
    main()
