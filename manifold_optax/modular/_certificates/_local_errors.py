"""Unknown matrices of which norms are known, and norms of what is made of them."""

import dataclasses
from typing import TypeAlias

import numpy as np

FloatArray: TypeAlias = np.ndarray

_MOST_FOR_WHOLE = 1024
"""Rows and columns of a matrix whose largest singular value is computed: it takes 0.1 s
at 1024 and grows with the cube."""

_MOST_GROUPS = 64
"""Groups whose norms are added one by one."""


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


def operator_norms(columns: FloatArray, axes: tuple[int, ...]) -> FloatArray:
    """The largest singular value of every matrix `[columns, entries along axes]`."""
    count, shape = len(columns), columns.shape[1:]
    rest = [k for k in range(len(shape)) if k not in axes]
    order = [*(k + 1 for k in rest), 0, *(k + 1 for k in axes)]
    outer = tuple(shape[k] for k in rest)
    matrices = columns.transpose(order).reshape(*outer, count, -1)
    if matrices.shape[-1] > count:
        matrices = np.swapaxes(matrices, -1, -2)
    if matrices.shape[-1] == 0:
        return np.zeros(outer)
    if matrices.shape[-1] > _MOST_FOR_WHOLE:
        return np.asarray(np.linalg.norm(matrices, axis=(-2, -1)))
    gram = np.swapaxes(matrices, -1, -2) @ matrices
    largest = np.linalg.eigvalsh(gram)[..., -1]
    # An eigenvalue errs by at most a few eps of the trace.
    slack = 1e-14 * np.trace(gram, axis1=-2, axis2=-1)
    return np.asarray(np.sqrt(np.maximum(largest, 0.0) + slack))


def joint_norms(
    columns: FloatArray, error: Errors, axes: tuple[int, ...]
) -> FloatArray:
    """The operator norm of `A E` along some axes, three ways.

    From the norm of all of E; from that of its groups, added; and of the groups that
    matter to a vector as one matrix, `‖[√g A]‖ √(Σ g)`.
    """
    bound = np.asarray(operator_norms(columns, axes) * error.whole)
    if len(error.starts) == 1:
        return bound
    parts = np.split(columns, error.starts[1:])
    if len(parts) <= _MOST_GROUPS:
        pairs = zip(error.groups, parts, strict=True)
        apart = sum(g * operator_norms(part, axes) for g, part in pairs)
        bound = np.minimum(bound, apart)
    reached = [np.any(part, (0, *(k + 1 for k in axes))) for part in parts]
    total = sum(g * hit for g, hit in zip(error.groups, reached, strict=True))
    counts = np.diff(np.append(error.starts, len(columns)))
    root = np.sqrt(np.repeat(error.groups, counts))
    weighted = columns * root.reshape(-1, *([1] * (columns.ndim - 1)))
    joint = operator_norms(weighted, axes) * np.sqrt(total)
    return np.asarray(np.minimum(bound, joint))
