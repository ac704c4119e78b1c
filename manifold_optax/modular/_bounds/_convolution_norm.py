"""The operator norm of a convolution in the Euclidean norm over a whole image.

Along one axis a convolution takes the entries `n` of an image to the entries `m` of the
result by the taps `a n − s m + P` of the kernel (stride s, image dilated by a, padded
by P). With `L = lcm(a, s)` and blocks of `L / a` entries of the image and `L / s` of
the result, it is a convolution without strides, whose taps are matrices: block j
reaches block i by tap j − i. That is the space-to-depth form, here of one axis.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifold_optax.modular._bounds._mixed_norm import joined, MixedNorm


class Tap(NamedTuple):
    """Where one tap of the kernel stands in the space-to-depth form.

    Attributes:
        number: of the tap in the kernel.
        block: j − i, the block of the image less that of the result; from 0 on.
        entry: of the block of the image.
        result: of the block of the result.
    """

    number: int
    block: int
    entry: int
    result: int


class ConvolutionAxis(NamedTuple):
    """A convolution or a moving window along one axis.

    Attributes:
        size: number of taps.
        stride: from one result to the next.
        lhs_dilation: distance of the entries of the image.
        rhs_dilation: distance of the taps.
        image: number of entries of the image.
        padding: zeros before and after the image.
    """

    size: int
    stride: int
    lhs_dilation: int
    rhs_dilation: int
    image: int
    padding: tuple[int, int]

    @property
    def results(self) -> int:
        """The number of windows."""
        low, high = self.padding
        length = self.lhs_dilation * (self.image - 1) + 1 + low + high
        return max(
            0, (length - self.rhs_dilation * (self.size - 1) - 1) // self.stride + 1
        )

    @property
    def meeting(self) -> NDArray[np.int64]:
        """`[result, entry]`: the tap by which an entry counts, −1 where none does."""
        starts = self.stride * np.arange(self.results) - self.padding[0]
        places = self.lhs_dilation * np.arange(self.image) - starts[:, None]
        taps, between = np.divmod(places, self.rhs_dilation)
        return np.where((between == 0) & (taps >= 0) & (taps < self.size), taps, -1)

    @property
    def overlap(self) -> int:
        """How many windows one entry of the image lies in at most.

        They meet it with taps that differ by multiples of the stride.
        """
        step = self.stride // math.gcd(self.stride, self.rhs_dilation)
        return -(-self.size // step)

    @property
    def of_ones(self) -> float:
        """A bound of the norm, Euclidean to Euclidean, where each tap is 1.

        No symbol of nonnegative taps has a larger norm than that at frequency 0.
        """
        counts = np.zeros(self.block)
        for tap in self.taps:
            counts[tap.result, tap.entry] += 1
        return float(np.linalg.norm(counts, 2))

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The taps in the space-to-depth form; some may stand in several places.

        There are none where no tap ever meets an entry: the result is zero.
        """
        return _form(self).taps

    @property
    def block(self) -> tuple[int, int]:
        """How many entries of the result and of the image are one block."""
        return _form(self).block

    @property
    def degree(self) -> int:
        """The degree of the symbol, a trigonometric polynomial."""
        return max((tap.block for tap in self.taps), default=0)

    @property
    def period(self) -> int:
        """The least number of blocks of a ring in which the image does not meet itself.

        On such a ring the convolution is a block circulant matrix, and the convolution
        of the padded image is a part of it.
        """
        return _form(self).period


class _Form(NamedTuple):
    taps: tuple[Tap, ...]
    block: tuple[int, int]
    period: int


@functools.lru_cache(maxsize=4096)
def _form(axis: ConvolutionAxis) -> _Form:
    """The space-to-depth form of a convolution along one axis."""
    size, s, a, d, image, (low, _) = axis
    common = math.gcd(s, d) if a == 1 else 1
    # Windows that move by multiples of the distance of their taps see every
    # `common`-th entry alone.
    first = -(-low // common)
    image = max(1, (low + image - 1) // common - first + 1)
    low, s, d = first, s // common, d // common
    period = math.lcm(s, a)
    entries, outcomes = period // a, period // s
    # Entry n + shift of the image, from here on.
    shift, rest = divmod(low, a)
    found = []
    for result in range(outcomes):
        for index in range(size):
            place, between = divmod(d * index + s * result - rest, a)
            if not between:
                block, entry = divmod(place, entries)
                found.append(Tap(index, block, entry, result))
    start = min((tap.block for tap in found), default=0)
    taps = tuple(tap._replace(block=tap.block - start) for tap in found)
    nearest = shift // entries - max(0, axis.results - 1) // outcomes - start
    farthest = (shift + image - 1) // entries - start
    length = 1 + max((tap.block for tap in taps), default=0)
    block = (outcomes, entries)
    return _Form(taps, block, max(length, length - min(nearest, 0), farthest + 1))


class ConvolutionNorm(NamedTuple):
    """The norm of kernels as operators on images, Euclidean over space and channels.

    Attributes:
        shape: of the kernel.
        strides: of the windows, one a spatial axis.
        lhs_dilation: distances of the entries of the image.
        rhs_dilation: distances of the taps.
        groups: number of groups of channels.
        spec: axes of the kernel: output channels, input channels, space.
        image: sizes of the spatial axes of the image.
        padding: zeros before and after each of them.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    spec: tuple[int, ...]
    image: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def axes(self) -> tuple[ConvolutionAxis, ...]:
        """The spatial axes."""
        sizes = (self.shape[k] for k in self.spec[2:])
        rows = zip(
            sizes, self.strides, self.lhs_dilation, self.rhs_dilation, self.image,
            self.padding, strict=True,
        )  # fmt: skip
        return tuple(ConvolutionAxis(*row) for row in rows)

    @property
    def overlap(self) -> int:
        """How many windows one position of the image lies in at most."""
        return math.prod(axis.overlap for axis in self.axes)

    @property
    def unfolded(self) -> MixedNorm:
        """The operator norm of a window's map to channels, largest over the groups."""
        return unfolded_norm(self.shape, self.spec, self.groups)


def unfolded_norm(shape: Sequence[int], spec: Sequence[int], groups: int) -> MixedNorm:
    """The operator norm of the unfolded kernel, largest over the groups."""
    axes = [joined([(size, "i")]) for size in shape]
    out = spec[0]
    axes[out] = joined([(groups, "b"), (shape[out] // groups, "o")])
    return MixedNorm(tuple(axes))
