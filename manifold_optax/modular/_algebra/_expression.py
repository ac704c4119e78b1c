"""The algebra of modules: bonds, compositions, sums and tuples of modules.

A module is a map that has a *mass* (how much of the learning its atoms take) and a
*sensitivity* (its Lipschitz constant with respect to its input). Modules hold numbers
and names alone; nothing here computes with arrays.

Source: T. Large et al., "Scalable Optimization in the Modular Norm"
(arXiv 2405.14813, 2024), section 3.
"""

import abc
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from manifold_optax.modular._algebra._lipschitz import (
    added,
    Gains,
    plain,
    require_name,
    set_field,
    times,
    tuple_message,
)
from manifold_optax.modular._algebra._node import (
    HEADER,
    Node,
    Numbers,
    Place,
    record,
    Use,
    Visit,
)
from manifold_optax.modular._algebra._text import draw, Entry, number


@dataclasses.dataclass(frozen=True)
class Module(Node):
    """A map with weights or without, its mass and its sensitivity; immutable.

    `outer @ inner` applies `inner` first, `a + b` adds the outputs, `2 * a` scales the
    output, and a tuple `(a, b)` puts outputs side by side. `print` shows the tree.
    """

    # NumPy then leaves `np.float64(2) * module` to the module.
    __array_ufunc__: ClassVar[None] = None

    def __matmul__(self, inner: Any) -> "Module":
        """`inner` first, then this module."""
        return compose(inner, self)

    def __rmatmul__(self, outer: Any) -> "Module":
        """This module first, then each of a tuple of modules."""
        return compose(self, outer)

    def __add__(self, other: Any) -> "Module":
        """Sum of the outputs of both for one input."""
        return Sum((self, as_module(other)))

    def __rmul__(self, factor: Any) -> "Module":
        """The output times a number."""
        size = abs(plain("The factor of a module", factor, "(-inf, inf)"))
        if size == 0:
            raise ValueError(
                f"0 * {self.label!r} would cut its atoms off from the output; leave "
                "the term out, or freeze it with tare(module, relative=0)."
            )
        return compose(self, Bond(f"× {number(float(factor))}", (size,)))

    def __str__(self) -> str:
        """The tree as a table, from the input at the top to the output."""
        after, gains = record(self)
        rows = self.entries(Numbers(self.total_mass(), after), ())
        end = f"mass {number(self.total_mass())}, sensitivity {number(max(gains))}"
        return f"{draw(rows, HEADER)}\n{end}"

    @abc.abstractmethod
    def mapped(self, change: Callable[[Any], "Module"]) -> "Module":
        """This module with `change(atom)` in place of every atom."""


@dataclasses.dataclass(frozen=True)
class Bond(Module):
    """A map without weights.

    With one sensitivity it maps one input, or each entry of a tuple. With several it
    maps a tuple of as many operands to one output, as the product of two activations
    does; `sensitivities[i]` is then its sensitivity to operand `i`.

    Args:
        name: what messages and tables call it.
        sensitivities: Lipschitz constants, one per operand; `inf` where there is none.
            Atoms before an infinite constant can have no share.

    Raises:
        TypeError: for arguments of another kind.
        ValueError: for an empty name, and for a sensitivity that is negative or NaN.

    Example:
        >>> from manifold_optax.modular import Atom, Bond, sensitivity
        >>> product = Bond("product", (1.0, 2.0))
        >>> sensitivity(product @ (Atom("gate"), Atom("up")))
        3.0
    """

    name: str
    sensitivities: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Checks the fields."""
        require_name("The name of a Bond", self.name)
        what = f"of the bond {self.name!r}"
        given: Any = self.sensitivities
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            raise TypeError(
                f"The sensitivities {what} must be a tuple of numbers, one per "
                f"operand, such as (1.0,); got {given!r}."
            )
        name = f"A sensitivity {what}"
        constants = tuple(plain(name, constant, "[0, inf]") for constant in given)
        set_field(self, "sensitivities", constants)

    @property
    def label(self) -> str:
        """The name."""
        return self.name

    def total_mass(self) -> float:
        return 0.0

    def mapped(self, change: Callable[[Any], Module]) -> "Bond":
        del change
        return self

    def uses(self, place: Place, counts: tuple[int, ...]) -> Iterator[Use]:
        del place, counts
        yield from ()

    def pulled(self, gains: Gains, visit: Visit, place: Place) -> Gains:
        del visit, place
        if len(self.sensitivities) == 1:
            return tuple(times(gain, self.sensitivities[0]) for gain in gains)
        if len(gains) != 1:
            raise ValueError(tuple_message(repr(self.name), len(gains), "what follows"))
        (gain,) = gains
        return tuple(times(gain, constant) for constant in self.sensitivities)

    def gives(self, count: int) -> bool:
        del count
        return len(self.sensitivities) == 1

    def entries(self, numbers: Numbers, place: Place) -> tuple[Entry, ...]:
        del numbers, place
        own = ", ".join(map(number, self.sensitivities))
        return (Entry(self.name, ("", "", "", own, "", "")),)


@dataclasses.dataclass(frozen=True)
class Identity(Bond):
    """The map that returns its input, also a tuple; sensitivity 1.

    Example:
        >>> from manifold_optax.modular import Atom, Identity, sensitivity
        >>> sensitivity(0.5 * Identity() + 0.5 * Atom("w"))
        1.0
    """

    name: str = dataclasses.field(default="identity", init=False)
    sensitivities: tuple[float, ...] = dataclasses.field(default=(1.0,), init=False)


@dataclasses.dataclass(frozen=True)
class _Several(Module):
    """A module of several members."""

    members: tuple[Module, ...]

    def __post_init__(self) -> None:
        """Checks the members."""
        kind = type(self).__name__
        given: Any = self.members
        if isinstance(given, Module | str) or not isinstance(given, Sequence):
            raise TypeError(f"{kind} needs a tuple of modules, got {given!r}.")
        if not given:
            raise ValueError(f"{kind} needs at least one module, got an empty tuple.")
        set_field(self, "members", self._arranged(tuple(map(as_module, given))))

    def _arranged(self, members: tuple[Module, ...]) -> tuple[Module, ...]:
        """Members as they are kept."""
        return members

    def total_mass(self) -> float:
        return math.fsum(member.total_mass() for member in self.members)

    def mapped(self, change: Callable[[Any], Module]) -> "_Several":
        members = tuple(member.mapped(change) for member in self.members)
        return dataclasses.replace(self, members=members)

    def uses(self, place: Place, counts: tuple[int, ...]) -> Iterator[Use]:
        for index, member in enumerate(self.members):
            yield from member.uses((*place, index), counts)

    def _branches(
        self, numbers: Numbers, place: Place
    ) -> tuple[tuple[Entry, ...], ...]:
        return tuple(
            member.entries(numbers, (*place, index))
            for index, member in enumerate(self.members)
        )

    def entries(self, numbers: Numbers, place: Place) -> tuple[Entry, ...]:
        return (Entry(self.label, branches=self._branches(numbers, place)),)


def _flat(kind: type[_Several], members: tuple[Module, ...]) -> tuple[Module, ...]:
    """Members of members of this kind, in one tuple.

    A thousand layers in a chain are then no deep recursion.
    """
    inner = (m.members if isinstance(m, kind) else (m,) for m in members)
    return tuple(itertools.chain.from_iterable(inner))


@dataclasses.dataclass(frozen=True)
class Composition(_Several):
    """Modules one after the other, `members[0]` first; `compose` and `@` build it.

    Compositions among the members are taken apart, and identities left out.

    Raises:
        TypeError: for members that are no modules.
        ValueError: for no members, and for a bond of several operands that does not
            stand on a tuple of as many.
    """

    @property
    def label(self) -> str:
        """The labels of the first and the last member."""
        return f"{self.members[0].label} … {self.members[-1].label}"

    def _arranged(self, members: tuple[Module, ...]) -> tuple[Module, ...]:
        flat = _flat(Composition, members)
        kept = tuple(m for m in flat if not isinstance(m, Identity)) or (Identity(),)
        for before, bond in itertools.pairwise(kept):
            count = len(bond.sensitivities) if isinstance(bond, Bond) else 1
            if count > 1 and not before.gives(count):
                raise ValueError(
                    tuple_message(repr(before.label), count, repr(bond.label))
                )
        return kept

    def pulled(self, gains: Gains, visit: Visit, place: Place) -> Gains:
        for index in reversed(range(len(self.members))):
            gains = self.members[index].pulled(gains, visit, (*place, index))
        return gains

    def gives(self, count: int) -> bool:
        return self.members[-1].gives(count)

    def entries(self, numbers: Numbers, place: Place) -> tuple[Entry, ...]:
        return tuple(itertools.chain.from_iterable(self._branches(numbers, place)))


@dataclasses.dataclass(frozen=True)
class Sum(_Several):
    """The sum of the outputs of modules for one input; `a + b` builds it.

    Masses and sensitivities add. Sums among the members are taken apart.

    Example:
        >>> from manifold_optax.modular import Atom, sensitivity
        >>> sensitivity(Atom("a") + Atom("b"))
        2.0
    """

    @property
    def label(self) -> str:
        """Always "sum"."""
        return "sum"

    def _arranged(self, members: tuple[Module, ...]) -> tuple[Module, ...]:
        return _flat(Sum, members)

    def pulled(self, gains: Gains, visit: Visit, place: Place) -> Gains:
        return added(
            [m.pulled(gains, visit, (*place, i)) for i, m in enumerate(self.members)],
            self.label,
        )

    def gives(self, count: int) -> bool:
        return all(member.gives(count) for member in self.members)


@dataclasses.dataclass(frozen=True)
class Concat(_Several):
    """The outputs of modules for one input, side by side; a tuple builds it.

    The size of a tuple is the sum of the sizes of its entries, so masses and
    sensitivities add. A `Bond` with one constant per operand weighs them.

    Example:
        >>> from manifold_optax.modular import Atom, Bond, sensitivity
        >>> apply = Bond("apply", (1.0, 1.0))
        >>> sensitivity((1 / 2) * apply @ (Atom("value"), Bond("softmax")))
        1.0
    """

    @property
    def label(self) -> str:
        """Always "tuple"."""
        return "tuple"

    def pulled(self, gains: Gains, visit: Visit, place: Place) -> Gains:
        count = len(self.members)
        if len(gains) not in (1, count):
            raise ValueError(tuple_message("a tuple", len(gains), "what follows"))
        each = gains if len(gains) == count else gains * count
        return added(
            [
                member.pulled((gain,), visit, (*place, index))
                for index, (member, gain) in enumerate(
                    zip(self.members, each, strict=True)
                )
            ],
            self.label,
        )

    def gives(self, count: int) -> bool:
        return count == len(self.members)


def as_module(value: Any) -> Module:
    """`value` if it is a module, a `Concat` of it if it is a tuple.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, Module):
        return value
    if isinstance(value, tuple):
        return Concat(tuple(map(as_module, value)))
    raise TypeError(
        "Modules combine with modules, such as an Atom or a Bond, and with tuples of "
        f"modules; got {value!r}."
    )


def compose(first: Any, *then: Any) -> Module:
    """Returns the modules one after the other, `first` nearest to the input.

    Args:
        first: module, or tuple of modules that all get the input.
        *then: what is applied to the output, in this order.

    Raises:
        TypeError: for anything but modules and tuples of modules.
        ValueError: for a bond of several operands that does not stand on a tuple of as
            many.

    Example:
        >>> from manifold_optax.modular import Atom, Bond, compose, shares
        >>> shares(compose(Atom("up"), Bond("relu"), 2 * Atom("down")))
        {'up': (0.25,), 'down': (0.25,)}
    """
    whole = Composition(tuple(map(as_module, (first, *then))))
    return whole.members[0] if len(whole.members) == 1 else whole
