"""Parameter trees that the steps are measured on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def transformer_tree(
    layers: int, width: int, *, hidden: int | None = None, dtype: Any = jnp.float32
) -> dict[str, Any]:
    """Per layer: four square matrices, one wide, one tall, and two vectors.

    `hidden` is the inner width of the two last matrices, four widths by default.
    """
    hidden = 4 * width if hidden is None else hidden
    shapes = dict.fromkeys(("wq", "wk", "wv", "wo"), (width, width))
    shapes |= {"w_up": (width, hidden), "w_down": (hidden, width)}
    keys = iter(jax.random.split(jax.random.key(0), 8 * layers))
    return {
        f"layer_{i}": {
            **{k: jax.random.normal(next(keys), s, dtype) for k, s in shapes.items()},
            "scale": jax.random.normal(next(keys), (width,), dtype),
            "bias": jax.random.normal(next(keys), (width,), dtype),
        }
        for i in range(layers)
    }


def tall_tree(count: int, rows: int, columns: int) -> dict[str, Any]:
    """Matrices of one tall shape."""
    keys = jax.random.split(jax.random.key(0), count)
    shape = (rows, columns)
    return {f"w_{i}": jax.random.normal(key, shape) for i, key in enumerate(keys)}


def conditioned_tree(tree: Any, condition: float) -> Any:
    """Matrices of these shapes with singular values from 1 down to 1/condition.

    Evenly spaced in the logarithm. Vectors are returned as they are. float64.
    """
    rng = np.random.default_rng(0)

    def conditioned(leaf: Any) -> Any:
        if leaf.ndim != 2:
            return np.asarray(leaf, np.float64)
        long, short = max(leaf.shape), min(leaf.shape)
        left = np.linalg.qr(rng.standard_normal((long, short)))[0]
        right = np.linalg.qr(rng.standard_normal((short, short)))[0]
        tall = left * np.geomspace(1.0, 1.0 / condition, short) @ right.T
        return tall if leaf.shape == tall.shape else tall.T

    return jax.tree.map(conditioned, tree)
