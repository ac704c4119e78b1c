"""Temporary: bounds of a perceptron until `mo.modular` has them; to be deleted."""

from typing import Any

import jax.numpy as jnp


def _norm(kernel: Any) -> Any:
    return jnp.linalg.norm(kernel, 2) * (1 + 1e-5)


def lipschitz_bound(function: Any, params: Any, *inputs: Any) -> Any:
    del function, inputs
    product = jnp.float32(1)
    for kernel in params["kernels"]:
        product = product * _norm(kernel)
    return product


def certified_radius(function: Any, params: Any, x: Any, labels: Any) -> Any:
    logits = function(params, x)
    *hidden, last = params["kernels"]
    inner = jnp.float32(1)
    for kernel in hidden:
        inner = inner * _norm(kernel)
    apart = jnp.linalg.norm(last[:, :, None] - last[:, None, :], axis=0)
    rows = jnp.arange(len(labels))
    gaps = logits[rows, labels][:, None] - logits
    radii = gaps / (inner * jnp.where(apart > 0, apart, 1)[labels])
    radii = radii.at[rows, labels].set(jnp.inf)
    return jnp.maximum(radii.min(1), 0)


def change_bound(function: Any, params: Any, updates: Any, *inputs: Any) -> Any:
    del function
    if "kernels" not in params:
        return jnp.inf
    size, change = jnp.sqrt(inputs[0].shape[-1] / 4.0), jnp.float32(0)
    bias, turn = jnp.linalg.norm(params["bias"]), jnp.linalg.norm(updates["bias"])
    pairs = list(zip(params["kernels"], updates["kernels"], strict=True))
    for number, (kernel, update) in enumerate(pairs):
        sigma, delta = _norm(kernel), _norm(update)
        change = sigma * change + delta * (size + change)
        size = sigma * size
        if number == 0:
            change, size = change + turn, size + bias
    return change
