"""Attention in float64 NumPy, one matrix of logits per head, with its gradient."""

from typing import Any, NamedTuple

import numpy as np


class Attention(NamedTuple):
    output: np.ndarray
    gradient: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Of `sum(output · cotangent)` in query, key and value."""
    largest: np.ndarray


def attention(
    query: Any,
    key: Any,
    value: Any,
    cotangent: Any,
    *,
    bias: Any = 0.0,
    mask: Any = True,
    is_causal: bool = False,
    scale: float | None = None,
    absolute: bool = False,
) -> Attention:
    """All of one batch axis `[batch, length, heads, dim]`."""
    query, key, value, cotangent = (
        np.asarray(x, np.float64) for x in (query, key, value, cotangent)
    )
    batch, q_len, heads, dim = query.shape
    k_len, group = key.shape[1], heads // key.shape[2]
    scale = dim**-0.5 if scale is None else scale
    shape = (batch, heads, q_len, k_len)
    bias = np.broadcast_to(np.asarray(bias, np.float64), shape)
    seen = np.broadcast_to(np.asarray(mask, bool), shape)
    if is_causal:
        seen = seen & (np.arange(k_len) <= np.arange(q_len)[:, None])
    output = np.zeros((batch, q_len, heads, value.shape[-1]))
    gradient = tuple(np.zeros_like(x) for x in (query, key, value))
    largest = np.full(heads, -np.inf)
    for b in range(batch):
        for h in range(heads):
            q, k, v = query[b, :, h], key[b, :, h // group], value[b, :, h // group]
            logits = scale * q @ k.T
            sizes = np.abs(logits) if absolute else logits
            largest[h] = max(largest[h], np.max(sizes[seen[b, h]], initial=-np.inf))
            # Far below every logit of the tests, and finite: a row that sees no key
            # weighs all of them equally.
            logits = np.where(seen[b, h], logits + bias[b, h], -1e30)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            output[b, :, h] = weights @ v
            d_output = cotangent[b, :, h]
            d_weights = d_output @ v.T
            mean = (weights * d_weights).sum(1, keepdims=True)
            d_logits = np.where(seen[b, h], weights * (d_weights - mean), 0)
            gradient[0][b, :, h] = scale * d_logits @ k
            gradient[1][b, :, h // group] += scale * d_logits.T @ q
            gradient[2][b, :, h // group] += weights.T @ d_output
    return Attention(output, gradient, largest)
