"""Rules of operations that act on every entry for itself."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from manifold_optax.modular._bounds._mixed_norm import (
    MixedNorm,
    ratio,
    remarked,
)
from manifold_optax.modular._bounds._number import (
    hypot,
    largest,
    Number,
    reference,
    Size,
    smallest,
    steps,
    total,
)
from manifold_optax.modular._bounds._sizes import (
    all_max,
    Move,
    Rule,
    RULES,
    Sizes,
    times,
    unfollowed,
)
from manifold_optax.modular._computation._constants import compact_array
from manifold_optax.modular._computation._graph import Operation, Value
from manifold_optax.modular._scalar import analyse, Ref, ScalarFacts, Step

Moves = Sequence[Sequence[Move]]


def _steps(operation: Operation) -> tuple[Step, ...]:
    return operation.params["expression"].steps


def multiple(operation: Operation) -> float | None:
    """The factor of a function x ↦ c x; `None` for every other function."""
    numbers: list[float] = []
    for step in _steps(operation):
        if step.primitive != "mul" or numbers:
            return None
        numbers = [float(x) for x in step.operands if not isinstance(x, Ref)]
        if len(numbers) != 1:
            return None
    return math.prod(numbers, start=1.0)


_PLACING = frozenset({
    "broadcast_in_dim", "convert_element_type", "expand_dims", "reshape", "squeeze",
    "transpose",
})  # fmt: skip


def meeting(value: Value, partner: Value, norm: MixedNorm, sizes: Sizes) -> Size:
    """The size of one factor of a product.

    In the accounting of the theory each of two activations that meet has RMS 1 before
    it is multiplied by a number: queries over √d are as keys, and logits over √d.
    """
    size, assumed = sizes.entering(value, norm), sizes.assumptions.nominal
    if not assumed or sizes.is_weight(partner) or sizes.is_weight(value):
        return size
    if not sizes.is_moving(value) or norm.has("s"):
        return size
    while (maker := sizes.graph.maker(value)) is not None:
        number = multiple(maker) if maker.name == "entrywise" else None
        if number is None and maker.name not in _PLACING:
            break
        size *= 1.0 if number is None else abs(number)
        value = maker.operands[0]
    return size


_LIMITS = tuple(2.0**k for k in range(-6, 20, 2))
"""Limits of what may enter a function, over what is assumed to enter it, at which its
slope is known where weights are live."""


def _slope(operation: Operation, sizes: Sizes) -> Size:
    """The largest slope of the function, on the numbers that can occur."""
    facts = analyse(operation.params["expression"])
    if facts.lipschitz < math.inf:
        return facts.lipschitz
    return _of_facts(operation, sizes, lambda facts: facts.lipschitz)


def _of_facts(
    operation: Operation, sizes: Sizes, value: Callable[[ScalarFacts], float]
) -> Size:
    """What is known of the function on the numbers that can occur."""
    expression, (root,) = operation.params["expression"], operation.operands
    size = sizes.bound(root, all_max(root.shape))
    least = sizes.least(root)

    def up_to(limit: float) -> float:
        return value(analyse(expression, max(-limit, min(least, limit)), limit))

    limit = reference(size)
    if 0 < limit < math.inf:
        # Up to eighths of an octave, so that equal layers share one analysis.
        limit = 2.0 ** (math.ceil(8 * math.log2(limit)) / 8)
    if not isinstance(size, Number):
        return up_to(limit)
    return steps(size, [limit * factor for factor in _LIMITS], up_to)


def _entrywise_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> Size:
    """|f(x)| is at most growth · |x|, |f(0)| + slope · |x|, and the largest value."""
    del result
    (root,) = operation.operands
    factor = multiple(operation)
    if factor is not None:
        return times(abs(factor), sizes.bound(root, norm))
    facts, inner = analyse(operation.params["expression"]), remarked(norm, "i", "o")
    if facts.lipschitz == math.inf:
        height = _of_facts(operation, sizes, lambda x: max(abs(x.lo), abs(x.hi)))
        growth = _of_facts(operation, sizes, lambda x: x.growth)
    else:
        height, growth = max(abs(facts.lo), abs(facts.hi)), facts.growth
    bounds: list[Size] = [height * norm.of_ones]
    slope = _slope(operation, sizes)
    if reference(growth) < math.inf:
        bounds.append(times(growth, sizes.bound(root, inner)))
    elif reference(slope) < math.inf:
        offset = abs(facts.at_zero) * norm.of_ones
        bounds.append(offset + times(slope, sizes.bound(root, inner)))
    return smallest(bounds)


def _entrywise_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """A change of an entry is changed by the slope there."""
    del position
    factor = multiple(operation)
    if factor is not None:
        return [[Move(0, abs(factor), norm, "multiple")]]
    slope = _slope(operation, sizes)
    if reference(slope) == math.inf:
        names = dict.fromkeys(step.primitive for step in _steps(operation))
        jumps = _of_facts(operation, sizes, lambda facts: float(not facts.continuous))
        what = "jumps" if reference(jumps) else "has no bounded slope"
        why = f"the function made of {', '.join(names)} {what} where it is used"
        raise unfollowed(operation, why)
    outer = remarked(norm, "i", "o")
    return [[Move(0, slope * ratio(outer, norm), outer, "slope")]]


def _add_size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> Size:
    """The triangle inequality; in the accounting of the theory biases are 0."""
    del result
    terms = operation.operands
    if sizes.assumptions.nominal and not all(map(sizes.is_weight, terms)):
        terms = tuple(term for term in terms if not sizes.is_weight(term))
    return total(within(term, norm, sizes.bound) for term in terms)


def within(
    value: Value, norm: MixedNorm, bound: Callable[[Value, MixedNorm], Size]
) -> Size:
    """The size of an operand in a norm of the result; also of a lone number."""
    if value.shape == norm.shape:
        return bound(value, norm)
    return times(norm.of_ones, bound(value, MixedNorm(())))


def _add_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """A change of one operand changes the result as much."""
    del sizes
    return [[Move(0, 1.0, spread(operation, position, norm))]]


def _passes(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """A change of one operand changes some entries as much, and others not at all."""
    del sizes
    factor, outer = entry_by_entry(spread(operation, position, norm))
    return [[Move(0, factor, outer)]]


def entry_by_entry(norm: MixedNorm) -> tuple[float, MixedNorm]:
    """A norm that grows with the entries, and its ratio to another: the Frobenius norm.

    A matrix without some of its entries may have a larger operator norm.
    """
    outer = remarked(norm, "i", "o")
    return ratio(outer, norm), outer


def spread(operation: Operation, position: int, norm: MixedNorm) -> MixedNorm:
    """The norm of the result, for a number that is combined with an array."""
    shape = operation.results[0].shape
    return norm if operation.operands[position].shape == shape else all_max(shape)


def _either_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> Size:
    """Each entry is one of several: the largest, or under a norm their norm."""
    del result
    norm = remarked(norm, "i", "o")
    cases = [operation.operands[k] for k in _cases(operation)]
    bounds = [within(case, norm, sizes.bound) for case in cases]
    if not norm.has("os"):
        return largest(bounds)
    return total(bounds) if norm.has("s") else hypot(bounds)


def _cases(operation: Operation) -> list[int]:
    """The operands that entries are taken from: of a known choice those it takes."""
    operands = operation.operands
    if operation.name != "select_n":
        return list(range(len(operands)))
    # Compact, and compared as it is: the mask of attention may have 10^8 entries.
    choice = compact_array(operands[0])
    cases = range(1, len(operands))
    if choice is None:
        return list(cases)
    return [k for k in cases if np.any(choice == k - 1)]


def _select_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    if position == 0 or sizes.is_moving(operation.operands[0]):
        raise unfollowed(
            operation, "which case is taken depends on parameters or inputs: it jumps"
        )
    if position not in _cases(operation):
        return [[]]
    return _passes(operation, position, norm, sizes)


def _jumps(operation: Operation, position: int, norm: MixedNorm, sizes: Sizes) -> Moves:
    del norm, position, sizes
    raise unfollowed(operation, "its result jumps where a parameter or an input moves")


def _no_size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> Size:
    del operation, result, norm, sizes
    return math.inf


RULES["entrywise"] = Rule(_entrywise_size, _entrywise_moves, operators=True)
RULES["add"] = Rule(_add_size, _add_moves, operators=True)
RULES["sub"] = RULES["add_any"] = RULES["add"]
RULES["max"] = RULES["min"] = Rule(_either_size, _passes)
RULES["select_n"] = Rule(_either_size, _select_moves)
for _name in (
    "gt", "ge", "lt", "le", "eq", "ne", "argmax", "argmin", "sign", "floor", "ceil",
    "round", "top_k", "random_bits", "is_finite",
):  # fmt: skip
    RULES[_name] = Rule(_no_size, _jumps)
