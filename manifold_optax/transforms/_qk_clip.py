"""QK-clip: query and key weights rescaled so that attention logits stay bounded."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from manifold_optax._checks import (
    require_flag,
    require_floating,
    require_in_range,
    require_params,
    require_same_shapes,
)
from manifold_optax._reports import report
from manifold_optax._typing import ArrayTree, Scalar
from manifold_optax.attention import (
    Attention,
    ClipReport,
    locate,
    Rescaling,
    rescalings,
)
from manifold_optax.trees import check_pattern, is_absent, leaf_path

_NO_LOGITS = (
    "qk_clip needs the largest logit of every head: call tx.update(gradients, state, "
    "params, max_logits={path of the attention layer: [*layers, heads]}). "
    "mo.attention.dot_product_attention returns it beside the output; with Flax, "
    "integrations.flax.attention_fn records it and integrations.flax.gather collects "
    "it from the model."
)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """The arguments of QK-clip, checked, and what they make of the logits."""

    attention: Mapping[str, Attention]
    threshold: Any
    balance: Any
    allow_missing: bool

    def __post_init__(self) -> None:
        if not isinstance(self.attention, Mapping) or not self.attention:
            raise TypeError(
                "attention must be a dict {path of an attention layer: "
                f"mo.Attention(…)}} with at least one entry, got {self.attention!r}."
            )
        for path, spec in self.attention.items():
            if not isinstance(path, str) or not isinstance(spec, Attention):
                raise TypeError(
                    "attention must map patterns of paths to mo.Attention(…), got "
                    f"{path!r}: {spec!r}."
                )
            check_pattern("attention", path)
        require_in_range("threshold", self.threshold, "(0, inf)")
        require_in_range("balance", self.balance, "[0, 1]")
        require_flag("allow_missing", self.allow_missing)

    def rescalings(
        self, params: ArrayTree, max_logits: Mapping[str, Any]
    ) -> dict[str, Rescaling]:
        """What each leaf is multiplied by, by path."""
        return rescalings(
            locate(self.attention, params),
            max_logits,
            threshold=self.threshold,
            balance=self.balance,
            allow_missing=self.allow_missing,
        )


def apply_qk_clip(
    params: ArrayTree,
    max_logits: Mapping[str, Any],
    attention: Mapping[str, Attention],
    *,
    threshold: Scalar = 100.0,
    balance: Scalar = 0.5,
    allow_missing: bool = False,
) -> ArrayTree:
    """Rescales queries and keys so that no head's largest logit exceeds `threshold`.

    The pure function of `qk_clip`, where the rule is described; with mixed precision
    give it the master weights.

    Args:
        params: tree of parameters.
        max_logits: path of each attention layer → `[*layers, heads]`, floating: the
            largest logit of each query head.
        attention: pattern of the layers' paths (`trees.matches`) → their `Attention`.
        threshold: largest logit that is left alone, > 0.
        balance: share of the clip that the queries take, in [0, 1].
        allow_missing: whether `max_logits` may leave layers out.

    Returns:
        A tree like `params`, in its dtypes; computed in at least float32. Entries whose
        factor is 1 are the same bit by bit.

    Raises:
        ValueError, TypeError: as `qk_clip`.

    Example:
        >>> params = {"query": jnp.ones((4, 2, 3)), "key": jnp.ones((4, 2, 3))}
        >>> spec = {"": Attention(2, query="query", key="key")}
        >>> clipped = apply_qk_clip(params, {"": jnp.array([400.0, 20.0])}, spec)
        >>> clipped["query"][0, :, 0]
        Array([0.5, 1. ], dtype=float32)
    """
    rule = _Rule(attention, threshold, balance, allow_missing)
    found = rule.rescalings(params, max_logits)

    def rescale(keys: Any, leaf: Any) -> Any:
        rescaling = found.get(leaf_path(keys))
        return leaf if rescaling is None else rescaling(leaf).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(rescale, params, is_leaf=is_absent)


def qk_clip(
    attention: Mapping[str, Attention],
    *,
    threshold: Scalar = 100.0,
    balance: Scalar = 0.5,
    allow_missing: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps attention logits bounded: rescales queries and keys after each step.

    A head whose largest logit `S` exceeded `threshold` has its queries and keys scaled
    such that the same activations would now give exactly `threshold`: with
    `γ = threshold / S`, keys are multiplied by `g^(1 − balance)`, where `g` is the
    smallest γ of the heads that read the key, and queries by `γ / g^(1 − balance)`.
    With latent attention the rotary queries take γ and their shared key stays. Values
    are never touched. The statistic is of the weights before the step, so the next one
    may exceed the threshold by what one step and other data add.

    It must be the last link of the chain of the whole model, outside
    `optax.partition` (inside, biases and gains are masked), and it takes the logits as
    an extra argument::

        tx.update(gradients, state, params, max_logits={"blocks/0/attention": …})

    Do not clip weights that a manifold constrains: rescaled, a Stiefel weight is off
    its manifold, which this transformation cannot see.

    Args:
        attention: pattern of an attention layer's path (see `trees.matches`) → its
            `Attention`. `{r"blocks/\d+/attention": spec}` is all blocks; `""` is the
            whole tree.
        threshold: τ > 0, in units of the logits that the softmax receives. 100 is K2's;
            its authors saw no loss of quality at 30.
        balance: share of the clip that the queries take, in [0, 1]. With 1 keys stay
            bit-identical, and so do all heads within the threshold; below 1 the heads
            that share a clipped key keep their logits (to rounding), but their queries
            grow by `g^(balance − 1)` each time to make up for the key. Where all heads
            share the queries' leaf (a norm's gain) it takes `balance` of the worst
            head's clip, and the keys of the other heads make up for it.
        allow_missing: whether `max_logits` may leave layers out; they are not clipped.

    Returns:
        A transformation without state that needs `params` and `max_logits`:
        {path of the attention layer: `[*layers, heads]`}, floating, the largest logit
        of each query head over batch and positions (masked ones excepted), reduced over
        data-parallel devices and micro-batches by the maximum. Negative, -inf, inf and
        nan entries leave their head as it is. Parameters and updates that no spec names
        pass through untouched, and so do entries whose factor is 1. Named leaves leave
        in the promoted dtype of update and parameter; computed in at least float32.

    Raises:
        TypeError: when `max_logits` is missing or not a dict of floating arrays.
        ValueError: for numbers out of range; at update, for a pattern that matches no
            layer, a layer without one of its leaves (or with it masked), sizes that
            do not fit the heads, and statistics of unknown layers, missing ones
            and ones of the wrong shape. The message names the path.

    Example:
        >>> spec = {"": Attention(2, query="query", key="key")}
        >>> tx = optax.chain(optax.sgd(0.1), qk_clip(spec))
        >>> params = {"query": jnp.ones((4, 2, 3)), "key": jnp.ones((4, 2, 3))}
        >>> still = jax.tree.map(jnp.zeros_like, params)
        >>> largest = {"": jnp.array([400.0, 20.0])}
        >>> updates, _ = tx.update(still, tx.init(params), params, max_logits=largest)
        >>> optax.apply_updates(params, updates)["key"][0, :, 0]
        Array([0.5, 1. ], dtype=float32)

    Source: Kimi Team, "Kimi K2: Open Agentic Intelligence" (arXiv 2507.20534, 2025),
    algorithm 1, for multi-head and latent attention; the rule for shared keys is ours
    (each head lands on the threshold, none below it).
    """
    rule = _Rule(attention, threshold, balance, allow_missing)

    def init_fn(params: ArrayTree) -> optax.EmptyState:
        # What does not fit is better said now; `optax.tree.map_params` gives no leaf.
        if jax.tree.leaves(params):
            found = locate(attention, params).values()
            paths = tuple(path for layer in found for path in layer.leaves)
            report(ClipReport("qk_clip", paths))
        return optax.EmptyState()

    def update_fn(
        updates: ArrayTree,
        state: Any,
        params: Any = None,
        *,
        max_logits: Mapping[str, Any] | None = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, Any]:
        del extra_args
        require_params(params, "qk_clip")
        if max_logits is None:
            raise TypeError(_NO_LOGITS)
        found = rule.rescalings(params, max_logits)

        def clip(keys: Any, update: Any, param: Any) -> Any:
            path = leaf_path(keys)
            if path not in found:
                return update
            if is_absent(update):
                raise ValueError(
                    f"qk_clip rescales {path!r}, but its update is {update!r}; chain "
                    "it outside optax.partition, and do not freeze that leaf."
                )
            require_floating(update, path)
            require_same_shapes((update, param), path)
            return _clipped(update, param, found[path])

        clipped = jax.tree_util.tree_map_with_path(
            clip, updates, params, is_leaf=is_absent
        )
        return clipped, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _clipped(update: Array, param: Array, rescaling: Rescaling) -> Array:
    """The update that leads to the rescaled weight; itself where the factor is 1."""
    dtype = jnp.promote_types(update.dtype, param.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    point = param.astype(wide)
    delta = rescaling(point + update.astype(wide)) - point
    # Not left to the rounding of (param + update) - param.
    return jnp.where(rescaling.factor == 1, update.astype(dtype), delta.astype(dtype))
