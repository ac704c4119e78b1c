"""Values of a computation on a ball of inputs: a center, a Jacobian, and its errors.

For the inputs `x + u` with `‖u‖ ≤ r` each value `v` is described by what holds on the
whole ball:

    ∂v(x + u)/∂u = J + Σₗ Aₗ Eₗ + (rows of at most `loose`)

`J` and `Aₗ` are known matrices. `Eₗ` is an unknown matrix that one operation adds,
because its slopes are only known within limits; it is bounded row by row, group by
group, and as a whole. Linear operations act on `J` and `Aₗ` exactly, so an error keeps
its way through the network, and errors that cancel do cancel.

A value may have several such descriptions. All of them hold, and the least bound that
follows from any counts.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from manifold_optax.modular._bounds._sizes import Unreadable
from manifold_optax.modular._certificates._local_errors import (
    Errors,
    FloatArray,
    joint_norms,
    operator_norms,
)
from manifold_optax.modular._computation._graph import Operation

INPUT = -1
"""The key of the Jacobian with respect to the input; others are those of errors."""

MOST_COLUMNS = 4096
"""An operation with more entries in error adds them to the loose ones: a matrix of
4096 columns for 4096 entries takes 134 MB."""

ROUNDING = 1 + 1e-9
"""By which norms are rounded up: the error of 4096 sums and an eigenvalue in float64,
4096 · 2.2e-16 ≈ 1e-12, with room."""

MOST = 1e12
"""Derivatives beyond it are called unbounded: a scalar function of numbers that move
so far has no local slope."""

_SMALL = 1e-9
"""Errors this small, relative to the largest row, get no columns of their own."""


class Unbounded(ArithmeticError):
    """A bound on a ball is too large for a number."""


class Ball:
    """One ball of inputs, and what was met on the way through it.

    How far a value moves is the integral of its derivative along the way from the
    center. A ball may continue a smaller one, of which the same was asked in the same
    order: then only the rest of the way counts with the derivative of the larger ball.
    """

    def __init__(self, radius: float, inner: "Ball | None" = None) -> None:
        self.radius = radius
        self.errors: list[Errors] = []
        self._inner = inner
        self._reached: list[FloatArray] = []

    def reach(self, rates: FloatArray) -> FloatArray:
        """How far something moves at most, whose derivative is at most `rates`."""
        if self._inner is None:
            reached = self.radius * rates
        else:
            before = self._inner._reached[len(self._reached)]
            reached = before + (self.radius - self._inner.radius) * rates
        if not np.all(reached < MOST):
            raise Unbounded
        self._reached.append(reached)
        return reached


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """Bounds of a Jacobian; see the module.

    Attributes:
        columns: `J` under `INPUT`, and `Aₗ` under the number of the error, each
            `[columns, *shape]`.
        loose: bounds of further errors of the rows, of the shape of the value or `()`.
    """

    columns: Mapping[int, FloatArray]
    loose: FloatArray

    def map(
        self,
        known: Callable[[FloatArray], FloatArray],
        bounds: Callable[[FloatArray], FloatArray],
    ) -> "Description":
        """One linear map of the columns, and what it does to bounds of rows."""
        columns = {key: known(x) for key, x in self.columns.items()}
        loose = bounds(self.loose) if self.loose.any() else _NONE
        return Description(columns, np.asarray(loose))

    def error_rows(self, errors: Sequence[Errors]) -> Iterator[tuple[int, FloatArray]]:
        """How much each error adds to each row at most."""
        for number, columns in self.columns.items():
            if number == INPUT:
                continue
            error = errors[number]
            flat = columns.reshape(len(columns), -1)
            square = np.square(flat)
            parts = np.sqrt(np.add.reduceat(square, error.starts, axis=0))
            bound = np.minimum(error.rows @ np.abs(flat), error.groups @ parts)
            bound = np.minimum(bound, error.whole * np.sqrt(np.sum(square, 0)))
            yield number, bound.reshape(columns.shape[1:])

    def rows(self, errors: Sequence[Errors]) -> FloatArray:
        """The norm of each row at most."""
        total = self.loose
        if INPUT in self.columns:
            total = total + np.sqrt(np.sum(np.square(self.columns[INPUT]), 0))
        for _, rows in self.error_rows(errors):
            total = total + rows
        return np.asarray(total)

    def norms(
        self, errors: Sequence[Errors], axes: tuple[int, ...], shape: tuple[int, ...]
    ) -> FloatArray:
        """The operator norm of the rows along some axes, each vector for itself."""
        total = np.sqrt(np.sum(np.square(np.broadcast_to(self.loose, shape)), axes))
        if INPUT in self.columns:
            total = total + operator_norms(self.columns[INPUT], axes)
        for number, rows in self.error_rows(errors):
            bound = np.sqrt(np.sum(np.square(rows), axes))
            if np.any(bound > 0.02 * total):  # Else it is not worth an eigenvalue.
                more = joint_norms(self.columns[number], errors[number], axes)
                bound = np.minimum(bound, more)
            total = total + bound
        return np.asarray(total)


_NONE = np.zeros(())

EXACT = Description({}, _NONE)
"""What describes a value that does not move."""


@dataclasses.dataclass(frozen=True, eq=False)
class Around:
    """A value on a ball of inputs; see the module.

    Attributes:
        ball: the ball.
        center: the value at the center.
        descriptions: of its derivative.
        limits: the least and the largest values of the entries, where more is known
            of them than from the derivative.
    """

    ball: Ball
    center: FloatArray
    descriptions: tuple[Description, ...]
    limits: tuple[FloatArray, FloatArray] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return self.center.shape

    @functools.cached_property
    def rows(self) -> FloatArray:
        """The norm of the derivative of each entry, at most, on the ball."""
        bounds = [x.rows(self.ball.errors) for x in self.descriptions]
        least = functools.reduce(np.minimum, bounds)
        return np.broadcast_to(least * ROUNDING, self.shape)

    @functools.cached_property
    def reach(self) -> FloatArray:
        """How far each entry moves at most."""
        reach = self.ball.reach(self.rows)
        return reach if self.limits is None else np.minimum(reach, self._room)

    @property
    def interval(self) -> tuple[FloatArray, FloatArray]:
        """The least and the largest value of each entry."""
        low, high = self.center - self.reach, self.center + self.reach
        if self.limits is None:
            return low, high
        return np.maximum(low, self.limits[0]), np.minimum(high, self.limits[1])

    def reach_of(self, axes: Sequence[int]) -> FloatArray:
        """How far the vectors along some axes move at most."""
        reach = self.ball.reach(self.norms(axes))
        if self.limits is None:
            return reach
        moves = np.sqrt(np.sum(np.square(self._room), tuple(axes), keepdims=True))
        return np.minimum(reach, moves)

    @property
    def _room(self) -> FloatArray:
        """How far each entry may move within the limits."""
        assert self.limits is not None
        low, high = self.limits
        return np.maximum(self.center - low, high - self.center)

    def norms(self, axes: Sequence[int]) -> FloatArray:
        """The operator norm of the derivative of the entries along some axes.

        Args:
            axes: not negative.

        Returns:
            Bounds with size 1 along `axes`, each for its own vector.
        """
        axes = tuple(axes)
        bounds = [
            x.norms(self.ball.errors, axes, self.shape) for x in self.descriptions
        ]
        least = functools.reduce(np.minimum, bounds)
        least = np.minimum(least, np.sqrt(np.sum(np.square(self.rows), axes)))
        return np.expand_dims(least * ROUNDING, axes)

    @property
    def whole(self) -> float:
        """The operator norm of the derivative of all entries."""
        return float(np.max(self.norms(range(len(self.shape))), initial=0.0))

    def map(
        self,
        known: Callable[[FloatArray], FloatArray],
        bounds: Callable[[FloatArray], FloatArray],
        center: FloatArray,
    ) -> "Around":
        """One linear map of all columns; see `Description.map`."""
        found = tuple(x.map(known, bounds) for x in self.descriptions)
        return Around(self.ball, center, found)

    def scaled(self, factor: FloatArray) -> "Around":
        """Entries times known numbers."""
        absolute = np.abs(factor)
        with np.errstate(invalid="ignore"):  # Masked logits are -∞, also times 0.
            center = self.center * factor
        return self.map(lambda x: x * factor, lambda x: x * absolute, center)

    def at(self, center: FloatArray) -> "Around":
        """The same derivative, of another value."""
        return Around(self.ball, center, self.descriptions)


@dataclasses.dataclass(frozen=True, eq=False)
class Limits:
    """Bounds of an unknown matrix `diag(scale) E` of the shape of a value.

    Attributes:
        scale: not negative; entries with 0 have no error.
        rows: bounds of the rows of `E`.
        whole: a bound of its operator norm.
        groups: bounds of the operator norms of the rows along the last axis, with a
            last axis of size 1; `None`: none better than from `rows`.
    """

    scale: FloatArray
    rows: FloatArray
    whole: float = math.inf
    groups: FloatArray | None = None


def with_error(
    ball: Ball, description: Description, limits: Limits, shape: tuple[int, ...]
) -> Description:
    """A derivative with one more error."""
    scale, rows = (np.broadcast_to(x, shape) for x in (limits.scale, limits.rows))
    sizes = scale * rows
    if not np.all(sizes < MOST):
        raise Unbounded
    counts = sizes > _SMALL * np.max(sizes, initial=0.0)
    here = np.flatnonzero(counts)
    if len(here) > MOST_COLUMNS:
        here = here[:0]
        counts = np.zeros(shape, bool)
    rest = np.where(counts, 0.0, sizes)
    loose = description.loose
    if rest.any():
        loose = np.asarray(loose + rest)
    if not len(here):
        return Description(description.columns, loose)
    last = shape[-1] if shape else 1
    flat = np.where(counts, rows, 0.0).reshape(-1, last)
    each = np.sqrt(np.sum(np.square(flat), 1))
    if limits.groups is not None:
        outer = np.broadcast_to(limits.groups, (*shape[:-1], 1))
        each = np.minimum(each, outer.reshape(-1))
    owners, starts = np.unique(here // last, return_index=True)
    whole = min(limits.whole, float(np.linalg.norm(each[owners])))
    columns = np.zeros((len(here), scale.size))
    columns[np.arange(len(here)), here] = scale.reshape(-1)[here]
    kept = flat.reshape(-1)[here]
    ball.errors.append(
        Errors(kept * ROUNDING, starts, each[owners] * ROUNDING, whole * ROUNDING)
    )
    number = len(ball.errors) - 1
    together = {**description.columns, number: columns.reshape(len(here), *shape)}
    return Description(together, loose)


def with_errors(value: Around, error: Limits, instead: Limits | None = None) -> Around:
    """A value whose derivative is in error.

    Args:
        value: with the derivative at the center, or with a middle one.
        error: what is missing there.
        instead: bounds of the whole derivative, which replace the last description.
    """
    found = [with_error(value.ball, x, error, value.shape) for x in value.descriptions]
    if instead is not None:
        own = with_error(value.ball, EXACT, instead, value.shape)
        found = [found[0], own]
    return Around(value.ball, value.center, tuple(found))


def small_error(rows: np.ndarray, groups: np.ndarray | None = None) -> Limits:
    """An error of which the Frobenius norms are known, scaled vector by vector."""
    if not rows.shape:
        return Limits(np.ones(()), rows)
    found = np.sqrt(np.sum(np.square(rows), -1, keepdims=True))
    if groups is not None:
        found = np.minimum(found, groups)
    root = np.sqrt(found)
    safe = np.where(root > 0, root, 1.0)
    return Limits(root, rows / safe, float(np.linalg.norm(root)), root)


def only_moving(
    operation: Operation, operands: Sequence[Around | np.ndarray]
) -> list[Around]:
    """The operands of an operation that has a rule if all of them move."""
    values = [x for x in operands if isinstance(x, Around)]
    if len(values) < len(operands):
        raise Unreadable(f"{operation.name}: no local rule [{operation.line}]")
    return values
