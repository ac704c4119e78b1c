"""Norms that measure each row, or each column, by its root mean square."""

import dataclasses

import jax.numpy as jnp

from manifold_optax._typing import AxisName, Matrix, PerMatrix
from manifold_optax.geometry._base import Norm, widen
from manifold_optax.geometry._lines import line_norm, normalize_lines
from manifold_optax.linalg import row_count


@dataclasses.dataclass(frozen=True)
class RowRms(Norm):
    """Largest RMS of a row; dual `√n·Σ ‖gᵢ‖`; steepest: each row at RMS 1.

    Rows are fan-out: the norm of an embedding that is stored `(vocabulary, features)`
    and viewed with its features as fan-in. A zero row of a gradient gives a zero row.

    Example:
        >>> RowRms().value(jnp.array([[1.0, 7.0], [0.0, 0.0]]))
        Array(5., dtype=float32)

    Source: T. Large et al., "Scalable Optimization in the Modular Norm"
    (arXiv 2405.14813, 2024).
    """

    @property
    def transposable(self) -> bool:
        """False: rows become columns."""
        return False

    def value(self, x: Matrix) -> PerMatrix:
        """Largest root mean square of a row, `[*batch]`."""
        norms = line_norm(widen(x), "rows")
        return jnp.max(norms, axis=(-2, -1), initial=0) / max(x.shape[-1], 1) ** 0.5

    def dual_value(self, gradient: Matrix) -> PerMatrix:
        """Sum of the norms of the rows, times `√n`, `[*batch]`."""
        norms = line_norm(widen(gradient), "rows")
        return jnp.sum(norms, axis=(-2, -1)) * gradient.shape[-1] ** 0.5

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """`√n·gᵢ/‖gᵢ‖` in each row."""
        unit = normalize_lines(widen(gradient), "rows", axis_name)
        return (unit * gradient.shape[-1] ** 0.5).astype(gradient.dtype)


@dataclasses.dataclass(frozen=True)
class ColumnRms(Norm):
    """Largest RMS of a column; dual `√m·Σ ‖gⱼ‖`; steepest: each column at RMS 1.

    Columns are fan-in. A zero column of a gradient gives a zero column.

    Example:
        >>> ColumnRms().value(jnp.array([[1.0, 0.0], [7.0, 0.0]]))
        Array(5., dtype=float32)

    Source: T. Pethick et al., "Training Deep Learning Models with Norm-Constrained
    LMOs" (arXiv 2502.07529, 2025).
    """

    @property
    def transposable(self) -> bool:
        """False: columns become rows."""
        return False

    def value(self, x: Matrix) -> PerMatrix:
        """Largest root mean square of a column, `[*batch]`."""
        norms = line_norm(widen(x), "columns")
        return jnp.max(norms, axis=(-2, -1), initial=0) / max(x.shape[-2], 1) ** 0.5

    def dual_value(self, gradient: Matrix) -> PerMatrix:
        """Sum of the norms of the columns, times `√m`, `[*batch]`."""
        norms = line_norm(widen(gradient), "columns")
        return jnp.sum(norms, axis=(-2, -1)) * gradient.shape[-2] ** 0.5

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """`√m·gⱼ/‖gⱼ‖` in each column."""
        unit = normalize_lines(widen(gradient), "columns", axis_name)
        return (unit * row_count(gradient, axis_name) ** 0.5).astype(gradient.dtype)
