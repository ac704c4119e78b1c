"""Validation of what enters a transformation, with messages that name the leaf.

Chex does the checking; a failure becomes a `ValueError` or `TypeError` that says what
was wrong, what was got and what to do. Everything here looks at static facts (ranks,
shapes, dtypes, concrete Python numbers), so it costs nothing under `jax.jit`.
"""

from collections.abc import Sequence
from typing import Any, SupportsFloat, TypeGuard

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
            "another optimizer: mo.hybrid(matrices, others=optax.adamw(...)). "
            "mo.project and mo.monitor leave them alone with axes=mo.roles()."
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
    name: str,
    value: Any,
    interval: str,
    *,
    optional: bool = False,
    schedule: bool = False,
) -> None:
    """Raises unless a concrete number lies in `interval`, such as `"[0, 1)"`.

    Traced values pass: under `optax.inject_hyperparams` a number is not known when the
    transformation is built. `None` passes where the number is `optional`, a callable
    where it may be a `schedule`.

    Raises:
        TypeError: for anything but one real number.
        ValueError: for a number outside of the interval, and for NaN.
    """
    if isinstance(value, Tracer) or (optional and value is None):
        return
    if callable(value) and not isinstance(value, type):
        if schedule:
            return
        raise TypeError(
            f"{name} must be a number, got {value!r}; a schedule for it needs "
            "optax.inject_hyperparams."
        )
    if isinstance(value, bool) or not _is_number(value):
        kinds = " or a schedule" if schedule else " or None" if optional else ""
        raise TypeError(f"{name} must be a number{kinds}, got {value!r}.")
    if not _is_inside(float(value), interval):
        raise ValueError(f"{name} must be in {interval}, got {value!r}.")


def _is_number(value: Any) -> TypeGuard[SupportsFloat]:
    """Whether `value` is one real number, of Python, NumPy or JAX."""
    if isinstance(value, int | float):
        return True
    dtype = getattr(value, "dtype", None)
    return (
        dtype is not None
        and jnp.shape(value) == ()
        and (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))
    )


def _is_inside(number: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    return above and below


def require_flag(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is `True` or `False`; a string is neither."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")


def require_compute_dtype(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is None or a real floating dtype."""
    if value is None:
        return
    try:
        floating = jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise TypeError(
            f"{name} must be a real floating dtype such as jnp.bfloat16, or None, got "
            f"{value!r}."
        )


def require_instance(name: str, value: Any, kind: type) -> None:
    """Raises TypeError unless `value` is an instance of the class `kind`."""
    if isinstance(value, type) and issubclass(value, kind):
        raise TypeError(
            f"{name} must be an instance, got the class itself: write "
            f"{value.__name__}(...)."
        )
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


def require_one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of the `choices`."""
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {known}; got {value!r}.")


def require_concrete(name: str, what: str, *trees: Any) -> None:
    """Raises ValueError for arrays that are being traced; `what` is computed here."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees)):
        raise ValueError(
            f"{name}: {what} are computed on the host; got traced arrays. Call it "
            "outside of jit, grad and vmap."
        )
