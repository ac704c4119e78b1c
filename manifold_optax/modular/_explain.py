"""The chain of factors from a value to the output."""

from collections.abc import Callable

from manifold_optax.modular._bounds._gains import Gains
from manifold_optax.modular._bounds._mixed_norm import MixedNorm
from manifold_optax.modular._bounds._number import reference, Size, total
from manifold_optax.modular._bounds._sensitivities import Analysis
from manifold_optax.modular._bounds._sizes import times
from manifold_optax.modular._computation._graph import Value

_MOST = 400
"""Lines; one more line tells what is left of a longer chain."""


def explained(analysis: Analysis, path: str) -> str:
    """One line for each step: the factor, what it is, where, and what is left."""
    total = sum(analysis.sensitivity(path))
    fact = min(
        analysis.balls[path],
        key=lambda fact: reference(
            times(fact.size, analysis.gains.gain(analysis.leaves[path], fact.norm))
        ),
    )
    lines = [
        f"{path}: a step of norm 1 changes the output by at most {total:.6g}",
        f"  {fact.size:>10.4g}  a step of norm 1, in the norm {fact.norm}",
    ]
    lines += chain(analysis.gains, analysis.leaves[path], fact.norm, reference)
    return "\n".join(lines)


def chain(
    gains: Gains, value: Value, norm: MixedNorm, number: Callable[[Size], float]
) -> list[str]:
    """One line for each step, along the way that carries most; others are counted.

    `number` tells what a size is; for live weights the norms that they have.
    """
    lines: list[str] = []
    while True:
        if len(lines) == _MOST:
            rest = number(gains.gain(value, norm))
            lines.append(f"  {rest:>10.4g}  all further steps to the output")
            break
        links = gains.links(value, norm, number)
        if not links:
            lines.append("              nothing reaches the output from here")
            break
        link = links[0]
        rest = number(total(times(x.move.factor, x.gain) for x in links[1:]))
        more = f", and {rest:.4g} by {len(links) - 1} other ways" if rest else ""
        if link.operation is None:
            scale = number(times(link.move.factor, link.gain))
            lines.append(f"  {scale:>10.4g}  the output{more}")
            break
        why = f" ({link.move.reason})" if link.move.reason else ""
        lines.append(
            f"  {number(link.move.factor):>10.4g}  {link.operation}{why}; "
            f"{number(link.gain):.4g} from there on{more}"
        )
        value = link.operation.results[link.move.result]
        norm = link.move.norm
    return lines
