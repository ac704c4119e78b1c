"""Scalar functions written as short programs of JAX primitives."""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
_LOGICAL = (*COMPARISONS, "and", "or", "not")


@dataclasses.dataclass(frozen=True)
class Ref:
    """The argument of the function (index 0) or the result of step `index - 1`."""

    index: int


Operand: TypeAlias = Ref | float | int | bool


@dataclasses.dataclass(frozen=True)
class Step:
    """One primitive applied to earlier results and constants.

    Steps are written by `apply`, in the normal form that `_write` defines.
    """

    primitive: str
    operands: tuple[Operand, ...]
    params: tuple[tuple[str, Hashable], ...] = ()


@dataclasses.dataclass(frozen=True)
class Expression:
    """A function of one real number.

    Its result is that of the last step; without steps it is the identity. Expressions
    built alike are equal and hash alike, so results can be cached by expression.
    """

    steps: tuple[Step, ...] = ()

    @property
    def constant(self) -> float | int | bool | None:
        """The value of a constant function, otherwise None."""
        if len(self.steps) == 1 and self.steps[0].primitive == "constant":
            value = self.steps[0].operands[0]
            return None if isinstance(value, Ref) else value
        return None

    @property
    def logical(self) -> bool:
        """Whether the function returns truth values."""
        if self.constant is not None:
            return isinstance(self.constant, bool)
        return bool(self.steps) and self.steps[-1].primitive in _LOGICAL


IDENTITY = Expression()


def constant(value: float | int | bool) -> Expression:
    """The constant function `value`."""
    # One NaN for all: a tuple equals itself only if its NaN is the same object.
    return Expression((Step("constant", (math.nan if value != value else value,)),))


class Program:
    """A list of steps under construction, in which equal steps are one."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._refs: dict[Step, Ref] = {}

    def add(self, primitive: str, *operands: Operand, **params: Hashable) -> Ref:
        """The result of a step, which is appended unless it is there already."""
        step = Step(primitive, operands, tuple(sorted(params.items())))
        if step not in self._refs:
            self._steps.append(step)
            self._refs[step] = Ref(len(self._steps))
        return self._refs[step]

    def step(self, operand: Operand) -> Step | None:
        """The step that computes `operand`; None for constants and the argument."""
        if isinstance(operand, Ref) and operand.index:
            return self._steps[operand.index - 1]
        return None

    def logical(self, operand: Operand) -> bool:
        """Whether `operand` is a truth value."""
        step = self.step(operand)
        return isinstance(operand, bool) if step is None else step.primitive in _LOGICAL

    def include(self, expression: Expression) -> Operand:
        """Adds the steps of `expression` and returns its result."""
        if expression.constant is not None:
            return expression.constant
        results: list[Operand] = [Ref(0)]
        for step in expression.steps:
            operands = _renamed(step.operands, results)
            results.append(self.add(step.primitive, *operands, **dict(step.params)))
        return results[-1]

    def extract(self, result: Operand) -> Expression:
        """The function that returns `result`, of the steps that it needs."""
        if not isinstance(result, Ref):
            return constant(result)
        needed: set[int] = {0}
        stack = [result.index]
        while stack:
            index = stack.pop()
            if index not in needed:
                needed.add(index)
                operands = self._steps[index - 1].operands
                stack.extend(o.index for o in operands if isinstance(o, Ref))
        names = {index: Ref(k) for k, index in enumerate(sorted(needed))}
        kept = (self._steps[index - 1] for index in sorted(needed) if index)
        return Expression(
            tuple(
                Step(s.primitive, _renamed(s.operands, names), s.params) for s in kept
            )
        )


def _renamed(
    operands: tuple[Operand, ...],
    names: Mapping[int, Operand] | Sequence[Operand],
) -> tuple[Operand, ...]:
    return tuple(names[o.index] if isinstance(o, Ref) else o for o in operands)
