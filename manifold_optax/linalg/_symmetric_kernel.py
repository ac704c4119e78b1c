"""Pallas kernels that compute one triangle of tiles of a symmetric product.

A tile and its mirror image are written by the program that computes it, so that the
result is symmetric bit for bit. `cuda_product` is for Triton, `tpu_product` for Mosaic;
both accumulate in float32. Triton takes operands in float32, bfloat16 and float16;
Mosaic does not load float16.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Operand = Float[Array, "b n k"]


class Tiling(NamedTuple):
    """Sizes of what one program multiplies at once."""

    tile: int
    """Rows and columns of a tile of the result."""
    depth: int
    """Length of the sums that are added at once."""


CUDA_TILING = {1: Tiling(128, 128), 2: Tiling(128, 64), 4: Tiling(128, 32)}
"""By the bytes of an entry: 96 KiB of shared memory in three stages, with 8 warps.

Source: the tile of the matrix multiplication in Triton's tutorials; not measured.
"""

TPU_TILING = {1: Tiling(256, 512), 2: Tiling(256, 512), 4: Tiling(256, 256)}
"""By the bytes of an entry: 2.5 MiB of VMEM with two buffers of each operand.

Source: a multiple of the 128 × 128 or 256 × 256 entries of the matrix unit; not
measured.
"""


class Epilogue(NamedTuple):
    """What is made of a product before it is written: `alpha·product + beta·addend`."""

    alpha: float = 1.0
    beta: float = 1.0
    """Used with an addend only."""


class Triangle(NamedTuple):
    """The tiles on and below the diagonal as a rectangle of programs.

    Row `r` of the rectangle holds two rows of the triangle that have as many tiles
    together as all others do: from both ends, those that meet in the middle last.
    """

    tiles: int
    """Number of tiles along a side."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the rectangle; together `tiles·(tiles + 1)/2` tiles."""
        return (self.tiles + 1) // 2, self.tiles + self._even

    def tile_of(self, row: Any, column: Any) -> tuple[Any, Any]:
        """Row and column, `row ≥ column`, of the tile of a program."""
        upper = row + self._even
        in_upper = column < upper
        return (
            jnp.where(in_upper, upper - 1, self.tiles - 1 - row),
            jnp.where(in_upper, column, column - upper),
        )

    @property
    def _even(self) -> int:
        return 1 - self.tiles % 2


def cuda_product(
    left: Operand,
    right: Operand,
    addend: Float[Array, "b n n"] | None,
    *,
    epilogue: Epilogue,
    precision: jax.lax.Precision | None,
    dtype: DTypeLike,
    tiling: Tiling | None = None,
    interpret: bool = False,
) -> Float[Array, "b n n"]:
    """Returns the symmetric `alpha·left rightᵀ + beta·addend`, by Triton.

    Args:
        left: of a real floating dtype of at most four bytes, like `right`.
        right: such that `left rightᵀ` is symmetric, but for rounding.
        addend: symmetric, or None.
        epilogue: `alpha` and `beta`.
        precision: that of the products of two tiles.
        dtype: that of the result.
        tiling: sizes of the tiles; by default those of `CUDA_TILING`.
        interpret: whether Pallas's interpreter runs it, on any device.
    """
    tiling = tiling or CUDA_TILING[left.dtype.itemsize]
    size, operands = _padded(left, right, addend, tiling)
    batch, side, length = operands[0].shape
    triangle = Triangle(side // tiling.tile)

    def body(*refs: Any) -> None:
        left_ref, right_ref, *rest, out_ref = refs
        matrix = pl.program_id(0)
        i, j = triangle.tile_of(pl.program_id(1), pl.program_id(2))
        rows = pl.ds(i * tiling.tile, tiling.tile)
        columns = pl.ds(j * tiling.tile, tiling.tile)

        def add(step: Any, total: Array) -> Array:
            inner = pl.ds(step * tiling.depth, tiling.depth)
            parts = left_ref[matrix, rows, inner], right_ref[matrix, columns, inner]
            return total + _product(*parts, precision)

        zero = jnp.zeros((tiling.tile, tiling.tile), jnp.float32)
        found = jax.lax.fori_loop(0, length // tiling.depth, add, zero)
        extra = [ref[matrix, rows, columns] for ref in rest]
        below, above = _both_sides(_finished(found, extra, epilogue), i == j)
        out_ref[matrix, rows, columns] = below.astype(out_ref.dtype)
        out_ref[matrix, columns, rows] = above.astype(out_ref.dtype)

    call = pl.pallas_call(
        body,
        out_shape=_expected(operands, dtype),
        grid=(batch, *triangle.grid),
        name="symmetric_product",
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
        cost_estimate=_cost(*operands),
        interpret=interpret,
    )
    return call(*operands)[:, :size, :size]


def tpu_product(
    left: Operand,
    right: Operand,
    addend: Float[Array, "b n n"] | None,
    *,
    epilogue: Epilogue,
    precision: jax.lax.Precision | None,
    dtype: DTypeLike,
    tiling: Tiling | None = None,
    interpret: bool = False,
) -> Float[Array, "b n n"]:
    """Returns the same as `cuda_product`, by Mosaic.

    The sums run over the last axis of the grid, and finished tiles are copied to their
    two places: a block of the output would have only one.
    """
    tiling = tiling or TPU_TILING[left.dtype.itemsize]
    size, operands = _padded(left, right, addend, tiling)
    batch, side, length = operands[0].shape
    triangle, steps = Triangle(side // tiling.tile), length // tiling.depth
    expected = _expected(operands, dtype)

    def body(*refs: Any) -> None:
        left_ref, right_ref, *rest, out_ref, total_ref, below_ref, above_ref = refs
        matrix, step = pl.program_id(0), pl.program_id(3)
        i, j = triangle.tile_of(pl.program_id(1), pl.program_id(2))

        @pl.when(step == 0)
        def _() -> None:
            total_ref[...] = jnp.zeros_like(total_ref)

        total_ref[...] += _product(left_ref[0], right_ref[0], precision)

        @pl.when(step == steps - 1)
        def _() -> None:
            extra = [ref[0] for ref in rest]
            whole = _finished(total_ref[...], extra, epilogue)
            below, above = _both_sides(whole, i == j)
            below_ref[...] = below.astype(below_ref.dtype)
            above_ref[...] = above.astype(above_ref.dtype)
            rows = pl.ds(i * tiling.tile, tiling.tile)
            columns = pl.ds(j * tiling.tile, tiling.tile)
            tpu.sync_copy(below_ref, out_ref.at[matrix, rows, columns])
            tpu.sync_copy(above_ref, out_ref.at[matrix, columns, rows])

    def part(side_of: int) -> pl.BlockSpec:
        shape = (1, tiling.tile, tiling.depth)
        return pl.BlockSpec(
            shape, lambda b, r, c, k: (b, triangle.tile_of(r, c)[side_of], k)
        )

    own = pl.BlockSpec(
        (1, tiling.tile, tiling.tile), lambda b, r, c, _: (b, *triangle.tile_of(r, c))
    )
    square = functools.partial(tpu.VMEM, (tiling.tile, tiling.tile))
    call = pl.pallas_call(
        body,
        out_shape=expected,
        grid=(batch, *triangle.grid, steps),
        in_specs=[part(0), part(1), own][: len(operands)],
        out_specs=pl.BlockSpec(memory_space=pl.ANY),
        scratch_shapes=[
            square(jnp.float32),
            square(expected.dtype),
            square(expected.dtype),
        ],
        name="symmetric_product",
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        cost_estimate=_cost(*operands),
        interpret=interpret,
    )
    return call(*operands)[:, :size, :size]


def _padded(
    left: Array, right: Array, addend: Array | None, tiling: Tiling
) -> tuple[int, list[Array]]:
    """The side of the result, and the operands with zeros up to whole tiles."""
    side, length = left.shape[1:]
    more, longer = -side % tiling.tile, -length % tiling.depth
    operands = [_pad(left, more, longer)]
    operands.append(operands[0] if right is left else _pad(right, more, longer))
    return side, operands + ([] if addend is None else [_pad(addend, more, more)])


def _expected(operands: Sequence[Array], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """The type of the result, which varies over mesh axes as the operands do."""

    def plain(left: Array, right: Array, *addend: Array) -> Array:
        return sum(addend, jnp.einsum("bik,bjk->bij", left, right)).astype(dtype)

    return jax.eval_shape(plain, *operands)


def _pad(x: Array, rows: int, columns: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns))) if rows or columns else x


def _product(left: Array, right: Array, precision: jax.lax.Precision | None) -> Array:
    """`left rightᵀ` of two tiles: the form of a product that no device transposes."""
    return jax.lax.dot_general(
        left,
        right,
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _finished(total: Array, extra: list[Array], epilogue: Epilogue) -> Array:
    total = total if epilogue.alpha == 1 else epilogue.alpha * total
    return sum((epilogue.beta * x.astype(jnp.float32) for x in extra), total)


def _both_sides(tile: Array, on_diagonal: Array) -> tuple[Array, Array]:
    """A tile and its mirror image; on the diagonal its lower triangle makes both."""
    row = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 0)
    column = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 1)
    turned, apart = tile.T, jnp.logical_not(on_diagonal)
    below = jnp.where(apart | (row >= column), tile, turned)
    above = jnp.where(apart | (row <= column), turned, tile)
    return below, above


def _cost(left: Array, *others: Array) -> pl.CostEstimate:
    """Half the FLOPs of the plain product, and one pass over all arrays."""
    batch, side, length = left.shape
    entries = left.nbytes + sum(x.nbytes for x in others) + 4 * batch * side**2
    return pl.CostEstimate(
        flops=batch * side**2 * length, transcendentals=0, bytes_accessed=entries
    )
