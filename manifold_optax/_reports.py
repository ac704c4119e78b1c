"""What transformations report of themselves while they are initialized.

An Optax transformation is a pair of functions that nobody can look into. While
`listening` is active, its `init` reports which leaves it will change and how, through
every wrapper of Optax. `describe` prints it, and `hybrid` checks it.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

_LISTENERS: contextvars.ContextVar[tuple[list[Any], ...]] = contextvars.ContextVar(
    "listeners of manifold_optax", default=()
)


@contextlib.contextmanager
def listening() -> Iterator[list[Any]]:
    """Collects in a list what is reported inside of the block, also to outer ones."""
    facts: list[Any] = []
    token = _LISTENERS.set((*_LISTENERS.get(), facts))
    try:
        yield facts
    finally:
        _LISTENERS.reset(token)


def report(fact: Any) -> None:
    """Gives `fact` to all who listen; does nothing if nobody does."""
    for facts in _LISTENERS.get():
        facts.append(fact)
