"""How large weights and steps of an atom are, as bounds of mixed norms of its leaf."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from manifold_optax.geometry import (
    Ball,
    ColumnRms,
    Frobenius,
    L1,
    Max,
    Norm,
    Oblique,
    RmsToRms,
    RowRms,
    Spectral,
    SpectralSphere,
    Sphere,
    Stiefel,
)
from manifold_optax.matrices import Axes, OUT_IN, Split, STACKED
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._bounds._mixed_norm import (
    Factors,
    joined,
    mixed_norm,
    MixedNorm,
)
from manifold_optax.modular._bounds._sizes import Fact
from manifold_optax.roles import EMBEDDING, VECTOR


def unit_ball(atom: Atom, shape: tuple[int, ...]) -> tuple[Fact, ...]:
    """Bounds of a step of the leaf, where each of its matrices has norm at most 1.

    Args:
        atom: with its axes and norm.
        shape: of the whole leaf, stacked layers and heads included.

    Returns:
        Facts; the least bound that follows from any of them holds.

    Raises:
        ValueError: for a norm whose ball says nothing about mixed norms.
    """
    return _facts(atom, shape, _of_norm)


def weights(atom: Atom, shape: tuple[int, ...]) -> tuple[Fact, ...]:
    """Bounds of the leaf itself: those of its manifold, where it is bounded.

    In the Euclidean space, and where no bound of a manifold is known, the weights are
    taken to lie in the unit ball of their norm.
    """
    return _facts(atom, shape, _of_manifold)


def _facts(
    atom: Atom,
    shape: tuple[int, ...],
    bound: Callable[[Atom, int, int], tuple[str, float]],
) -> tuple[Fact, ...]:
    """What a bound of each matrix, by its inputs and outputs, says of the leaf."""
    if atom.role == VECTOR or not shape:
        return (Fact(mixed_norm(shape, "b" * len(shape)), 1.0),)
    axes = atom.axes or (OUT_IN if atom.role == EMBEDDING else STACKED)
    inputs, outputs = _sides(axes, len(shape))
    fan_in = math.prod(shape[k] for k in inputs)
    fan_out = math.prod(shape[k] for k in outputs)
    blocks: tuple[int, ...] = ()
    if isinstance(axes, Split):
        fan_in, fan_out, blocks = _block(axes, shape, inputs, fan_in, fan_out)
    marks, radius = bound(atom, fan_in, fan_out)
    whole = _norm(shape, inputs, outputs, marks)
    if not blocks:
        return (Fact(whole, radius),)
    axis = axes.axis % len(shape)  # type: ignore[union-attr]
    return _split(whole, axis, blocks, radius, atom)


def _sides(axes: Axes, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a leaf that are inputs, and those that are outputs."""
    named = axes.axes if isinstance(axes, Split) else axes
    return _positive(named.reduction_axis, rank), _positive(named.output_axis, rank)


def _positive(axes: Sequence[int] | int, rank: int) -> tuple[int, ...]:
    numbers = (axes,) if isinstance(axes, int) else axes
    return tuple(axis % rank for axis in numbers)


def _block(
    split: Split,
    shape: tuple[int, ...],
    inputs: tuple[int, ...],
    fan_in: int,
    fan_out: int,
) -> tuple[int, int, tuple[int, ...]]:
    """The sizes of one block, the largest, and the sizes of all along the axis."""
    axis = split.axis % len(shape)
    largest = max(split.sizes)
    if axis in inputs:
        return fan_in // shape[axis] * largest, fan_out, split.sizes
    return fan_in, fan_out // shape[axis] * largest, split.sizes


def _of_manifold(atom: Atom, fan_in: int, fan_out: int) -> tuple[str, float]:
    """The marks of the input and the output axes of a weight, and its size."""
    manifold = atom.manifold
    if isinstance(manifold, Ball):
        within = dataclasses.replace(atom, norm=manifold.norm)
        marks, radius = _of_norm(within, fan_in, fan_out)
        return marks, radius * manifold.radius
    marks = None
    if isinstance(manifold, Stiefel | SpectralSphere):
        marks = "io"
    elif isinstance(manifold, Sphere):
        marks = "oo"
    elif isinstance(manifold, Oblique):
        marks = "ob" if manifold.of == "rows" else "bo"
    if marks is None or manifold.size == "kept":
        return _of_norm(atom, fan_in, fan_out)
    return marks, float(manifold.scale_of(jnp.zeros(()), fan_out, fan_in))


def _of_norm(atom: Atom, fan_in: int, fan_out: int) -> tuple[str, float]:
    """The marks of the input and the output axes of a step, and the radius."""
    norm: Norm = atom.norm
    if isinstance(norm, RmsToRms):
        return "io", math.sqrt(fan_out / max(1, fan_in))
    if isinstance(norm, Spectral):
        return "io", 1.0
    if isinstance(norm, Frobenius | L1):
        return "oo", 1.0
    if isinstance(norm, RowRms):
        return "ob", math.sqrt(fan_in)
    if isinstance(norm, ColumnRms):
        return "bo", math.sqrt(fan_out)
    if isinstance(norm, Max):
        return "bb", 1.0
    raise ValueError(
        f"The norm {norm} of {atom.path!r} has no known bound for what a step does to "
        "the output; give its rule one of RmsToRms, Spectral, Frobenius, RowRms, "
        "ColumnRms, Max."
    )


def _norm(
    shape: tuple[int, ...],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    marks: str,
) -> MixedNorm:
    by_axis = {**dict.fromkeys(inputs, marks[0]), **dict.fromkeys(outputs, marks[1])}
    return mixed_norm(shape, "".join(by_axis.get(k, "b") for k in range(len(shape))))


def _split(
    whole: MixedNorm,
    axis: int,
    sizes: tuple[int, ...],
    radius: float,
    atom: Atom,
) -> tuple[Fact, ...]:
    """Bounds of blocks along one axis.

    Of one size: each has the bound. Of several: their common divisor, and all together.
    """
    mark = whole.axes[axis][0][1] if whole.axes[axis] else "b"
    common = math.gcd(*sizes)

    def with_axis(factors: Factors) -> MixedNorm:
        return MixedNorm((*whole.axes[:axis], factors, *whole.axes[axis + 1 :]))

    total = sum(sizes)
    each = with_axis(joined([(total // common, "b"), (common, mark)]))
    if len(set(sizes)) == 1:
        return (Fact(each, radius),)
    together = math.sqrt(sum(size / max(sizes) for size in sizes))
    if not isinstance(atom.norm, RmsToRms):
        together = math.sqrt(len(sizes))
    return (
        Fact(each, radius),
        Fact(with_axis(joined([(total, mark)])), radius * together),
    )
