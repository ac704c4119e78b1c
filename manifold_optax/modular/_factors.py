"""Why the sensitivity after an atom is what it is: its factors, and where it stands."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from manifold_optax.modular._constants import Gains
from manifold_optax.modular._expression import Composition, Concat, Module, Sum
from manifold_optax.modular._node import Place, Use
from manifold_optax.modular._repeat import Repeat


class Factor(NamedTuple):
    """What one module after an atom multiplies the atom's sensitivity by."""

    label: str
    """Name of a bond, path of an atom, or the kind of a larger module."""
    sensitivity: float


def factors_after(module: Module, use: Use, index: int = 0) -> tuple[Factor, ...]:
    """The factors of the sensitivity after slice `index` of an atom.

    The first is that of the module right after the atom; their product is the
    sensitivity. Terms of a sum and members of a tuple beside the atom do not count.
    """
    slices = list(_unraveled(index, use.counts))
    gains: Gains = (1.0,)
    # From the output to the atom; an entry per operand where that is not decided yet.
    steps: list[tuple[str, Gains]] = []
    for step in use.place:
        after: Sequence[Module] = ()
        if isinstance(module, Composition):
            after = module.members[step + 1 :]
        elif isinstance(module, Repeat):
            later = module.count - 1 - slices.pop(0)
            after = [Repeat(module.module, later)] if later else []
        for member in reversed(after):
            ones = (1.0,) * len(gains)
            steps.append((member.label, member.pulled(ones, _ignore, ())))
            gains = member.pulled(gains, _ignore, ())
        if isinstance(module, Concat) and len(gains) > 1:
            steps = [(label, _entry(each, step)) for label, each in steps]
            gains = _entry(gains, step)
        module = member_at(module, step)
    return tuple(Factor(label, each[0]) for label, each in reversed(steps))


def _ignore(place: Place, gain: float) -> None:
    del place, gain


def _entry(gains: Gains, index: int) -> Gains:
    return gains if len(gains) == 1 else (gains[index],)


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
