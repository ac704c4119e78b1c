"""Values of a computation on a ball of inputs: a center, a Jacobian, and its errors.

For the inputs `x + u` with `‖u‖ ≤ r` each value `v` is described by what holds on the
whole ball:

    ∂v(x + u)/∂u = J + Σₗ Aₗ Eₗ + (rows of at most `loose`)

`J` and `Aₗ` are known matrices. `Eₗ` is the unknown error that one operation adds,
because its slopes move with u; it is bounded entry by entry, group by group, and as a
matrix. Linear operations act on `J` and `Aₗ` exactly, so an error keeps its way
through the network, and errors that cancel do cancel.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

FloatArray: TypeAlias = np.ndarray

INPUT = -1
"""The key of the Jacobian with respect to the input; others are those of errors."""

MOST_COLUMNS = 4096
"""An operation with more entries in error adds them to the loose ones: a matrix of
4096 columns for 4096 entries takes 134 MB."""

ROUNDING = 1 + 1e-9
"""By which norms are rounded up: the error of 4096 sums and an eigenvalue in float64,
4096 · 2.2e-16 ≈ 1e-12, with room."""


class Unbounded(ArithmeticError):
    """A bound on a ball is too large for a number."""


MOST = 1e12
"""Derivatives beyond it are called unbounded: of a network that is of use they are
less, and a scalar function of numbers that move so far has no local slope."""


@dataclasses.dataclass(frozen=True, eq=False)
class Errors:
    """Bounds of an unknown matrix `E`, whose columns are directions of the input.

    Attributes:
        rows: of the Euclidean norm of each row.
        starts: where groups of rows begin.
        groups: of the operator norm of each group of rows.
        whole: of the operator norm of all rows.
    """

    rows: FloatArray
    starts: np.ndarray
    groups: FloatArray
    whole: float


@dataclasses.dataclass(frozen=True, eq=False)
class Ball:
    """One ball of inputs, and the errors that were met on the way through it."""

    radius: float
    errors: list[Errors] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class Around:
    """A value on a ball of inputs; see the module.

    Attributes:
        ball: the ball.
        center: the value at the center.
        columns: `J` under `INPUT`, and `Aₗ` under the number of the error, each
            `[columns, *shape]`.
        loose: bounds of further errors of the rows, in the shape of the value; or 0.
    """

    ball: Ball
    center: FloatArray
    columns: Mapping[int, FloatArray]
    loose: FloatArray

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return self.center.shape

    @functools.cached_property
    def rows(self) -> FloatArray:
        """The norm of the derivative of each entry, at most, on the ball."""
        total = self.loose + np.zeros(self.shape)
        for _, rows in self._errors:
            total = total + rows
        jacobian = self.columns.get(INPUT)
        if jacobian is not None:
            total = total + np.sqrt(np.sum(np.square(jacobian), 0))
        return total * ROUNDING

    @property
    def deviation(self) -> FloatArray:
        """How far each entry moves at most: by the mean value theorem."""
        return self.ball.radius * self.rows

    def norms(self, axes: Sequence[int]) -> FloatArray:
        """The operator norm of the derivative of the entries along some axes.

        Args:
            axes: not negative.

        Returns:
            Bounds with size 1 along `axes`, each for its own vector.
        """
        axes = tuple(axes)
        total = np.sqrt(np.sum(np.square(self.loose + np.zeros(self.shape)), axes))
        jacobian = self.columns.get(INPUT)
        if jacobian is not None:
            total = total + _operator_norms(jacobian, axes)
        for number, rows in self._errors:
            bound = np.sqrt(np.sum(np.square(rows), axes))
            if np.any(bound > 0.01 * total):  # Else it is not worth an eigenvalue.
                whole = self.ball.errors[number].whole
                norm = _operator_norms(self.columns[number], axes)
                bound = np.minimum(bound, norm * whole)
            total = total + bound
        return np.expand_dims(total, axes) * ROUNDING

    @property
    def whole(self) -> float:
        """The operator norm of the derivative of all entries."""
        return float(np.max(self.norms(range(len(self.shape))), initial=0.0))

    def scaled(self, factor: FloatArray) -> "Around":
        """Entries times known numbers."""
        columns = {key: x * factor for key, x in self.columns.items()}
        return Around(
            self.ball, self.center * factor, columns, self.loose * np.abs(factor)
        )

    @functools.cached_property
    def _errors(self) -> list[tuple[int, FloatArray]]:
        """Of each error, how much it adds to each row at most."""
        return list(self._error_rows())

    def _error_rows(self) -> Iterator[tuple[int, FloatArray]]:
        for number, columns in self.columns.items():
            if number == INPUT:
                continue
            error = self.ball.errors[number]
            flat = columns.reshape(len(columns), -1)
            square = np.square(flat)
            parts = np.sqrt(np.add.reduceat(square, error.starts, axis=0))
            bound = np.minimum(error.rows @ np.abs(flat), error.groups @ parts)
            bound = np.minimum(bound, error.whole * np.sqrt(np.sum(square, 0)))
            yield number, bound.reshape(self.shape)


def _operator_norms(columns: FloatArray, axes: tuple[int, ...]) -> FloatArray:
    """The largest singular value of every matrix `[columns, entries along axes]`."""
    count, shape = len(columns), columns.shape[1:]
    rest = [k for k in range(len(shape)) if k not in axes]
    order = [*(k + 1 for k in rest), 0, *(k + 1 for k in axes)]
    outer = tuple(shape[k] for k in rest)
    matrices = columns.transpose(order).reshape(*outer, count, -1)
    if matrices.shape[-1] > count:
        matrices = np.swapaxes(matrices, -1, -2)
    gram = np.swapaxes(matrices, -1, -2) @ matrices
    if gram.shape[-1] == 0:
        return np.zeros(outer)
    largest = np.linalg.eigvalsh(gram)[..., -1]
    # An eigenvalue errs by at most a few eps of the trace.
    slack = 1e-14 * np.trace(gram, axis1=-2, axis2=-1)
    return np.sqrt(np.maximum(largest, 0.0) + slack)


def with_errors(
    linear: Around,
    scale: FloatArray,
    rows: FloatArray,
    whole: float = math.inf,
    groups: FloatArray | None = None,
) -> Around:
    """A value whose derivative is in error by `diag(scale) E`.

    Args:
        linear: without the error.
        scale: of its shape, not negative; entries with 0 have no error.
        rows: bounds of the rows of `E`.
        whole: a bound of its operator norm.
        groups: bounds of the operator norms of the rows along the last axis, of that
            shape with a last axis of size 1; `None`: none better than from `rows`.
    """
    ball, shape = linear.ball, linear.shape
    scale, rows = (np.broadcast_to(x, shape) for x in (scale, rows))
    here = np.flatnonzero(scale * rows > 0)
    if not np.all(scale * rows < MOST):
        raise Unbounded
    if not len(here):
        return linear
    if len(here) > MOST_COLUMNS:
        return dataclasses.replace(linear, loose=linear.loose + scale * rows)
    last = shape[-1] if shape else 1
    flat = np.where(scale > 0, rows, 0.0).reshape(-1, last)
    each = np.sqrt(np.sum(np.square(flat), 1))
    if groups is not None:
        each = np.minimum(each, np.broadcast_to(groups, (*shape[:-1], 1)).reshape(-1))
    owners, starts = np.unique(here // last, return_index=True)
    kept = flat.reshape(-1)[here]
    whole = min(whole, float(np.linalg.norm(each[owners])))
    columns = np.zeros((len(here), scale.size))
    columns[np.arange(len(here)), here] = scale.reshape(-1)[here]
    ball.errors.append(
        Errors(kept * ROUNDING, starts, each[owners] * ROUNDING, whole * ROUNDING)
    )
    together = {
        **linear.columns,
        len(ball.errors) - 1: columns.reshape(len(here), *shape),
    }
    return dataclasses.replace(linear, columns=together)
