"""The rule of functions that a user declared, and a place for rules of users."""

import math
from collections.abc import Sequence

from manifold_optax._checks import require_instance
from manifold_optax.modular._bounds._mixed_norm import MixedNorm, natural_norm, ratio
from manifold_optax.modular._bounds._number import Size
from manifold_optax.modular._bounds._sizes import Move, Rule, RULES, Sizes
from manifold_optax.modular._computation._declare import Declaration, declaration
from manifold_optax.modular._computation._graph import Operation


def register_rule(primitive: str, rule: Rule) -> None:
    """Tells the reader how to follow a primitive.

    Args:
        primitive: its name, as `jax.make_jaxpr` prints it.
        rule: two functions; see `Rule`. A rule of the library is replaced. Sizes may be
            formulas: add and multiply them, take `modular.smallest` of several bounds
            of one thing and `modular.largest` of several things; `<` raises TypeError.

    Raises:
        TypeError: for anything but a name and a `Rule`.

    Example:
        >>> from manifold_optax import modular
        >>> def size(operation, result, norm, sizes):
        ...     return sizes.bound(operation.operands[0], norm)
        >>> def moves(operation, operand, norm, sizes):
        ...     return [[modular.Move(0, 1.0, norm)]]
        >>> modular.register_rule("my_identity", modular.Rule(size, moves))
    """
    require_instance("primitive", primitive, str)
    require_instance("rule", rule, Rule)
    RULES[primitive] = rule


def _declared(operation: Operation) -> Declaration:
    found = declaration(operation.params["name"])
    assert found is not None
    return found


def _size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> Size:
    """As declared: a bound of the RMS over the last axis."""
    del sizes
    natural = natural_norm(operation.results[result].shape)
    size = _declared(operation).size * math.sqrt(natural.count("o"))
    return ratio(norm, natural) * size


def _moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Sequence[Sequence[Move]]:
    """As declared, from RMS to RMS."""
    del sizes
    inner = natural_norm(operation.operands[position].shape)
    slope = _declared(operation).slope(position) * ratio(inner, norm)
    moves = []
    for result, value in enumerate(operation.results):
        outer = natural_norm(value.shape)
        scale = math.sqrt(outer.count("o") / inner.count("o"))
        if slope and value.is_float:
            moves.append(Move(result, slope * scale, outer, "declared"))
    return [moves]


RULES["declared"] = Rule(_size, _moves, operators=True)
