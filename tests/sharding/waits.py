"""What the collectives of a compiled program wait for: products, and one another."""

import dataclasses
from typing import Any

from manifold_optax.programs._collectives import KINDS, product_flops
from manifold_optax.programs._program import of_entry, read


@dataclasses.dataclass(frozen=True)
class Wait:
    """A collective, and what must be done before it can begin."""

    name: str
    kind: str
    flops: int
    """Operations of all products on which it depends."""
    collectives: tuple[str, ...]
    """Names of the collectives on which it depends."""


def waits(compiled: Any, *, unknown_trips: int | None = None) -> tuple[Wait, ...]:
    """Follows the data to the collectives of a compiled program, outside of loops.

    Two that do not depend on one another may be under way together, and one that does
    not depend on a product may travel while that is computed.

    Args:
        compiled: as for `dot_flops`.
        unknown_trips: as for `dot_flops`.

    Returns:
        One `Wait` for each collective of the entry, in the order of the program.

    Raises:
        TypeError, ValueError: as `dot_flops`.
    """
    program = read(compiled)
    entry = program.computations[program.entry]
    measure, weight = product_flops()
    flops = of_entry(program, measure, weight, unknown_trips)
    before: dict[str, set[str]] = {}
    found = []
    # The text has every instruction after those that it needs.
    for name, instruction in entry.items():
        needed = (*instruction.operands, *instruction.called("control-predecessors"))
        before[name] = set(needed).union(*(before[other] for other in needed))
        if instruction.operation in KINDS:
            names = [n for n in entry if n in before[name]]
            found.append(
                Wait(
                    name,
                    instruction.operation,
                    int(sum(weight(flops[n]) for n in names)),
                    tuple(n for n in names if entry[n].operation in KINDS),
                )
            )
    return tuple(found)
