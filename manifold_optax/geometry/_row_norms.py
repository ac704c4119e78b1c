"""Norms that measure each row, or each column, by its root mean square."""

import dataclasses
from typing import ClassVar

from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._blocks import Blocks, normalize_blocks
from manifold_optax.geometry._norm import BlockNorm
from manifold_optax.linalg._reductions import row_count
from manifold_optax.linalg._scaling import widen


class _LineNorm(BlockNorm):
    """The largest root mean square of a line."""

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """Each line of the gradient scaled to a root mean square of 1."""
        unit = normalize_blocks(widen(gradient), self.blocks, axis_name)
        entries = _length(self.blocks, gradient, axis_name)
        return (unit * entries**0.5).astype(gradient.dtype)

    def unit_length(self, x: Array, axis_name: AxisName = None) -> float:
        """`√k` for lines of `k` entries, at least 1."""
        return max(_length(self.blocks, x, axis_name), 1) ** 0.5


@dataclasses.dataclass(frozen=True)
class RowRms(_LineNorm):
    """Largest RMS of a row; dual `√n·Σ ‖gᵢ‖`; steepest: each row at RMS 1.

    Rows are fan-out: the norm of an embedding that is stored `(vocabulary, features)`
    and viewed with its features as fan-in. A zero row of a gradient gives a zero row.

    Example:
        >>> RowRms().value(jnp.array([[1.0, 7.0], [0.0, 0.0]]))
        Array(5., dtype=float32)

    Source: T. Large et al., "Scalable Optimization in the Modular Norm"
    (arXiv 2405.14813, 2024).
    """

    blocks: ClassVar[Blocks] = "rows"


@dataclasses.dataclass(frozen=True)
class ColumnRms(_LineNorm):
    """Largest RMS of a column; dual `√m·Σ ‖gⱼ‖`; steepest: each column at RMS 1.

    Columns are fan-in. A zero column of a gradient gives a zero column.

    Example:
        >>> ColumnRms().value(jnp.array([[1.0, 0.0], [7.0, 0.0]]))
        Array(5., dtype=float32)

    Source: T. Pethick et al., "Training Deep Learning Models with Norm-Constrained
    LMOs" (arXiv 2502.07529, 2025).
    """

    blocks: ClassVar[Blocks] = "columns"


def _length(of: Blocks, x: Array, axis_name: AxisName) -> int:
    """Number of entries of a line."""
    return x.shape[-1] if of == "rows" else row_count(x, axis_name)
