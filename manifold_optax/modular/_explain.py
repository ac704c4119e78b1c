"""The chain of factors from a parameter to the output."""

from manifold_optax.modular._bounds._gains import Gains
from manifold_optax.modular._bounds._mixed_norm import MixedNorm
from manifold_optax.modular._bounds._sensitivities import Analysis
from manifold_optax.modular._computation._graph import Value

_MOST = 400
"""Lines; one more line tells what is left of a longer chain."""


def explained(analysis: Analysis, path: str) -> str:
    """One line for each step: the factor, what it is, where, and what is left."""
    total = sum(analysis.sensitivity(path))
    fact = min(
        analysis.balls[path],
        key=lambda fact: (
            fact.size * analysis.gains.gain(analysis.leaves[path], fact.norm)
        ),
    )
    lines = [
        f"{path}: a step of norm 1 changes the output by at most {total:.6g}",
        f"  {fact.size:>10.4g}  a step of norm 1, in the norm {fact.norm}",
    ]
    lines += _chain(analysis.gains, analysis.leaves[path], fact.norm)
    return "\n".join(lines)


def _chain(gains: Gains, value: Value, norm: MixedNorm) -> list[str]:
    """Along the way that carries most; the others are counted."""
    lines: list[str] = []
    while True:
        if len(lines) == _MOST:
            rest = gains.gain(value, norm)
            lines.append(f"  {rest:>10.4g}  all further steps to the output")
            break
        links = gains.links(value, norm)
        if not links:
            lines.append("              nothing reaches the output from here")
            break
        link = links[0]
        rest = sum(other.move.factor * other.gain for other in links[1:])
        more = f", and {rest:.4g} by {len(links) - 1} other ways" if rest else ""
        if link.operation is None:
            scale = link.move.factor * link.gain
            lines.append(f"  {scale:>10.4g}  the output, as RMS{more}")
            break
        why = f" ({link.move.reason})" if link.move.reason else ""
        lines.append(
            f"  {link.move.factor:>10.4g}  {link.operation}{why}; "
            f"{link.gain:.4g} from there on{more}"
        )
        value = link.operation.results[link.move.result]
        norm = link.move.norm
    return lines
