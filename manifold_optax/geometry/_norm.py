"""What a norm is, and what one must know of its ball.

`Norm` is enough for a direction: a new norm is a class with `value`, `dual_value` and
`steepest` in a file of its own, and it works on `Euclidean` at once. `BallNorm` adds
what a bound on the norm needs: `Ball(norm)` and `mo.shrink_norm` then work as well.
`BlockNorm` is the base of norms that are the largest length of independent blocks (the
matrix, its rows, its columns, its entries); such a norm names its blocks and has all
of this, and its direction on its own ball is known too.
"""

import abc
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix, PerMatrix
from manifold_optax.geometry._blocks import (
    block_dot,
    block_norm,
    Blocks,
    crosses_rows,
)
from manifold_optax.linalg._reductions import nonzero
from manifold_optax.linalg._scaling import widen

ACTIVE = 1e-4
"""Distance at which a length counts as one on the boundary, over the bound.

A clip in float32 leaves 1e-6, a small step of Muon moves by 1e-3.
"""


class Norm(abc.ABC):
    """A norm on matrices `[*batch, m, n]`; frozen, static, hashable.

    `axis_name` names the mesh axes that split the rows, inside `jax.shard_map`; every
    device then returns the number of the whole matrix.
    """

    @property
    def transposable(self) -> bool:
        """Whether `xᵀ` has the norm of `x`."""
        return True

    @property
    def free_of_shape(self) -> "Norm":
        """Norm that differs from this one by a factor of the shape alone: itself.

        What is relative to a norm (a ball of `(1 − rate)·‖x‖`) is the same for both.
        """
        return self

    @abc.abstractmethod
    def value(self, x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """Norm of each matrix, `[*batch]`, in at least float32."""

    @abc.abstractmethod
    def dual_value(self, gradient: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """Dual norm of each matrix: the largest ⟨a, gradient⟩ over `value(a) ≤ 1`."""

    @abc.abstractmethod
    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """The `a` with `value(a) = 1` and the largest ⟨a, gradient⟩; 0 for 0."""


class BallNorm(Norm):
    """A norm whose unit ball has a known projection and known tangent cones."""

    @abc.abstractmethod
    def project_ball(self, x: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """Nearest matrix of norm at most 1, in the Frobenius norm."""

    @abc.abstractmethod
    def to_cone(
        self, point: Matrix, vector: Matrix, *, axis_name: AxisName = None
    ) -> Matrix:
        """Nearest displacement to `vector` that does not lead out of the unit ball."""

    @abc.abstractmethod
    def excess(self, x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """How far the norm of each matrix is above 1, `[*batch]`; 0 inside the ball."""

    @abc.abstractmethod
    def shrinkage(self, x: Matrix, rate: Array, *, axis_name: AxisName = None) -> Array:
        """What leads from `x` to the nearest matrix of norm `(1 − rate)·value(x)`.

        Args:
            x: one matrix `[m, n]` of any scale, in at least float32.
            rate: number in [0, 1), of the dtype of `x`.
            axis_name: mesh axes over which the rows are split, inside `jax.shard_map`.

        Returns:
            An array like `x` to be added to it.
        """


class BlockNorm(BallNorm):
    """The largest Euclidean length of a block, divided by a number of the shape.

    Subclasses name their `blocks`, and define `unit_length` where it is not 1.
    """

    blocks: ClassVar[Blocks]

    @property
    def transposable(self) -> bool:
        """Whether blocks of `x` are blocks of `xᵀ`: not for rows and columns."""
        return self.blocks in ("matrix", "entries")

    def unit_length(self, x: Array, axis_name: AxisName = None) -> float:
        """Length of a block that has norm 1 on its own; 1 unless redefined."""
        del x, axis_name
        return 1.0

    def lengths(self, x: Array, axis_name: AxisName = None) -> Array:
        """Euclidean length of each block, with the axes kept."""
        return block_norm(x, self.blocks, axis_name)

    def value(self, x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """Largest length of a block over `unit_length`, `[*batch]`."""
        wide = widen(x)
        largest = self._largest(self.lengths(wide, axis_name), axis_name)
        return largest / self.unit_length(wide, axis_name)

    def dual_value(self, gradient: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """Sum of the lengths of the blocks, times `unit_length`, `[*batch]`."""
        wide = widen(gradient)
        total = jnp.sum(self.lengths(wide, axis_name), axis=(-2, -1))
        if axis_name is not None and not crosses_rows(self.blocks):
            total = jax.lax.psum(total, axis_name)
        return total * self.unit_length(wide, axis_name)

    def project_ball(self, x: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """Each block that is too long scaled to length `unit_length`."""
        bound = self.unit_length(x, axis_name)
        return x * (bound / jnp.maximum(self.lengths(x, axis_name), bound))

    def to_cone(
        self, point: Matrix, vector: Matrix, *, axis_name: AxisName = None
    ) -> Matrix:
        """`vector` without the outward part in each block on the boundary."""
        lengths = self.lengths(point, axis_name)
        normal = point / nonzero(lengths)
        products = block_dot(normal, vector, self.blocks, axis_name)
        outward = jnp.maximum(products, 0)
        active = lengths >= (1 - ACTIVE) * self.unit_length(point, axis_name)
        return vector - jnp.where(active, normal * outward, jnp.zeros_like(vector))

    def excess(self, x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """Largest excess of a length, over `unit_length`, `[*batch]`."""
        relative = self.lengths(x, axis_name) / self.unit_length(x, axis_name)
        return self._largest(jnp.maximum(relative - 1, 0), axis_name)

    def shrinkage(self, x: Matrix, rate: Array, *, axis_name: AxisName = None) -> Array:
        """What the projection takes from the blocks that are too long."""
        value = self.value(x, axis_name=axis_name)[..., None, None]
        radius = nonzero((1 - rate) * value)
        unit = x / radius
        return radius * (self.project_ball(unit, axis_name=axis_name) - unit)

    def _largest(self, numbers: Array, axis_name: AxisName) -> Array:
        largest = jnp.max(numbers, axis=(-2, -1), initial=0)
        if axis_name is None or crosses_rows(self.blocks):
            return largest
        return jax.lax.pmax(largest, axis_name)
