"""What a user declares of a function that the reader cannot follow."""

from typing import Any, NamedTuple


class Declaration(NamedTuple):
    """What is known of a function without reading it."""

    slope: float
    size: float


_DECLARED: dict[str, Declaration] = {}
"""By the name under which a declared function is traced."""


def declaration(name: Any) -> Declaration | None:
    """What was declared of the function that is traced under a name."""
    return _DECLARED.get(name) if isinstance(name, str) else None
