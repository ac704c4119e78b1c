"""Attention that also returns the largest logit of each head, and that logit alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from manifold_optax._checks import require_in_range, require_instance
from manifold_optax.attention._scores import (
    by_group,
    CHUNK,
    Keys,
    largest,
    over_all,
    over_chunks,
    products,
    Queries,
    require_heads,
    Rows,
    Scores,
    valid,
)


class Dropout(NamedTuple):
    """Which part of the attention weights is set to zero, in training."""

    rng: Array
    """Random key."""
    rate: float
    """Share of the weights, in [0, 1); the others are divided by `1 - rate`."""
    shared: bool = True
    """Whether all heads and all of the batch lose the same ones, as in Flax."""


def dot_product_attention(
    query: Queries,
    key: Keys,
    value: Float[Array, "*batch k_len key_heads value_dim"],
    *,
    mask: Bool[Array, "..."] | None = None,
    is_causal: bool = False,
    scale: float | Array | None = None,
    absolute: bool = False,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "*batch q_len heads value_dim"], Float[Array, " heads"]]:
    """Softmax attention, and the largest logit of each head for `qk_clip`.

    The output and its gradient are those of `jax.nn.dot_product_attention`. The logits
    are computed once for both, a chunk of queries at a time, and again in the backward
    pass; the matrix of all of them never exists. With a bias, dropout or a precision:
    `attend`.

    Args:
        query: `[*batch, q_len, heads, head_dim]`, real floating.
        key: `[*batch, k_len, key_heads, head_dim]`; `key_heads` divides `heads`, and
            query head `h` reads key head `h // (heads // key_heads)`: multi-head,
            grouped-query and multi-query attention.
        value: `[*batch, k_len, key_heads, value_dim]`; `value_dim` need not be
            `head_dim` (latent attention).
        mask: boolean, True: the key takes part; broadcastable to
            `[*batch, heads, q_len, k_len]`.
        is_causal: whether query `i` sees only the keys `j ≤ i`. Queries and keys are
            aligned at their starts, as in JAX and Flax.
        scale: factor of the products `q·k`; `None`: `1/√head_dim`.
        absolute: whether to take the largest modulus instead of the largest logit.
        chunk: how many queries are handled at a time, ≥ 1.

    Returns:
        The output `[*batch, q_len, heads, value_dim]` in the dtype of the values, and
        the largest logits `[heads]`, at least float32 and without a gradient: over
        batch, queries and the keys that they see. A query that sees no key gets the
        mean of all values, as in JAX; a head without any key to see has -inf; a NaN
        among its logits makes its largest NaN. The softmax is taken in at least
        float32.

    Raises:
        ValueError: for shapes that do not belong together, and for `chunk < 1`.
        TypeError: for a mask that is not boolean.

    Cost: `2·heads·q_len·k_len·(head_dim + value_dim)` FLOPs per element of the batch,
    in the backward pass 2.5 times as much; memory for `heads·chunk·k_len` logits.

    Example:
        >>> x = 4 * jnp.eye(4)[:, None]
        >>> _, max_logits = attention.dot_product_attention(x, x, x, is_causal=True)
        >>> max_logits
        Array([8.], dtype=float32)

    Source: M. N. Rabe and C. Staats, "Self-attention Does Not Need O(n²) Memory"
    (arXiv 2112.05682, 2021), the chunks of queries; Kimi Team, "Kimi K2" (arXiv
    2507.20534, 2025), the largest logit.
    """
    scores = Scores(
        mask=mask, is_causal=is_causal, scale=scale, absolute=absolute, chunk=chunk
    )
    return attend(query, key, value, scores)


def attend(
    query: Queries,
    key: Keys,
    value: Float[Array, "*batch k_len key_heads value_dim"],
    scores: Scores,
    *,
    dropout: Dropout | None = None,
) -> tuple[Float[Array, "*batch q_len heads value_dim"], Float[Array, " heads"]]:
    """`dot_product_attention` with all that can be said of the logits, and dropout.

    Args:
        query: `[*batch, q_len, heads, head_dim]`, real floating.
        key: `[*batch, k_len, key_heads, head_dim]`.
        value: `[*batch, k_len, key_heads, value_dim]`.
        scores: bias, mask, causality, scale, precision; what the largest logit is.
        dropout: of the weights; `None`: none. Each chunk draws its own bits, with its
            number folded into the key.

    Returns:
        What `dot_product_attention` does. The largest logits are those before bias and
        dropout.

    Raises:
        ValueError: for shapes that do not belong together, and for a rate of dropout
            outside [0, 1).

    Example:
        >>> x = 4 * jnp.eye(4)[:, None]
        >>> later = jnp.tri(4) - 1
        >>> _, max_logits = attention.attend(x, x, x, attention.Scores(bias=later))
        >>> max_logits
        Array([8.], dtype=float32)
    """
    require_heads(query, key, value)
    require_instance("scores", scores, Scores)
    if dropout is not None:
        require_instance("dropout", dropout, Dropout)
        require_in_range("the rate of dropout", dropout.rate, "[0, 1)")

    def outputs(rows: Rows) -> tuple[Array, Array]:
        logits, seen = products(rows, key, scores), valid(rows, key, scores)
        max_logits = largest(logits, seen, scores)
        if rows.bias is not None:
            logits = (logits + by_group(rows.bias, key)).astype(logits.dtype)
        if seen is not None:
            # Finite: the softmax of a row that sees no key is then uniform, as that of
            # jax.nn.dot_product_attention, and not 0/0.
            logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min / 2)
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        if dropout is not None:
            number = rows.first // scores.chunk
            weights = _dropped(weights, dropout, number)
        output = jnp.einsum(
            "...hgqk,...khd->...qhgd", weights, value, precision=scores.precision
        )
        shape = (*rows.query.shape[:-1], value.shape[-1])
        return output.reshape(shape), max_logits

    pieces = over_chunks(outputs, query, key, scores)
    output = jnp.concatenate([_joined(stacked) for stacked, _ in pieces], axis=-3)
    return output, over_all([numbers for _, numbers in pieces])


def largest_logits(
    query: Queries,
    key: Keys,
    *,
    mask: Bool[Array, "..."] | None = None,
    is_causal: bool = False,
    scale: float | Array | None = None,
    absolute: bool = False,
    chunk: int = CHUNK,
) -> Float[Array, " heads"]:
    """The largest attention logit of each head, for `qk_clip`.

    For attention kernels that do not tell it (flash attention, cuDNN): it costs their
    first product once more, and no backward pass. Give it what the kernel gets: queries
    and keys after norms and rotary embedding. `dot_product_attention` has it for
    nothing.

    Args:
        query: `[*batch, q_len, heads, head_dim]`, real floating.
        key: `[*batch, k_len, key_heads, head_dim]`; `key_heads` divides `heads`.
        mask: boolean, True: the key takes part; broadcastable to
            `[*batch, heads, q_len, k_len]`. Without padding and documents masked as in
            the kernel, the statistic is that of logits that it never forms.
        is_causal: whether query `i` sees only the keys `j ≤ i`, aligned at the starts.
        scale: factor of the products `q·k`; `None`: `1/√head_dim`.
        absolute: whether to take the largest modulus instead of the largest logit.
        chunk: how many queries are handled at a time, ≥ 1.

    Returns:
        `[heads]`, at least float32, without a gradient: the largest of `scale·q·k` over
        batch, queries and the keys that they see. -inf for a head without any key to
        see; a NaN among its logits makes it NaN.

    Raises:
        ValueError: for shapes that do not belong together, and for `chunk < 1`.
        TypeError: for a mask that is not boolean.

    Cost: `2·heads·q_len·k_len·head_dim` FLOPs per element of the batch; memory for
    `heads·chunk·k_len` logits.

    Example:
        >>> x = 4 * jnp.eye(4)[:, None]
        >>> attention.largest_logits(x, -x, is_causal=True)
        Array([0.], dtype=float32)
        >>> attention.largest_logits(x, -x, is_causal=True, absolute=True)
        Array([8.], dtype=float32)

    Source: Kimi Team, "Kimi K2" (arXiv 2507.20534, 2025), section 2.1.
    """
    require_heads(query, key)
    query, key = jax.lax.stop_gradient((query, key))
    scores = Scores(
        mask=mask,
        is_causal=is_causal,
        scale=scale,
        absolute=absolute,
        chunk=chunk,
        # The number decides about weights; bfloat16 products are exact in float32.
        precision=jax.lax.Precision.HIGHEST,
    )

    def largest_of(rows: Rows) -> Array:
        return largest(products(rows, key, scores), valid(rows, key, scores), scores)

    return over_all(over_chunks(largest_of, query, key, scores))


def _dropped(weights: Array, dropout: Dropout, number: int | Array) -> Array:
    """The weights `[*batch, key_heads, group, rows, k_len]` of one chunk, thinned."""
    shape = weights.shape
    if dropout.shared:
        shape = (1,) * (weights.ndim - 2) + shape[-2:]
    kept = 1 - dropout.rate
    bits = jax.random.bernoulli(jax.random.fold_in(dropout.rng, number), kept, shape)
    return jnp.where(bits, weights / kept, 0).astype(weights.dtype)


def _joined(stacked: Array) -> Array:
    """Chunks `[chunks, *batch, rows, heads, dim]` one after the other."""
    *batch, count, rows, heads, dim = jnp.moveaxis(stacked, 0, -4).shape
    return jnp.moveaxis(stacked, 0, -4).reshape(*batch, count * rows, heads, dim)
