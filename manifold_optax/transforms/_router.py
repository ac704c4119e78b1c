"""Loss-free balancing of the experts of a mixture: a bias that follows their load."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from manifold_optax._checks import (
    require_floating,
    require_in_range,
    require_one_of,
    require_present,
    require_same_shapes,
)
from manifold_optax._typing import ArrayTree, Scalar
from manifold_optax.attention import require_statistics, resolve
from manifold_optax.trees import (
    check_pattern,
    is_absent,
    join_paths,
    leaf_path,
    leaves_by_path,
)

_HINT = (
    "It is the shape of the bias, [*layers, experts]: the load of each expert, summed "
    "over the data."
)


_NO_LOAD = (
    "balance_router_bias needs the load of every expert: call tx.update(gradients, "
    "state, params, expert_load={path of the router: [*layers, experts]}), the number "
    "of tokens that each expert got in the whole batch. With Flax, "
    "integrations.flax.gather(sown, 'expert_load', reduce='sum') collects what the "
    "layers sow."
)


def balance_router_bias(
    routers: Mapping[str, str],
    *,
    rate: Scalar = 1e-3,
    rule: Literal["sign", "rms"] = "sign",
) -> optax.GradientTransformationExtraArgs:
    r"""Moves the bias of each router against the load of its experts, without a loss.

    With F the load of the experts the update of their bias is -rate · sign(F - mean F),
    or -rate · (F - mean F) / rms(F - mean F). The model adds the bias to the scores by
    which it *chooses* experts, not to the weights by which it mixes them, so that no
    gradient is bent; behind scores of a sigmoid, in [0, 1], the default rate is that of
    the authors.

    It is the last link of the chain of the whole model: whatever update the bias had
    (there is no gradient, but a decay, perhaps) is replaced. All other leaves pass
    through unchanged:

        tx = optax.named_chain(
            ("model", hybrid(...)),
            ("router", balance_router_bias({r"blocks/\d+/moe": "router_bias"})),
        )
        tx.update(grads, state, params, expert_load={"blocks/0/moe": load, ...})

    Args:
        routers: pattern of the path of a router (see `trees.matches`) → path of its
            bias below it. The bias is `[experts]`, or `[*layers, experts]`
            where layers are stacked. It must be among the parameters, with zeros for
            its gradient if nothing flows into it; the module of the whole tree is `""`.
        rate: how far a bias moves in one step, ≥ 0; a number, also a traced one. For a
            schedule: `optax.inject_hyperparams`.
        rule: `"sign"`, all experts by the same step; or `"rms"`, in proportion to their
            deviation, by the same step in the root mean square.

    Returns:
        A stateless transformation. Its `update` needs `expert_load=`: {path of the
        router: real array of the shape of its bias}, how many tokens each expert got,
        in any unit, summed over the whole batch: over data-parallel devices and
        micro-batches (inside `optax.MultiSteps` only the last one's is seen). Update in
        the promoted dtype of parameter and update; computed in at least float32. Equal
        loads give 0, and so do loads that are not all finite, layer by layer. It costs
        a few operations per expert.

    Raises:
        ValueError: if `routers` is empty, or `rule` or `rate` is invalid; at init and
            update for a pattern that matches nothing, and for a bias that is missing,
            `None` or masked (inside `optax.partition`); at update for loads of the
            wrong shape or for other routers.
        TypeError: at update, without `expert_load`, for loads or biases that are no
            real arrays.

    Example:
        >>> params = {"moe": {"bias": jnp.zeros(3), "kernel": jnp.ones((2, 3))}}
        >>> tx = balance_router_bias({"moe": "bias"}, rate=0.5)
        >>> load = {"moe": jnp.array([10.0, 20.0, 60.0])}
        >>> state = tx.init(params)
        >>> updates, _ = tx.update(params, state, params, expert_load=load)
        >>> updates["moe"]["bias"]
        Array([ 0.5,  0.5, -0.5], dtype=float32)

    Source: L. Wang et al., "Auxiliary-loss-free load balancing strategy for
        mixture-of-experts", arXiv 2408.15664, Algorithm 1 (`"sign"`, rate 1e-3);
        J. Su, kexue.fm 10757 (`"rms"`).
    """
    require_one_of("rule", rule, ("sign", "rms"))
    require_in_range("rate", rate, "[0, inf)")
    _check(routers)
    wanted = {pattern: (bias,) for pattern, bias in routers.items()}

    def biases(tree: ArrayTree) -> dict[str, str]:
        """Path of each router → path of its bias."""
        found = resolve("router", wanted, leaves_by_path(tree))
        return {
            path: join_paths(path, routers[pattern]) for path, pattern in found.items()
        }

    def init_fn(params: ArrayTree) -> optax.EmptyState:
        # Optax's tools for states (`optax.tree.map_params`) give a tree without leaves.
        if jax.tree.leaves(params):
            biases(params)
        return optax.EmptyState()

    def update_fn(
        updates: ArrayTree,
        state: Any,
        params: Any = None,
        *,
        expert_load: Mapping[str, Any] | None = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, Any]:
        del extra_args
        if expert_load is None:
            raise TypeError(_NO_LOAD)
        where, old = biases(updates), leaves_by_path(updates)
        points = old if params is None else leaves_by_path(params)
        counted = _counted(expert_load)
        shapes = {path: tuple(old[bias].shape) for path, bias in where.items()}
        require_statistics("expert_load", counted, shapes, hint=_HINT)
        new = {}
        for path, bias in where.items():
            dtype = _dtype_of(bias, old[bias], points.get(bias))
            new[bias] = (-rate * _excess(counted[path], rule)).astype(dtype)

        def choose(keys: Any, leaf: Any) -> Any:
            return new.get(leaf_path(keys), leaf)

        replaced = jax.tree_util.tree_map_with_path(choose, updates, is_leaf=is_absent)
        return replaced, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check(routers: Any) -> None:
    named = isinstance(routers, Mapping) and all(
        isinstance(name, str) for pair in routers.items() for name in pair
    )
    if not named or not routers:
        raise (ValueError if named else TypeError)(
            "routers must name at least one router and its bias, as "
            f"{{r'blocks/\\d+/moe': 'router_bias'}}; got {routers!r}."
        )
    for pattern in routers:
        check_pattern("routers", pattern)


def _counted(loads: Any) -> Any:
    """Loads as JAX arrays of floating numbers: integers count tokens, too."""
    if not isinstance(loads, Mapping):
        return loads

    def counted(load: Any) -> Any:
        if not hasattr(load, "dtype"):
            return load
        is_count = jnp.issubdtype(load.dtype, jnp.integer)
        return jnp.asarray(load, jnp.float32 if is_count else None)

    return {path: counted(load) for path, load in loads.items()}


def _excess(
    load: Float[Array, "*layers experts"], rule: str
) -> Float[Array, "*layers experts"]:
    """Sign of each expert's deviation from the mean load, or the deviation / its rms.

    The loads are counted from the largest, and all sums taken `experts` times: what is
    equal, or equal to the mean, then deviates by 0 exactly, as a rounded mean would not
    (0.1 + 0.1 + 0.1 is not 3 · 0.1 in float32). Integers are exact below 2²⁴.
    """
    load = load.astype(jnp.promote_types(load.dtype, jnp.float32))
    finite = jnp.isfinite(load).all(-1, keepdims=True)
    # A power of two is exact, and makes room for `experts` times the largest.
    load = load * 2.0 ** -(load.shape[-1].bit_length() + 1)
    below = jnp.where(finite, load - load.max(-1, keepdims=True), 0)
    excess = load.shape[-1] * below - below.sum(-1, keepdims=True)
    if rule == "sign":
        return jnp.sign(excess)
    # By the largest first, so that no square overflows or vanishes.
    largest = jnp.abs(excess).max(-1, keepdims=True)
    excess = excess / jnp.where(largest > 0, largest, 1)
    square = jnp.square(excess).mean(-1, keepdims=True)
    return excess / jnp.sqrt(jnp.where(largest > 0, square, 1))


def _dtype_of(path: str, update: Array, point: Any) -> Any:
    """The dtype that an update of the parameter `point` has."""
    require_floating(update, path)
    require_present(point, path)
    require_floating(point, path)
    require_same_shapes((update, point), path)
    if not update.ndim:
        raise ValueError(
            f"The bias {path!r} is a scalar; a router has one number per expert."
        )
    return jnp.promote_types(point.dtype, update.dtype)
