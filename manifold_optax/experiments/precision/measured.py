"""What rounding does to a network: certified, searched for, and on data."""

import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import manifold_optax as mo
from manifold_optax.experiments.adversary import Function
from manifold_optax.experiments.precision.results import Rounded
from manifold_optax.experiments.rounding import FORMAT_NAMES, round_params, SCOPES


@dataclasses.dataclass(frozen=True)
class Network:
    """One trained network, and how it is measured.

    Attributes:
        params: Its parameters, as they are trained and rounded.
        roles: What each of them is; None: by name.
        function: (inner parameters, inputs) → logits `[..., classes]`; hashable, one
            object for all networks of a kind.
        inner: Trained parameters → parameters of `function`; linear.
        data: Inputs of `function` on which it is measured.
        domain: Inputs for which the change is certified, as `mo.modular` takes them;
            hashable, one object for all networks of a kind.
        search: (inner parameters, their change) → largest change found in the domain.
        error: Trained parameters → error on the test set.
    """

    params: Any
    roles: mo.Roles | None
    function: Function
    inner: Callable[[Any], Any]
    data: Any
    domain: Any
    search: Callable[[Any, Any], Array]
    error: Callable[[Any], Array]


def round_and_measure(network: Network) -> tuple[Rounded, ...]:
    """Rounds a network in every way and measures what each does."""
    rounded: list[Rounded] = []
    inner = network.inner(network.params)
    for number_format, per in itertools.product(FORMAT_NAMES, SCOPES):
        params = round_params(
            network.params, number_format, per=per, roles=network.roles
        )
        changed = network.inner(params)
        updates = jax.tree.map(jnp.subtract, changed, inner)
        on_data = jnp.max(change_on_data(network, inner, changed))
        numbers = (
            network.error(params),
            certified_change(network, inner, updates),
            jnp.maximum(network.search(inner, updates), on_data),
            on_data,
        )
        rounded.append(Rounded(number_format, per, *map(known, numbers)))
    return tuple(rounded)


def certified_change(network: Network, inner: Any, updates: Any) -> Array:
    """Returns the bound for all inputs of the domain; infinite where there is none."""
    with warnings.catch_warnings():
        # A bound that does not exist is a number of the report, not an accident.
        warnings.simplefilter("ignore")
        return _bound(network.function, network.domain, inner, updates)


def change_on_data(network: Network, inner: Any, changed: Any) -> Float[Array, "..."]:
    """Returns the norm of the change of the logits of each example."""
    before = outputs(network.function, inner, network.data)
    after = outputs(network.function, changed, network.data)
    return jnp.linalg.norm(after - before, axis=-1)


def logit_size(network: Network) -> Array:
    """Returns the median norm of the logits on data."""
    logits = outputs(network.function, network.inner(network.params), network.data)
    return jnp.median(jnp.linalg.norm(logits, axis=-1))


@functools.partial(jax.jit, static_argnums=0)
def outputs(function: Function, inner: Any, inputs: Any) -> Array:
    """Applies a function, compiled."""
    return function(inner, inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _bound(function: Function, domain: Any, inner: Any, updates: Any) -> Array:
    return mo.modular.change_bound(function, inner, updates, domain)


def known(number: Any) -> float | None:
    """Returns a number; None if it is not finite."""
    value = float(np.asarray(number))
    return value if math.isfinite(value) else None
