"""QK-clip's rule: the factor for each head's weights."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from manifold_optax.attention._spec import Attention


def logit_factors(
    max_logits: Float[Array, "*batch heads"], threshold: Any
) -> Float[Array, "*batch heads"]:
    """Factor by which each head's logits must shrink.

    It is `threshold / S` where the largest logit `S` exceeds the threshold, and 1
    elsewhere. It is also 1 where `S` is negative, -inf (a head that saw nothing), nan
    or inf (there is no factor for it, and 0 would destroy the head for good), and for a
    traced threshold that is not positive.
    """
    exceeds = jnp.isfinite(max_logits) & (max_logits > threshold) & (threshold > 0)
    # The division is safe where it is not taken; a subnormal quotient would be 0.
    quotient = threshold / jnp.where(exceeds, max_logits, 1.0)
    smallest = jnp.finfo(max_logits.dtype).tiny
    return jnp.where(exceeds, jnp.maximum(quotient, smallest), 1.0)


def side_factors(
    attention: Attention, factors: Float[Array, "*batch heads"], balance: Any
) -> Float[Array, "*batch columns"]:
    """Factors of query heads, key heads and rotary query heads, and a last 1, in a row.

    With `g` the smallest factor γ of the heads that read one key, that key takes
    `g^(1 − balance)` and each query γ / g^(1 − balance): every head's logits shrink by
    exactly its own γ. Where all heads share the queries' leaf (a norm's gain) it takes
    the smallest γ of all to the power of `balance`, and each key what is left.
    """
    heads, all_key_heads, _ = attention.counts
    key_heads = 1 if attention.shares("key") else all_key_heads
    batch = factors.shape[:-1]
    smallest = factors.reshape(*batch, key_heads, heads // key_heads).min(-1)
    if attention.shares("query"):
        query = factors.min(-1, keepdims=True) ** balance
        key = smallest / query
        total = jnp.repeat(smallest, heads // key_heads, axis=-1)
        query = jnp.repeat(query, heads, axis=-1)
    else:
        key = smallest ** (1 - balance)
        total = factors
        query = factors / jnp.repeat(key, heads // key_heads, axis=-1)
    key = jnp.repeat(key, all_key_heads // key_heads, axis=-1)
    return jnp.concatenate([query, key, total, jnp.ones((*batch, 1), query.dtype)], -1)
