"""What every module can do, and the one pass of the algebra.

`pulled` gets how strongly the network's output reacts to the output of a module, and
returns how strongly it reacts to the input: the chain rule with constants in place of
derivatives. On the way it visits every atom with the sensitivity after it.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from manifold_optax.modular._algebra._lipschitz import Gains
from manifold_optax.modular._algebra._text import Entry

Place: TypeAlias = tuple[int, ...]
"""Where a module stands in another: the index of each member on the way to it."""

Visit: TypeAlias = Callable[[Place, float], None]
"""Is called for every atom with its place and the sensitivity after it."""

HEADER = ("module", "manifold", "norm", "mass", "sensitivity", "after it", "share")
"""Columns of a printed module. "after it": the sensitivity of what follows an atom."""


class Use(NamedTuple):
    """An atom where it stands."""

    place: Place
    atom: "Node"
    counts: tuple[int, ...]
    """Counts of the repeats around it, the outermost first."""


class Numbers(NamedTuple):
    """What the line of an atom needs to know of the whole network."""

    total: float
    """Mass of the network."""
    after: Mapping[Place, tuple[float, ...]]
    """Sensitivities after each atom, one per slice."""


@dataclasses.dataclass(frozen=True)
class Node(abc.ABC):
    """Methods that the algebra asks every module for."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """What messages and tables call this module."""

    @abc.abstractmethod
    def total_mass(self) -> float:
        """Sum of the masses of the atoms, each slice of a repeat counted."""

    @abc.abstractmethod
    def uses(self, place: Place, counts: tuple[int, ...]) -> Iterator[Use]:
        """The atoms of this module, in the order of their application."""

    @abc.abstractmethod
    def pulled(self, gains: Gains, visit: Visit, place: Place) -> Gains:
        """Sensitivities to the inputs, from those to the outputs; visits all atoms."""

    @abc.abstractmethod
    def gives(self, count: int) -> bool:
        """Whether the output can be a tuple of `count ≥ 2` entries."""

    @abc.abstractmethod
    def entries(self, numbers: Numbers, place: Place) -> tuple[Entry, ...]:
        """The lines of this module."""


def record(module: Node) -> tuple[dict[Place, tuple[float, ...]], Gains]:
    """Sensitivities after each atom, by place and slice, and those to the input."""
    found: dict[Place, list[float]] = {}

    def visit(place: Place, gain: float) -> None:
        found.setdefault(place, []).append(gain)

    gains = module.pulled((1.0,), visit, ())
    # The pass goes from the output to the input: it meets the last slice first.
    return {place: tuple(reversed(after)) for place, after in found.items()}, gains
