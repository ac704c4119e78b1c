"""`certified_radius`: how far an input may move before a decision can change."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from manifold_optax._checks import require_concrete
from manifold_optax._typing import ArrayTree
from manifold_optax.modular._certificates._certificate import certificate
from manifold_optax.modular._certificates._domains import Box
from manifold_optax.modular._certificates._local_bound import local_radii


def certified_radius(
    function: Callable[[ArrayTree, Any], Array],
    params: ArrayTree,
    x: Float[Array, "n ..."],
    labels: Int[Array, " n"],
    *,
    low: float | None = None,
    high: float | None = None,
    local: bool = False,
) -> Float32[Array, " n"]:
    """For each example a radius within which the decision stays what it is.

    No `x'` with `‖x' − x‖ < radius` (Euclidean over all axes but the first) has a
    larger output than that of the label: the margin over each other class `j` is
    divided by the bound of the difference of the two outputs.

    Args:
        function: `(params, x)` → outputs `[n, classes]`, each of its own example.
        params: pytree of arrays, which may be traced.
        x: the examples.
        labels: the classes to be kept, from 0.
        low: least entry of an input; with `high` it bounds the set of inputs, which
            attention needs.
        high: largest entry.
        local: whether bounds around each example are computed, too, which certify
            more; not inside `jit`. See `local_lipschitz_bound` for their cost, which
            is paid up to nine times here.

    Returns:
        `[n]`, in the unit of `x`; 0 where another class is already as large.

    Raises:
        ValueError: if one of `low` and `high` is given without the other; inside `jit`
            with `local`.

    Example:
        >>> import jax.numpy as jnp
        >>> from manifold_optax import modular
        >>> def linear(params, x):
        ...     return x @ params["w"]
        >>> params, x = {"w": jnp.eye(2)}, jnp.array([[3.0, 1.0]])
        >>> radius = modular.certified_radius(linear, params, x, jnp.array([0]))
        >>> print(f"{radius[0]:.4f}")
        1.4142

    Cost: one evaluation of the function, `certificate`, and `classes²` differences of
    the columns of the last weight.

    Source: Y. Tsuzuku et al., "Lipschitz-Margin Training" (1802.04034), proposition 1
    and section 4.1 for pairs.
    """
    if (low is None) != (high is None):
        raise ValueError(f"Give both low and high, or none; got {low} and {high}.")
    if local:
        require_concrete("certified_radius", "local bounds", params, x, labels)
    like = jnp.zeros((1, *x.shape[1:]), x.dtype)
    domain = like if low is None else Box(like, low, high)
    pairs = certificate(function, params, domain).pairs(params)
    outputs = function(params, x).astype(jnp.float32)
    own = jnp.take_along_axis(outputs, labels[:, None], axis=1)
    margins, bounds = own - outputs, pairs[labels]
    if local:
        given = (np.asarray(a, np.float64) for a in (margins, pairs))
        radii = local_radii(function, params, x, np.asarray(labels), *given)
        return jnp.asarray(radii, jnp.float32)
    others = jnp.arange(outputs.shape[1])[None] != labels[:, None]
    radii = jnp.where(bounds > 0, margins / bounds, jnp.inf)
    radii = jnp.where(own > outputs, radii, 0.0)
    return jnp.min(jnp.where(others, radii, jnp.inf), axis=1)
