"""What the supported versions of JAX and Flax do differently, one name for each."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import jax

Result = TypeVar("Result")


def with_float64(function: Callable[..., Result]) -> Callable[..., Result]:
    """Returns `function` as traced where JAX keeps float64 arrays as they are.

    Args:
        function: takes and returns arrays of the same dtypes whether or not
            `jax_enable_x64` is set; it may compute in float64.
    """
    if hasattr(jax, "enable_x64"):

        def wide(*arrays: jax.Array) -> Result:
            with jax.enable_x64(True):
                return function(*arrays)

        return wide

    # JAX 0.7 evaluates what `custom_vmap` traced once more, where float64 is off. `jit`
    # makes one operation of it, which is not evaluated anew. Newer versions have no
    # such name in `jax.experimental`.
    experimental_enable_x64 = jax.experimental.enable_x64  # noqa: TID251 # pyright: ignore[reportAttributeAccessIssue]

    def sealed(*arrays: jax.Array) -> Result:
        with experimental_enable_x64(True):
            return jax.jit(function)(*arrays)

    return sealed


def without_variables(params: Any) -> Any:
    """Returns `params` without those nnx variables that cannot hold a masked leaf.

    `nnx.Optimizer` of Flax 0.11 reads every variable of a state as an array and fails
    on an `optax.MaskedNode`. A state made from plain arrays has none there.
    """

    def is_old(node: Any) -> bool:
        kind = type(node)
        return hasattr(kind, "get_metadata") and not hasattr(kind, "get_value")

    return jax.tree.map(
        lambda node: node.value if is_old(node) else node, params, is_leaf=is_old
    )


def trace_context(name: str) -> "TraceContext":
    """Returns a value that a `with` statement sets for what is traced inside it.

    Where JAX can, a function that was jitted under another value is traced anew.
    Before JAX 0.8 it cannot: what was traced keeps the value that it was traced with.

    Args:
        name: of the value, for debugging.
    """
    if hasattr(jax, "make_user_context"):
        return jax.make_user_context(None)
    return _ThreadValue(name)


class TraceContext(Protocol):
    """A value, `None` unless a `with context(value):` around sets it."""

    @property
    def value(self) -> Any:
        """What the innermost `with` set."""
        ...

    def __call__(self, value: Any, /) -> AbstractContextManager[Any]:
        """A context in which `value` is this."""
        ...


class _ThreadValue:
    def __init__(self, name: str) -> None:
        self._value: ContextVar[Any] = ContextVar(name, default=None)

    @property
    def value(self) -> Any:
        return self._value.get()

    @contextmanager
    def __call__(self, value: Any, /) -> Iterator[None]:
        token = self._value.set(value)
        try:
            yield
        finally:
            self._value.reset(token)
