"""Ways to see a leaf as a batch of matrices, and plain NumPy that does the same."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

import manifold_optax as mo

Dims = optax.contrib.MuonDimensionNumbers


class Example(NamedTuple):
    """A leaf shape, its axes as the library takes them, and as NumPy needs them."""

    shape: tuple[int, ...]
    axes: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def batch(self) -> tuple[int, ...]:
        named = (*self.inputs, *self.outputs)
        return tuple(axis for axis in range(len(self.shape)) if axis not in named)

    @property
    def window_axis(self) -> int | None:
        if not isinstance(self.axes, mo.Split):
            return None
        return self.axes.axis % len(self.shape)

    def blocks(self, leaf: np.ndarray) -> list[np.ndarray]:
        if self.window_axis is None:
            return [leaf]
        ends = np.cumsum(self.axes.sizes)[:-1]
        return np.split(leaf, ends, axis=self.window_axis)

    def each(
        self, leaf: np.ndarray, function: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """`function` of every matrix [fan_in, fan_out], one by one."""
        done = []
        for block in self.blocks(leaf):
            order = (*self.batch, *self.inputs, *self.outputs)
            sizes = [block.shape[axis] for axis in order]
            fan_in = math.prod(block.shape[axis] for axis in self.inputs)
            fan_out = math.prod(block.shape[axis] for axis in self.outputs)
            flat = block.transpose(order).reshape(-1, fan_in, fan_out)
            flat = np.stack([function(matrix) for matrix in flat])
            done.append(flat.reshape(sizes).transpose(np.argsort(order)))
        axis = self.window_axis
        return done[0] if axis is None else np.concatenate(done, axis=axis)

    def sums(self, leaf: np.ndarray) -> np.ndarray:
        """The sum of every matrix, `[*batch]` or `[*batch, blocks]`."""
        axes = (*self.inputs, *self.outputs)
        parts = [block.sum(axis=axes) for block in self.blocks(leaf)]
        return parts[0] if self.window_axis is None else np.stack(parts, axis=-1)


EXAMPLES = {
    "kernel": Example((6, 4), mo.STACKED, (0,), (1,)),
    "wide": Example((4, 6), mo.STACKED, (0,), (1,)),
    "square": Example((4, 4), mo.STACKED, (0,), (1,)),
    "column": Example((5, 1), mo.STACKED, (0,), (1,)),
    "row": Example((1, 5), mo.STACKED, (0,), (1,)),
    "torch": Example((6, 4), Dims(-1, -2), (1,), (0,)),
    "layers": Example((3, 6, 4), mo.STACKED, (1,), (2,)),
    "layers and experts": Example((2, 3, 4, 6), mo.STACKED, (2,), (3,)),
    "batch last": Example((6, 4, 3), Dims(0, 1), (0,), (1,)),
    "batch between": Example((4, 3, 6), Dims(0, 2), (0,), (2,)),
    "batches around": Example((2, 6, 3, 4), Dims(-3, -1), (1,), (3,)),
    "heads out": Example((6, 2, 3), Dims(0, (1, 2)), (0,), (1, 2)),
    "heads in": Example((2, 3, 4), Dims((0, 1), 2), (0, 1), (2,)),
    "heads reversed": Example((6, 2, 3), Dims(0, (-1, -2)), (0,), (2, 1)),
    "convolution": Example((3, 2, 2, 5), Dims((0, 1, 2), 3), (0, 1, 2), (3,)),
    "convolutions": Example((3, 2, 2, 4, 5), mo.CONV, (1, 2, 3), (4,)),
    "interleaved": Example((2, 3, 2, 2, 3), Dims((0, 2), (-1, 1)), (0, 2), (4, 1)),
    "split out": Example((4, 7), mo.Split((4, 2, 1)), (0,), (1,)),
    "split in": Example((7, 4), mo.Split((4, 2, 1), axis=0), (0,), (1,)),
    "split equal": Example((3, 9), mo.Split((3, 3, 3)), (0,), (1,)),
    "split in one": Example((4, 7), mo.Split((7,)), (0,), (1,)),
    "split layers": Example((3, 4, 7), mo.Split((5, 2), axis=2), (1,), (2,)),
    "split torch": Example((7, 4), mo.Split((5, 2), 0, Dims(1, 0)), (1,), (0,)),
    "split around a batch": Example(
        (7, 2, 4), mo.Split((3, 4), axis=-3, axes=Dims(0, -1)), (0,), (2,)
    ),
    # Two periods: folded into a batch, with another one before it and behind it.
    "split repeated": Example((2, 4, 12), mo.Split((4, 2) * 2), (1,), (2,)),
    "split repeated first": Example(
        (12, 3, 4), mo.Split((4, 2) * 2, axis=0, axes=Dims(0, 2)), (0,), (2,)
    ),
    "split heads": Example(
        (4, 5, 2), mo.Split((4, 1), axis=1, axes=Dims(0, (1, 2))), (0,), (1, 2)
    ),
}
