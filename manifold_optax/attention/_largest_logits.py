"""The largest logit of each head, for attention kernels that do not tell it."""

import jax
from jaxtyping import Array, Bool, Float

from manifold_optax.attention._scores import (
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
