"""Validation of what enters a transformation, with messages that name the leaf.

Chex does the checking; a failure becomes a `ValueError` or `TypeError` that says what
was wrong, what was got and what to do. Everything here looks at static facts (ranks,
shapes, dtypes, concrete Python numbers), so it costs nothing under `jax.jit`.
"""

import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.core import Tracer


def require_params(params: Any, name: str) -> None:
    """Raises ValueError when a transformation that needs `params` was not given any."""
    if params is None:
        raise ValueError(
            f"{name} needs the current parameters: call "
            "`tx.update(updates, state, params)` with params, got params=None."
        )


def require_present(leaf: Any, path: str) -> None:
    """Raises ValueError when there is an update but nothing that it belongs to."""
    if leaf is None:
        raise ValueError(
            f"There is an update for {path!r}, but the parameter (or the state) has "
            "None there; give None in both, or an array in both."
        )


def require_floating(leaf: Any, path: str) -> None:
    """Raises TypeError unless `leaf` is an array of real floating dtype, ≥ 16 bits."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise TypeError(
            f"The leaf {path!r} is {leaf!r} of type {type(leaf).__name__}, not an "
            "array; use jnp.asarray(...)."
        )
    dtype = leaf.dtype
    if dtype == jax.dtypes.float0 or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"The leaf {path!r} has dtype {dtype}, but only real floating arrays can "
            "be optimized here; give it another optimizer or optax.set_to_zero() by "
            "its label (mo.roles with optax.partition, or mo.hybrid)."
        )
    if jnp.finfo(dtype).bits < 16:
        raise TypeError(
            f"The leaf {path!r} has dtype {dtype}, whose range is too small for an "
            "optimizer; keep parameters and updates in bfloat16 or wider."
        )


def require_rank(leaf: Any, rank: int, path: str) -> None:
    """Raises ValueError unless `leaf` has at least `rank` axes."""
    try:
        chex.assert_rank(leaf, set(range(rank, 33)))
    except AssertionError:
        raise ValueError(
            f"The leaf {path!r} of shape {tuple(leaf.shape)} cannot be viewed as "
            f"matrices: at least {rank} axes are needed. Give vectors and scalars "
            "another optimizer, e.g. mo.hybrid(matrices, others=optax.adamw(...))."
        ) from None


def require_same_shapes(leaves: Sequence[Any], path: str) -> None:
    """Raises ValueError unless all leaves at one path have one shape."""
    try:
        chex.assert_equal_shape(leaves)
    except AssertionError:
        shapes = " and ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise ValueError(
            f"The update and the parameter at {path!r} differ in shape: {shapes}."
        ) from None


def require_in_range(
    name: str, value: Any, low: float, high: float, *, schedule: bool = False
) -> None:
    """Raises ValueError for a concrete number outside `[low, high)`.

    `None` and traced values pass: under `optax.inject_hyperparams` a number is not
    known when the transformation is built. A callable passes where a `schedule` may.
    """
    if value is None or isinstance(value, Tracer) or (schedule and callable(value)):
        return
    if callable(value):
        raise TypeError(
            f"{name} must be a number, got {value!r}; a schedule for it needs "
            "optax.inject_hyperparams."
        )
    if isinstance(value, str) or jnp.shape(value) != ():
        raise TypeError(f"{name} must be a number, got {value!r}.")
    number = float(value)
    if math.isnan(number) or not low <= number < high:
        raise ValueError(f"{name} must be in [{low}, {high}), got {value!r}.")


def require_instance(name: str, value: Any, kind: type) -> None:
    """Raises TypeError unless `value` is of the class `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}.")


def require_static_steps(name: str, value: Any) -> None:
    """Raises TypeError or ValueError unless `value` is None or a static int ≥ 0."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be a Python int or None, got {value!r}. Under "
            f"optax.inject_hyperparams name it in static_args=({name!r},)."
        )
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}.")


def require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of the `choices`."""
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {known}; got {value!r}.")
