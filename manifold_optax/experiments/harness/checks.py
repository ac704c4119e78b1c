"""Checks of settings, shared by all experiments."""

import math

LARGEST_INTEGER = 10**9
"""Bound of every integer setting: more would not fit into counters of 32 bits."""

LARGEST_STEPS = 10**8
"""Bound of the steps of a run: its history holds numbers of every step."""


def require_at_least(
    name: str, value: float | int, lowest: int, *, highest: int = LARGEST_INTEGER
) -> None:
    """Raises ValueError unless `value` is a number in `[lowest, highest]`."""
    if not value >= lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}.")
    if value > highest:
        raise ValueError(f"{name} must be at most {highest}, got {value}.")


def require_seeds(name: str, seeds: tuple[int, ...]) -> None:
    """Raises ValueError unless all are different and fit into 32 bits, as JAX's do."""
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"{name} must be in [0, 2**32), got {seed}.")
    require_distinct(name, seeds)


def require_fresh(final_seeds: tuple[int, ...], seeds: tuple[int, ...]) -> None:
    """Raises ValueError if `final_seeds` holds a seed that chose the best rates."""
    used = sorted(set(final_seeds) & set(seeds))
    if used:
        raise ValueError(
            f"final_seeds must be fresh, got {used}, which seeds holds too; a rate "
            f"that was chosen on a seed looks better on it than it is."
        )


def require_positive(name: str, values: tuple[float, ...]) -> None:
    """Raises ValueError unless all `values` are finite and > 0."""
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}.")


def require_distinct(name: str, values: tuple[object, ...]) -> None:
    """Raises ValueError if `values` is empty or repeats one."""
    if not values:
        raise ValueError(f"{name} must name at least one value, got none.")
    if len(set(values)) != len(values):
        raise ValueError(f"{name} must not repeat a value, got {values}.")
