"""A stack of layers that share one form: a scanned module."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from manifold_optax.modular._algebra._expression import as_module, Module
from manifold_optax.modular._algebra._lipschitz import Gains, set_field
from manifold_optax.modular._algebra._node import Numbers, Place, Use, Visit
from manifold_optax.modular._algebra._text import Entry


@dataclasses.dataclass(frozen=True)
class Repeat(Module):
    """A module applied `count` times, each time with a slice of its parameters.

    This is a stack of layers that `jax.lax.scan` goes through: every leaf has a leading
    axis of size `count`, before those of an inner `Repeat`. The mass of an atom is that
    of each slice.

    Args:
        module: one layer; its output has the form of its input.
        count: number of layers, at least 1.

    Raises:
        TypeError: for arguments of another kind.
        ValueError: for a `count` below 1.

    Example:
        >>> from manifold_optax.modular import Atom, Repeat, shares
        >>> shares(Repeat(2 * Atom("layers/kernel"), 2))
        {'layers/kernel': (0.125, 0.25)}
    """

    module: Module
    count: int

    def __post_init__(self) -> None:
        """Checks the fields."""
        set_field(self, "module", as_module(self.module))
        count = self.count
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"The count of a Repeat must be an int, got {count!r}.")
        if count < 1:
            raise ValueError(f"The count of a Repeat must be at least 1, got {count}.")

    @property
    def label(self) -> str:
        """The count."""
        return f"{self.count} ×"

    def total_mass(self) -> float:
        """That of one layer, times the count."""
        return self.count * self.module.total_mass()

    def mapped(self, change: Callable[[Any], Module]) -> "Repeat":
        """The repeat of the layer with its atoms changed."""
        return dataclasses.replace(self, module=self.module.mapped(change))

    def uses(self, place: Place, counts: tuple[int, ...]) -> Iterator[Use]:
        """The atoms of the layer, each once."""
        return self.module.uses((*place, 0), (*counts, self.count))

    def pulled(self, gains: Gains, visit: Visit, place: Place) -> Gains:
        """Through all layers, the last first; visits each atom `count` times."""
        for _ in range(self.count):
            gains = self.module.pulled(gains, visit, (*place, 0))
        return gains

    def gives(self, count: int) -> bool:
        """Whether the layer does."""
        return self.module.gives(count)

    def entries(self, numbers: Numbers, place: Place) -> tuple[Entry, ...]:
        """One line, and the layer below it."""
        inside = self.module.entries(numbers, (*place, 0))
        return (Entry(self.label, branches=(inside,)),)
