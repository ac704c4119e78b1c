"""Why the sensitivity after an atom is what it is: its factors, and where it stands."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from manifold_optax.modular._algebra._expression import (
    compose,
    Composition,
    Concat,
    Module,
    Sum,
)
from manifold_optax.modular._algebra._lipschitz import Gains
from manifold_optax.modular._algebra._node import Place, Use
from manifold_optax.modular._algebra._repeat import Repeat


class Factor(NamedTuple):
    """What one module after an atom multiplies the atom's sensitivity by."""

    module: Module
    sensitivity: float


def factors(module: Module, path: str, index: int = 0) -> tuple[Factor, ...]:
    """Returns the factors of the sensitivity after an atom, the nearest first.

    Their product is the sensitivity. Terms of a sum and members of a tuple beside the
    atom do not count.

    Args:
        module: any module.
        path: path of the atom.
        index: slice of the atom, of as many as the repeats around it make.

    Raises:
        ValueError: if the module has no such atom, or if it has no such slice.

    Example:
        >>> from manifold_optax.modular import Atom, Bond, factors
        >>> module = Atom("down") @ Bond("gelu", (1.129,)) @ Atom("up")
        >>> [(f.module.label, f.sensitivity) for f in factors(module, "up")]
        [('gelu', 1.129), ('down', 1.0)]
    """
    found = {use.atom.label: use for use in module.uses((), ())}
    if path not in found:
        known = ", ".join(map(repr, found)) or "none"
        raise ValueError(f"The module has no atom {path!r}; its atoms are: {known}.")
    count = math.prod(found[path].counts)
    if not 0 <= index < count:
        raise ValueError(f"The atom {path!r} has {count} slices, got index {index}.")
    return factors_after(module, found[path], index)


def factors_after(module: Module, use: Use, index: int = 0) -> tuple[Factor, ...]:
    """`factors` of an atom where it stands."""
    slices = list(_unraveled(index, use.counts))
    found: list[Factor] = []
    # What takes a tuple, from the output on, as long as its operands are not members of
    # the same module: only together do they have one factor.
    open_: list[Module] = []
    for step in use.place:
        for member in _after(module, step, slices):
            open_.append(member)
            gains = _pulled(open_)
            if len(gains) == 1:
                found.append(Factor(_joined(open_), gains[0]))
                open_ = []
        if isinstance(module, Concat) and open_:
            found.append(Factor(_joined(open_), _pulled(open_)[step]))
            open_ = []
        module = member_at(module, step)
    return tuple(reversed(found))


def _after(module: Module, step: int, slices: list[int]) -> Sequence[Module]:
    """What a module applies after one of its members, the last first."""
    if isinstance(module, Composition):
        return module.members[:step:-1]
    if isinstance(module, Repeat):
        later = module.count - 1 - slices.pop(0)
        return [Repeat(module.module, later)] if later else []
    return ()


def _joined(modules: Sequence[Module]) -> Module:
    return compose(*reversed(modules))


def _pulled(modules: Sequence[Module]) -> Gains:
    return _joined(modules).pulled((1.0,), _ignore, ())


def _ignore(place: Place, gain: float) -> None:
    del place, gain


def _unraveled(index: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Index of a slice along each leading axis, the outermost first."""
    sizes = [math.prod(counts[axis + 1 :]) for axis in range(len(counts))]
    return tuple(index // s % c for s, c in zip(sizes, counts, strict=True))


def member_at(module: Module, step: int) -> Module:
    """The member of a module that one step of a place leads to."""
    if isinstance(module, Repeat):
        return module.module
    assert isinstance(module, Composition | Sum | Concat)
    return module.members[step]


def with_constant(module: Module, constant: float) -> Iterator[str]:
    """Labels of the atoms and bonds in a module that have this constant."""
    if isinstance(module, Composition | Sum | Concat):
        for member in module.members:
            yield from with_constant(member, constant)
    elif isinstance(module, Repeat):
        yield from with_constant(module.module, constant)
    elif constant in module.pulled((1.0,), _ignore, ()):
        yield module.label


def where(module: Module, place: Place) -> str:
    """A place in words: `part 3, branch 2 of a sum, part 1`."""
    words = []
    for step in place:
        if isinstance(module, Composition):
            words.append(f"part {step + 1}")
        elif not isinstance(module, Repeat):
            words.append(f"branch {step + 1} of a {module.label}")
        module = member_at(module, step)
    return ", ".join(words) or "the only part"
