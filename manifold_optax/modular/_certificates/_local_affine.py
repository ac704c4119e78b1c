"""Affine operations on values on a ball of inputs: exact."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from manifold_optax.modular._certificates._local_linear import ADDITIVE, apply_linear
from manifold_optax.modular._certificates._local_value import Around, Description
from manifold_optax.modular._computation._graph import Operation

Operand: TypeAlias = Around | np.ndarray
"""What an operation is applied to: a value that moves, or a constant."""


def linear(operation: Operation, operands: Sequence[Operand]) -> list[Around]:
    """An operation that is affine in what moves: exact."""
    values = [x for x in operands if isinstance(x, Around)]
    count = max(len(x.descriptions) for x in values)
    described = [
        _described(
            operation,
            [_description(x, k) if isinstance(x, Around) else x for x in operands],
        )
        for k in range(count)
    ]
    pairs = zip(centers_of(operation, operands), *described, strict=True)
    return [Around(values[0].ball, center, tuple(own)) for center, *own in pairs]


def _description(x: Around, k: int) -> tuple[Description, tuple[int, ...]]:
    """One of several descriptions, the last where there are fewer; and the shape."""
    return x.descriptions[min(k, len(x.descriptions) - 1)], x.shape


def _described(
    operation: Operation,
    operands: Sequence[tuple[Description, tuple[int, ...]] | np.ndarray],
) -> list[Description]:
    """What is known of the derivatives of the results of an affine operation."""
    moving = [isinstance(x, tuple) for x in operands]
    results = range(len(operation.results))
    columns: list[dict[int, np.ndarray]] = [{} for _ in results]
    values = [x[0] for x in operands if isinstance(x, tuple)]
    for key in dict.fromkeys(key for x in values for key in x.columns):
        count = max(len(x.columns[key]) for x in values if key in x.columns)
        given = [
            x[0].columns.get(key, np.zeros((count, *x[1])))
            if isinstance(x, tuple)
            else x
            for x in operands
        ]
        for own, made in zip(
            columns, apply_linear(operation, given, moving), strict=True
        ):
            own[key] = made
    loose = [np.zeros(())] * len(operation.results)
    if any(x.loose.any() for x in values):
        given = [
            np.broadcast_to(x[0].loose, x[1])[None] if isinstance(x, tuple) else x
            for x in operands
        ]
        loose = [x[0] for x in apply_linear(operation, given, moving, absolute=True)]
    return [Description(columns[k], loose[k]) for k in results]


def centers_of(operation: Operation, operands: Sequence[Operand]) -> list[np.ndarray]:
    """The results of an affine operation at the center, in float64."""
    sums = operation.name in ADDITIVE
    moving = [isinstance(x, Around) or (sums and x.dtype.kind == "f") for x in operands]
    if operation.name == "select_n":
        moving = [False] + [True] * (len(operands) - 1)
    arrays = [x.center if isinstance(x, Around) else x for x in operands]
    given = [
        np.asarray(x, np.float64)[None] if moves else x
        for x, moves in zip(arrays, moving, strict=True)
    ]
    return [x[0] for x in apply_linear(operation, given, moving)]


def combined(terms: Sequence[Around]) -> Around:
    """The sum of values of one shape."""
    count = max(len(term.descriptions) for term in terms)
    found = []
    for k in range(count):
        columns: dict[int, np.ndarray] = {}
        loose = np.zeros(())
        for own, _ in (_description(term, k) for term in terms):
            loose = loose + own.loose
            for key, x in own.columns.items():
                columns[key] = columns[key] + x if key in columns else x
        found.append(Description(columns, np.asarray(loose)))
    center = np.asarray(sum(term.center for term in terms))
    return Around(terms[0].ball, center, tuple(found))
