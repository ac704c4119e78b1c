"""Lipschitz constants: their checks, products and sums."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from jax.core import Tracer

from manifold_optax._checks import require_in_range

Gains: TypeAlias = tuple[float, ...]
"""Sensitivity to each entry of a tuple; one number: to every entry, or to an array."""


def plain(name: str, value: Any, interval: str) -> float:
    """`value` as a Python number in `interval`, such as `"[0, inf]"`.

    Raises:
        TypeError: for anything but one real number that is known now.
        ValueError: for a number outside of the interval, and for NaN.
    """
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} must be a number that is known before anything is traced, got "
            f"{value!r}; make the module outside of jax.jit."
        )
    require_in_range(name, value, interval)
    return float(value)


def require_name(name: str, value: Any) -> None:
    """Raises unless `value` is a string that is not empty."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r}.")
    if not value:
        raise ValueError(f"{name} must not be empty.")


def set_field(instance: Any, name: str, value: Any) -> None:
    """Gives a field of a frozen dataclass its checked value, in `__post_init__`."""
    object.__setattr__(instance, name, value)


def times(first: float, second: float) -> float:
    """The product, where what does not react at all beats what reacts without bound."""
    return 0.0 if first == 0 or second == 0 else first * second


def added(terms: Sequence[Gains], label: str) -> Gains:
    """Sum of the sensitivities of several modules to their one input.

    Raises:
        ValueError: for modules that take tuples of different lengths.
    """
    counts = {len(gains) for gains in terms} - {1}
    if len(counts) > 1:
        several = " and ".join(map(str, sorted(counts)))
        raise ValueError(
            f"Members of a {label} take {several} operands, but all of them get the "
            "same input; write a constant of 0.0 for operands that a Bond ignores."
        )
    count = counts.pop() if counts else 1
    each = [gains if len(gains) == count else gains * count for gains in terms]
    return tuple(map(sum, zip(*each, strict=True)))


def tuple_message(before: str, count: int, after: str) -> str:
    """The message for a module whose output is no tuple of `count` entries."""
    return (
        f"{after[0].upper()}{after[1:]} takes {count} operands, but {before} before "
        f"it does not give {count} outputs; write a tuple: bond @ (first, second)."
    )
