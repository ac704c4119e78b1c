"""Logits of an attention, chunk by chunk of its queries: which count, how large.

The matrix of all logits is quadratic in the length. What stands here sees `chunk` rows
of it at a time, so that memory stays linear.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from manifold_optax._checks import require_flag, require_in_range

Queries: TypeAlias = Float[Array, "*batch q_len heads head_dim"]
Keys: TypeAlias = Float[Array, "*batch k_len key_heads head_dim"]
Grouped: TypeAlias = Float[Array, "*batch key_heads group rows k_len"]

CHUNK = 128
"""Rows of the tiles of matrix units (TPU, tensor cores): fewer would leave them idle,
more only cost memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """How an attention makes its logits, and which of them count.

    It lives for one call: it holds arrays, and is no argument of a jitted function.

    Example:
        >>> attention.Scores(is_causal=True).chunk
        128
    """

    bias: Array | None = None
    """Added to the logits; broadcastable to `[*batch, heads, q_len, k_len]`. It has no
    part in the largest logit, since clipping weights does not scale it."""
    mask: Array | None = None
    """Boolean, True: the key takes part; broadcastable like the bias."""
    is_causal: bool = False
    """Whether query `i` sees only the keys `j ≤ i`, of those that the mask leaves.
    Queries and keys are aligned at their starts, as in JAX and Flax."""
    scale: float | Array | None = None
    """Factor of the products; `None`: `1/√head_dim`."""
    absolute: bool = False
    """Whether the largest logit is that of the moduli."""
    chunk: int = CHUNK
    """How many queries are handled at a time, ≥ 1."""
    precision: jax.lax.PrecisionLike = None
    """Precision of the products; `None`: JAX's default."""

    def __post_init__(self) -> None:
        if isinstance(self.chunk, bool) or not isinstance(self.chunk, int):
            raise TypeError(f"chunk must be a Python int, got {self.chunk!r}.")
        require_in_range("chunk", self.chunk, "[1, inf)")
        require_flag("is_causal", self.is_causal)
        require_flag("absolute", self.absolute)
        if isinstance(self.scale, jax.Array) and self.scale.shape != ():
            raise TypeError(f"scale must be one number, got {self.scale!r}.")
        require_in_range("scale", self.scale, "(-inf, inf)", optional=True)
        if self.bias is not None and not hasattr(self.bias, "dtype"):
            raise TypeError(f"bias must be an array, got {self.bias!r}.")
        if self.bias is not None and not jnp.issubdtype(self.bias.dtype, jnp.floating):
            raise TypeError(
                "bias must be a real floating array, which is added to the logits, got "
                f"{self.bias.dtype}; give a boolean array as the mask."
            )
        if self.mask is not None and getattr(self.mask, "dtype", None) != jnp.bool_:
            raise TypeError(
                "mask must be a boolean array (True: takes part), got "
                f"{getattr(self.mask, 'dtype', type(self.mask).__name__)}; use "
                "mask.astype(bool), or give what is added to the logits as a bias."
            )


class Rows(NamedTuple):
    """A chunk of the queries, and what belongs to its rows of the logits."""

    query: Array
    bias: Array | None
    mask: Array | None
    first: int | Int[Array, ""]
    """Position of its first query."""


def require_heads(query: Array, key: Array, *values: Array) -> None:
    """Raises TypeError or ValueError unless these are the arrays of one attention."""
    arrays = (query, key, *values)
    for name, array in zip(("query", "key", "value"), arrays, strict=False):
        dtype = getattr(array, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} must be a real floating array, got "
                f"{type(array).__name__ if dtype is None else dtype}."
            )
    shapes = f"query {query.shape}, key {key.shape}"
    for value in values:
        shapes += f", value {value.shape}"
    if not 3 <= query.ndim == key.ndim or query.shape[:-3] != key.shape[:-3]:
        raise ValueError(
            "Query, key and value must be [*batch, length, heads, head_dim] with the "
            f"same batch axes, got {shapes}."
        )
    if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        raise ValueError(
            f"The number of query heads must be a multiple of that of key heads: "
            f"{shapes}."
        )
    if query.shape[-1] != key.shape[-1] or not query.shape[-1]:
        raise ValueError(
            f"Queries and keys must have one head_dim, of at least 1: {shapes}."
        )
    if any(value.shape[:-1] != key.shape[:-1] for value in values):
        raise ValueError(
            f"Values must agree with the keys in all axes but the last: {shapes}."
        )


def over_chunks(
    function: Callable[[Rows], Any], query: Queries, key: Keys, scores: Scores
) -> list[Any]:
    """What `function` gives for the chunks of the queries, in order.

    Equally long chunks go through one loop, whose backward pass computes the logits
    again instead of keeping them; their results are stacked, `[chunks, ...]`. The rest,
    or all if one chunk holds it, is `[1, ...]`.
    """
    length, size = query.shape[-3], scores.chunk
    count, rest = divmod(length, size) if length > size else (0, length)
    bias, mask = (_aligned(x, query, key) for x in (scores.bias, scores.mask))
    results = []
    if count:
        # Inputs of the loop have their gradient written once, in place.
        queries, biases = _chunks(query, -3, count, size), None
        if bias is not None and bias.shape[-2] > 1:
            biases = _chunks(bias, -2, count, size)

        def step(_: None, rows: tuple[Array, Array, Array | None]) -> tuple[None, Any]:
            first, own_query, own_bias = rows
            own_bias = bias if biases is None else own_bias
            own_mask = _cut(mask, first, size)
            return None, function(Rows(own_query, own_bias, own_mask, first))

        # Inside a scan XLA cannot merge the second computation with the first.
        step = jax.checkpoint(step, prevent_cse=False)
        firsts = jnp.arange(count) * size
        results.append(jax.lax.scan(step, None, (firsts, queries, biases))[1])
    if rest or not count:
        first = length - rest
        own_bias, own_mask = (_cut(x, first, rest) for x in (bias, mask))
        last = function(Rows(query[..., first:, :, :], own_bias, own_mask, first))
        results.append(jax.tree.map(lambda x: x[None], last))
    return results


def products(rows: Rows, key: Keys, scores: Scores) -> Grouped:
    """`scale · q·k`, at least float32, the heads of one key together."""
    heads, dim = rows.query.shape[-2:]
    shape = (*rows.query.shape[:-2], key.shape[-2], heads // key.shape[-2], dim)
    query, wide = rows.query.reshape(shape), jnp.promote_types(key.dtype, jnp.float32)
    scale = jnp.asarray(dim**-0.5 if scores.scale is None else scores.scale, wide)
    # On the queries, unless they are too short for it. XLA may merge a factor of the
    # logits with the subtraction of their maximum, rounded once: the largest exponent
    # is then not 0 but the rounding error, which overflows for logits beyond 1e9.
    early = query.dtype == wide
    logits = jnp.einsum(
        "...qhgd,...khd->...hgqk",
        query * scale if early else query,
        key,
        precision=scores.precision,
        preferred_element_type=wide,
    )
    return logits if early else logits * scale


def valid(rows: Rows, key: Keys, scores: Scores) -> Bool[Array, "..."] | None:
    """Which logits count, broadcastable to them; `None`: all of them."""
    seen = None
    if rows.mask is not None:
        seen = by_group(rows.mask, key)
    if scores.is_causal:
        positions = rows.first + jnp.arange(rows.query.shape[-3])
        past = jnp.arange(key.shape[-3])[None] <= positions[:, None]
        past = past[(None,) * (key.ndim - 1)]
        seen = past if seen is None else seen & past
    return seen


def by_group(x: Array, key: Keys) -> Array:
    """`[*batch, heads, ...]` as `[*batch, key_heads, group, ...]`; 1 head: `1, 1`."""
    *batch, heads, rows, columns = x.shape
    groups = (1, 1) if heads == 1 else (key.shape[-2], heads // key.shape[-2])
    return x.reshape(*batch, *groups, rows, columns)


def largest(
    logits: Grouped, seen: Array | None, scores: Scores
) -> Float[Array, "*batch heads"]:
    """Largest of the logits that count, without a gradient.

    The batch stays: it may be split over devices, and what crosses it inside the loop
    of chunks would be a message for each of them.
    """
    logits = jax.lax.stop_gradient(logits)
    logits = jnp.abs(logits) if scores.absolute else logits
    if seen is not None:
        logits = jnp.where(seen, logits, -jnp.inf)
    numbers = jnp.max(logits, axis=(-2, -1), initial=-jnp.inf)
    *batch, key_heads, group = numbers.shape
    return numbers.reshape(*batch, key_heads * group)


def over_all(numbers: Sequence[Array]) -> Float[Array, " heads"]:
    """Largest over batch and chunks of `largest`, `[chunks, *batch, heads]` each."""
    stacked = jnp.concatenate(numbers)
    broken = jnp.isnan(stacked)
    # Flags beside the numbers: the maximum over devices drops NaN on some backends.
    both = jnp.stack(
        [jnp.where(broken, -jnp.inf, stacked), broken.astype(stacked.dtype)]
    )
    axes = tuple(range(1, both.ndim - 1))
    highest, flags = jnp.max(both, axis=axes, initial=-jnp.inf)
    return jnp.where(flags > 0, jnp.nan, highest)


def _aligned(x: Array | None, query: Array, key: Array) -> Array | None:
    """`x` with as many axes as the logits `[*batch, heads, q_len, k_len]`."""
    if x is None:
        return None
    if x.ndim > query.ndim:
        raise ValueError(
            f"A mask or bias of shape {x.shape} has more axes than the logits of the "
            f"queries {query.shape}: [*batch, heads, q_len, k_len]."
        )
    x = x.reshape((1,) * (query.ndim - x.ndim) + x.shape)
    logits = (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])
    if any(a not in (1, b) for a, b in zip(x.shape, logits, strict=True)):
        raise ValueError(
            f"A mask or bias of shape {x.shape} does not broadcast to the logits "
            f"[*batch, heads, q_len, k_len], which have the shape {logits}."
        )
    return x


def _chunks(x: Array, axis: int, count: int, size: int) -> Array:
    """The first `count` chunks along `axis` (negative), as a new first axis."""
    x = jax.lax.slice_in_dim(x, 0, count * size, axis=axis % x.ndim)
    shape = (*x.shape[:axis], count, size, *x.shape[axis:][1:])
    return jnp.moveaxis(x.reshape(shape), axis - 1, 0)


def _cut(x: Array | None, first: int | Array, size: int) -> Array | None:
    """The rows of a mask or bias that belong to a chunk; one row belongs to all."""
    if x is None or x.shape[-2] == 1:
        return x
    return jax.lax.dynamic_slice_in_dim(x, first, size, axis=x.ndim - 2)
