"""What a user declares of a function that the reader cannot follow."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax

from manifold_optax._checks import require_in_range

_F = TypeVar("_F", bound=Callable[..., Any])


class Declaration(NamedTuple):
    """What is known of a function without reading it.

    Attributes:
        slopes: for each array that it takes, how much the RMS of the result changes for
            a change of that array of RMS 1; one number for all of them.
        size: the largest RMS of the result.
        roles: for each array, what it is if it is a parameter; `()`: none is.
    """

    slopes: tuple[float, ...]
    size: float
    roles: tuple[Any, ...] = ()

    def slope(self, position: int) -> float:
        """The slope with respect to one of the arrays."""
        return self.slopes[0 if len(self.slopes) == 1 else position]


_DECLARED: dict[str, Declaration] = {}
"""By the name under which a declared function is traced."""

_NUMBERS = itertools.count()


def declare(
    *,
    slope: float | Sequence[float],
    size: float = math.inf,
    roles: Sequence[Any] = (),
) -> Callable[[_F], _F]:
    """Declares a function that `read` cannot follow: a decorator.

    The reader then takes the function as one step and does not look inside. The numbers
    are the user's word; nothing checks them. RMS is meant over the last axis, the
    largest over all others.

    Args:
        slope: Lipschitz constant of the result, in RMS, in `[0, inf)`: one for all
            arrays that the function takes, or one for each, in the order of the leaves
            of its arguments. 0 for what it does not depend on.
        size: bound of the RMS of the result, in `(0, inf]`.
        roles: for each array, what it is as a parameter: a label, axes or a
            `mo.Role`, as in `mo.roles`; `None` for no parameter.

    Returns:
        A decorator. The function becomes a jitted function of the same results.

    Raises:
        ValueError: for a slope or a size out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from manifold_optax import modular
        >>> @modular.declare(slope=1.0, size=1.0)
        ... def best_of_two(x):
        ...     return jnp.where(x.sum() > 0, x, -x)
        >>> best_of_two(jnp.array([-1.0, 0.0])).tolist()
        [1.0, -0.0]
    """
    slopes = tuple(slope) if isinstance(slope, Sequence) else (slope,)
    for number in slopes:
        require_in_range("slope", number, "[0, inf)")
    require_in_range("size", size, "(0, inf]")
    known = Declaration(tuple(map(float, slopes)), float(size), tuple(roles))

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def declared(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        declared.__name__ = f"{function.__name__}__declared_{next(_NUMBERS)}"
        _DECLARED[declared.__name__] = known
        return jax.jit(declared)  # type: ignore[return-value]

    return decorate


def declaration(name: Any) -> Declaration | None:
    """What was declared of the function that is traced under a name."""
    return _DECLARED.get(name) if isinstance(name, str) else None
