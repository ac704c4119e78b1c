"""Flax nnx: attention layers that tell their largest logits, and how to gather them.

    from manifold_optax.integrations.flax import attention_fn, gather

    layer = nnx.MultiHeadAttention(..., attention_fn=attention_fn())
    # in the model: layer(x, mask=mask, sow_weights=True)

    def loss_fn(model, batch):
        loss, sown = nnx.capture(loss_of, nnx.Intermediate)(model, batch)
        return loss, sown

    (_, sown), gradients = nnx.value_and_grad(loss_fn, has_aux=True)(model, batch)
    optimizer.update(model, gradients, max_logits=gather(sown))

Older Flax has no `nnx.capture`: there the layers sow into the model, and
`gather(model)` takes it out again after the gradient.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jaxtyping import Array

from manifold_optax._checks import require_one_of
from manifold_optax._typing import AxisName
from manifold_optax.attention import attend, Dropout, Scores
from manifold_optax.trees import leaf_path

NAME = "max_logits"
"""Name under which `attention_fn` leaves the largest logits."""

module_list: Callable[[Iterable[nnx.Module]], Any] = getattr(nnx, "List", list)
"""Holds the layers of a module: `nnx.List`; Flax 0.11 has plain lists for it."""


def attention_fn(*, absolute: bool = False, chunk: int = 128) -> Callable[..., Array]:
    """Returns an `attention_fn` for `nnx.MultiHeadAttention` that records its logits.

    It computes what `nnx.dot_product_attention` computes. Flax hands it the module only
    when that is called with `sow_weights=True`: it then sows the largest logit of each
    head, an `nnx.Intermediate` called `max_logits` of shape `[heads]`, and never the
    weights themselves. A module that is called several times, or computed again by
    `nnx.remat`, keeps the largest. Under `nnx.scan` over layers: `[layers, heads]`.

    Dropout has Flax's law, but draws other bits: those of each chunk of queries. As
    with everything that Flax sows, do not call the layer under `jax.vmap` over the
    batch: give it the batch.

    Args:
        absolute: whether to take the largest modulus instead of the largest logit.
        chunk: how many queries are handled at a time, ≥ 1.

    Returns:
        A function with the signature of `nnx.dot_product_attention`.

    Example:
        >>> from flax import nnx
        >>> layer = nnx.MultiHeadAttention(
        ...     2, 4, decode=False, attention_fn=attention_fn(), rngs=nnx.Rngs(0)
        ... )
        >>> layer(jnp.ones((1, 3, 4)), mask=jnp.tri(3)[None, None]).shape
        (1, 3, 4)

    Source: `manifold_optax.attention.dot_product_attention`.
    """
    # Wrong numbers shall not wait for the first call.
    defaults = Scores(absolute=absolute, chunk=chunk)

    def attention(  # noqa: PLR0913 -- the signature is Flax's
        query: Array,
        key: Array,
        value: Array,
        bias: Array | None = None,
        mask: Array | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: Array | None = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: nnx.Module | None = None,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        is_causal: bool = False,
    ) -> Array:
        query, key, value = promote_dtype((query, key, value), dtype=dtype)
        scores = Scores(
            bias=bias,
            # Flax makes masks of numbers, 0 and 1.
            mask=None if mask is None else mask.astype(bool),
            is_causal=is_causal,
            absolute=defaults.absolute,
            chunk=defaults.chunk,
            precision=precision,
        )
        dropout = None
        if not deterministic and dropout_rate > 0:
            if dropout_rng is None:
                raise ValueError(
                    f"Dropout of rate {dropout_rate} needs dropout_rng, got None; give "
                    "a random key, or deterministic=True."
                )
            dropout = Dropout(dropout_rng, dropout_rate, broadcast_dropout)
        output, max_logits = attend(query, key, value, scores, dropout=dropout)
        if module is not None:
            module.sow(
                nnx.Intermediate,
                NAME,
                max_logits,
                reduce_fn=jnp.maximum,
                init_fn=lambda: -jnp.inf,
            )
        return output

    return attention


def gather(
    source: Any,
    name: str = NAME,
    *,
    reduce: Literal["max", "sum"] = "max",
    axis_name: AxisName = None,
) -> dict[str, Array]:
    """The largest logits of all attention layers, as `qk_clip` takes them.

    Or what other modules sowed: `gather(sown, "expert_load", reduce="sum")` for
    `balance_router_bias`.

    Args:
        source: what was sown: the `nnx.State` that `nnx.capture` (or `nnx.pop`) gives,
            or any tree of that shape. Or the module into which it was sown outside of
            `nnx.capture`: it is taken out of the module, so that the maxima of one
            step do not linger in the next.
        name: under which name the layers sowed it.
        reduce: what becomes of several values of one module (a tuple, with Flax's
            default reduction) and of the values on several devices: their maximum, or
            their sum.
        axis_name: mesh axes over which the batch is split, inside `shard_map`: the
            maximum or sum over all devices, by a single all-reduce.

    Returns:
        Path of the module, such as `blocks/0/attention` (the path of its parameters
        without their own names) → `[*layers, heads]`.

    Raises:
        ValueError: when nothing of that name was sown, and for an unknown `reduce`.

    Example:
        >>> from flax import nnx
        >>> sown = {"max_logits": nnx.Intermediate(jnp.array([3.0, 5.0]))}
        >>> gather(nnx.State({"attention": sown}))
        {'attention': Array([3., 5.], dtype=float32)}
    """
    require_one_of("reduce", reduce, ("max", "sum"))
    combine = jnp.maximum if reduce == "max" else jnp.add
    if isinstance(source, nnx.Module):
        source = nnx.pop(source, _is_sown(name))
    found: dict[str, Array] = {}
    # The entries of a tuple have the path of its variable, `value` and their number.
    sown = re.compile(rf"(?:(.*)/)?{re.escape(name)}(?:(?:/value)?/\d+)?")
    for keys, leaf in jax.tree_util.tree_leaves_with_path(source):
        match = sown.fullmatch(leaf_path(keys))
        if match is None:
            continue
        path = match[1] or ""
        if path in found and found[path].shape != leaf.shape:
            raise ValueError(
                f"{path!r} sowed {name!r} of different shapes, {found[path].shape} "
                f"and {leaf.shape}; one module must sow values of one shape."
            )
        found[path] = combine(found[path], leaf) if path in found else leaf
    if not found:
        raise ValueError(
            f"Nothing called {name!r} was sown. Call the attention layers with "
            "sow_weights=True and attention_fn=attention_fn(), inside "
            "nnx.capture(model, nnx.Intermediate), and give what that returns."
        )
    return found if axis_name is None else _over_devices(found, reduce, axis_name)


def _is_sown(name: str) -> Callable[[Any, Any], bool]:
    def matches(path: Any, value: Any) -> bool:
        return path[-1] == name and isinstance(value, nnx.Intermediate)

    return matches


def _over_devices(
    found: dict[str, Array], reduce: str, axis_name: AxisName
) -> dict[str, Array]:
    """Maxima or sums over the devices of `axis_name`, in one message."""
    packed = jnp.concatenate([jnp.ravel(x) for x in found.values()])
    # A loss may gather its own: pmax has no derivative.
    packed = jax.lax.stop_gradient(packed)
    if reduce == "sum":
        packed = jax.lax.psum(packed, axis_name)
    else:
        packed = _largest(packed, axis_name)
    unpacked, start = {}, 0
    for path, x in found.items():
        unpacked[path] = packed[start : start + x.size].reshape(x.shape)
        start += x.size
    return unpacked


def _largest(packed: Array, axis_name: AxisName) -> Array:
    """Maxima over devices; flags beside them, as some backends' maximum drops NaN."""
    broken = jnp.isnan(packed)
    both = jnp.stack([jnp.where(broken, -jnp.inf, packed), broken.astype(packed.dtype)])
    highest, flags = jax.lax.pmax(both, axis_name)
    return jnp.where(flags > 0, jnp.nan, highest)
