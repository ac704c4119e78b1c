"""Temporary."""

import jax.numpy as jnp


def live_norm(x, norm):
    marks = [m for _, m in norm.factors]
    x = jnp.abs(x.astype(jnp.float32)) if not norm.has("i") else x.astype(jnp.float32)
    x = x.reshape([n for n, _ in norm.factors])
    if norm.has("i"):
        order = (
            [k for k, m in enumerate(marks) if m in "bs"]
            + [k for k, m in enumerate(marks) if m == "i"]
            + [k for k, m in enumerate(marks) if m == "o"]
        )
        x = x.transpose(order)
        x = x.reshape(-1, norm.count("i"), norm.count("o"))
        return jnp.max(jnp.linalg.svd(x, compute_uv=False)) * (1 + 1e-5)
    s = tuple(k for k, m in enumerate(marks) if m == "s")
    o = tuple(k for k, m in enumerate(marks) if m == "o")
    x = jnp.sum(x, s, keepdims=True)
    x = jnp.sqrt(jnp.sum(x * x, o, keepdims=True))
    return jnp.max(x, initial=0.0) * (1 + 1e-5)
