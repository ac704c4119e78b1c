"""Linear maps along the last axis, as few weighted entries of it as each needs.

A rotation of pairs needs two entries of x for each of its results, however many
positions have angles of their own; as matrices these would be thousands.
"""

import dataclasses
import math

import numpy as np

from manifold_optax.modular._computation._constants import MOST_NUMBERS

_MOST_MULTIPLICATIONS = 2e9
"""For exact norms: about a second; above it, a bound by row and column sums."""

_ROUNDING = 1e-6
"""A bound that exceeds the largest column this little is taken as it is."""


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Results that are sums of weighted entries of the last axis of a root.

    Attributes:
        leading: how many axes come before the last one of the root; nothing moves
            along them, but weights may differ.
        sources: the index of an entry for each term and each place; its first axis
            counts the terms, and the others are those after the leading ones.
        weights: by what it is multiplied, with the leading axes after the first; they
            have size 1 where the weights do not differ.
    """

    leading: int
    sources: np.ndarray
    weights: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes after the leading ones."""
        return self.sources.shape[1:]

    @property
    def fits(self) -> bool:
        """Whether it is small enough to compute with."""
        return max(self.weights.size, self.sources.size) <= MOST_NUMBERS

    def placed(self, shape: tuple[int, ...]) -> "Weighted":
        """A single number in every place, or what has the shape already."""
        if self.shape == shape:
            return self
        ones = (1,) * len(shape)
        sources = self.sources.reshape(-1, *ones)
        weights = self.weights.reshape(*self.weights.shape[: 1 + self.leading], *ones)
        return Weighted(
            self.leading,
            np.broadcast_to(sources, (len(sources), *shape)),
            np.broadcast_to(weights, (*weights.shape[: 1 + self.leading], *shape)),
        )

    def reshaped(self, shape: tuple[int, ...]) -> "Weighted":
        """The same results in another shape."""
        before = self.weights.shape[: 1 + self.leading]
        return dataclasses.replace(
            self,
            sources=self.sources.reshape(-1, *shape),
            weights=self.weights.reshape(*before, *shape),
        )

    def scaled(self, factor: np.ndarray) -> "Weighted":
        """Each result times a number; `factor` has the axes of the results, or none."""
        return dataclasses.replace(self, weights=self.weights * factor)


def entries(leading: int, size: int) -> Weighted:
    """The root itself."""
    sources = np.arange(size)[None]
    return Weighted(leading, sources, np.ones((1,) * (1 + leading) + (size,)))


def nothing(leading: int, shape: tuple[int, ...]) -> Weighted:
    """The map to 0."""
    sources = np.zeros((1, *shape), int)
    return Weighted(leading, sources, np.zeros((1,) * (1 + leading) + shape))


def total(a: Weighted, b: Weighted) -> Weighted | None:
    """The sum of two maps; `None` if it is too large."""
    sources: dict[bytes, np.ndarray] = {}
    weights: dict[bytes, np.ndarray] = {}
    for x in (a, b):
        for source, weight in zip(x.sources, x.weights, strict=True):
            key = source.tobytes()
            sources[key] = np.asarray(source)
            weights[key] = np.asarray(weights.get(key, 0.0) + weight)
    return stacked(a.leading, list(sources.values()), list(weights.values()))


def stacked(
    leading: int, sources: list[np.ndarray], weights: list[np.ndarray]
) -> Weighted | None:
    """A map of its terms, whose leading axes may have size 1 in some."""
    shape = np.broadcast_shapes(*(weight.shape for weight in weights))
    if len(weights) * math.prod(shape) > MOST_NUMBERS:
        return None
    whole = [np.broadcast_to(weight, shape) for weight in weights]
    return Weighted(leading, np.stack(sources), np.stack(whole))


def joined(parts: list[Weighted], axis: int) -> Weighted | None:
    """Maps side by side along an axis after the leading ones."""
    terms, leading = max(len(part.sources) for part in parts), parts[0].leading
    before = np.broadcast_shapes(
        *(part.weights.shape[1 : 1 + leading] for part in parts)
    )
    sources, weights = [], []
    for part in parts:
        more = terms - len(part.sources)
        wide = np.broadcast_to(part.weights, (len(part.sources), *before, *part.shape))
        sources.append(np.pad(part.sources, [(0, more)] + [(0, 0)] * len(part.shape)))
        weights.append(np.pad(wide, [(0, more)] + [(0, 0)] * (wide.ndim - 1)))
    whole = Weighted(
        leading,
        np.concatenate(sources, 1 + axis),
        np.concatenate(weights, 1 + leading + axis),
    )
    return whole if whole.fits else None


def operator_norm(x: Weighted, size: int) -> float:
    """The largest operator norm over the leading axes, or a bound from above.

    Args:
        x: a map to one axis.
        size: the size of the root's last axis.

    Returns:
        The exact norm, up to rounding, where the map falls into blocks that are small
        or orthogonal; otherwise the root of the product of the largest row sum and the
        largest column sum.
    """
    blocks = _matrices(x, size)
    if blocks is None:
        return _by_sums(x, size)
    return float(max((_norm(block) for block in blocks), default=0.0))


def grams(x: Weighted, size: int) -> list[np.ndarray] | None:
    """The Gram matrices of the blocks of a map; `None` if they are too large."""
    blocks = _matrices(x, size)
    return None if blocks is None else [m.swapaxes(-1, -2) @ m for m in blocks]


def _matrices(x: Weighted, size: int) -> list[np.ndarray] | None:
    """The blocks of a map to one axis, stacked by their shapes."""
    weights = _flat(x)
    rows, columns = _blocks(x.sources, abs(weights).max(1) > 0, size)
    return _dense(x.sources, weights, rows, columns)


def _flat(x: Weighted) -> np.ndarray:
    """The weights with one leading axis."""
    return x.weights.reshape(len(x.sources), -1, *x.shape)


def _blocks(
    sources: np.ndarray, used: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The block of each result and of each entry, named by its first entry."""
    columns, none = np.arange(size), size
    while True:
        rows = np.where(used, columns[sources], none).min(0)
        wanted = columns.copy()
        np.minimum.at(wanted, sources[used], np.broadcast_to(rows, used.shape)[used])
        wanted = wanted[wanted]  # Shortens chains, such as those of a shift by one.
        if np.array_equal(wanted, columns):
            return rows, columns
        columns = wanted


def _dense(
    sources: np.ndarray, weights: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> list[np.ndarray] | None:
    """The blocks as matrices, those of one shape stacked; `None` if too large."""
    names = np.unique(rows[rows < len(columns)])
    heights = np.bincount(rows, minlength=len(columns) + 1)[names]
    widths = np.bincount(columns, minlength=len(columns))[names]
    numbers = heights.astype(float) * widths * weights.shape[1]
    if numbers.sum() > MOST_NUMBERS:
        return None
    row_place, column_place = _places(rows), _places(columns)
    dense = []
    for height, width in sorted(
        set(zip(heights.tolist(), widths.tolist(), strict=True))
    ):
        chosen = names[(heights == height) & (widths == width)]
        index = np.full(len(columns) + 1, -1)
        index[chosen] = np.arange(len(chosen))
        # An unused term has weight 0, and may name an entry of another block.
        at = (index[rows] >= 0) & (columns[sources] == rows)
        shape = (len(chosen), height, width)
        block, row = np.broadcast_arrays(index[rows], row_place)
        place = np.ravel_multi_index(
            (
                np.broadcast_to(block, at.shape)[at],
                np.broadcast_to(row, at.shape)[at],
                column_place[sources][at],
            ),
            shape,
        )
        matrices = [
            np.bincount(place, weight[at], math.prod(shape)).reshape(shape)
            for weight in weights.swapaxes(0, 1)
        ]
        dense.append(np.concatenate(matrices))
    return dense


def _places(names: np.ndarray) -> np.ndarray:
    """For each member of a block: how many members come before it."""
    order = np.argsort(names, kind="stable")
    first = np.searchsorted(names[order], names[order])
    places = np.empty(len(names), int)
    places[order] = np.arange(len(names)) - first
    return places


def _norm(matrices: np.ndarray) -> float:
    """The largest norm of a stack of matrices."""
    if matrices.shape[-1] > matrices.shape[-2]:
        matrices = matrices.swapaxes(-1, -2)
    count = math.prod(matrices.shape[:-2])
    multiplications = count * matrices.shape[-1] ** 2 * matrices.shape[-2]
    sums = abs(matrices).sum(-1).max() * abs(matrices).sum(-2).max()
    if multiplications > _MOST_MULTIPLICATIONS:
        return math.sqrt(sums)
    gram = matrices.swapaxes(-1, -2) @ matrices
    bound = abs(gram).sum(-1).max()
    if bound <= gram.max() * (1 + _ROUNDING):
        return math.sqrt(bound)  # Orthogonal columns, such as those of rotations.
    return math.sqrt(max(np.linalg.eigvalsh(gram).max(), 0.0))


def _by_sums(x: Weighted, size: int) -> float:
    sources, weights = x.sources, _flat(x)
    row = abs(weights).sum(0).max()
    column = np.zeros((weights.shape[1], size))
    for source, weight in zip(sources, weights, strict=True):
        np.add.at(column.T, source, abs(weight).T)
    return math.sqrt(row * column.max())
