"""Sets of inputs for which a certificate holds."""

import dataclasses
import math
from typing import Any, TypeAlias

import jax
import numpy as np

from manifold_optax._checks import require_in_range
from manifold_optax.modular._bounds._mixed_norm import (
    mixed_norm,
    MixedNorm,
    natural_norm,
    ratio,
)
from manifold_optax.modular._bounds._sizes import (
    constant_size,
    Known,
    no_facts,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """All arrays with entries between two limits: images of pixels in [0, 1], say.

    Args:
        like: an array or `jax.ShapeDtypeStruct` of the shape and dtype of the input.
        low: least entries: a number, or an array that broadcasts to the shape.
        high: largest entries.

    Raises:
        ValueError: for limits that are not finite, or in the wrong order.

    Example:
        >>> import jax.numpy as jnp
        >>> from manifold_optax import modular
        >>> images = modular.Box(jnp.zeros((1, 28, 28)), 0.0, 1.0)
    """

    like: Any
    low: Any
    high: Any

    def __post_init__(self) -> None:
        low, high = np.asarray(self.low), np.asarray(self.high)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError("The limits of a Box must be finite numbers.")
        if (low > high).any():
            raise ValueError(f"A Box needs low <= high, got {self.low}, {self.high}.")

    def size(self, norm: MixedNorm) -> float:
        """The largest norm in the set."""
        most = np.maximum(np.abs(self.low), np.abs(self.high))
        if most.ndim == 0:
            return float(most) * norm.of_ones
        return constant_size(np.broadcast_to(most, norm.shape), norm)


@dataclasses.dataclass(frozen=True, eq=False)
class L2Ball:
    """All arrays whose examples have a Euclidean norm of at most the radius.

    Args:
        like: an array or `jax.ShapeDtypeStruct` of the shape and dtype of the input.
            Examples lie along its first axis; an array of one axis is one example.
        radius: in `[0, inf)`.
        center: the center, an array that broadcasts to the shape; `None`: 0.

    Raises:
        ValueError: for a radius out of its range.
    """

    like: Any
    radius: float
    center: Any = None

    def __post_init__(self) -> None:
        require_in_range("radius", self.radius, "[0, inf)")

    def size(self, norm: MixedNorm) -> float:
        """The largest norm in the set, by the triangle inequality."""
        around = 0.0
        if self.center is not None:
            center = np.asarray(self.center, np.float64)
            around = constant_size(np.broadcast_to(center, norm.shape), norm)
        return around + ratio(norm, example_norm(norm.shape)) * self.radius


@dataclasses.dataclass(frozen=True, eq=False)
class RmsBall:
    """All arrays whose vectors along the last axis have an RMS of at most the radius.

    Args:
        like: an array or `jax.ShapeDtypeStruct` of the shape and dtype of the input.
        radius: in `[0, inf)`.

    Raises:
        ValueError: for a radius out of its range.
    """

    like: Any
    radius: float

    def __post_init__(self) -> None:
        require_in_range("radius", self.radius, "[0, inf)")

    def size(self, norm: MixedNorm) -> float:
        """The largest norm in the set."""
        natural = natural_norm(norm.shape)
        return ratio(norm, natural) * self.radius * math.sqrt(natural.count("o"))


Domain: TypeAlias = Box | L2Ball | RmsBall
"""A set of inputs."""


def is_domain(x: Any) -> bool:
    """Whether a leaf of the inputs is a set; else it stands for all of its shape."""
    return isinstance(x, Domain)


def example_norm(shape: tuple[int, ...]) -> MixedNorm:
    """The Euclidean norm of an example, the largest over the first axis."""
    if len(shape) < 2:
        return natural_norm(shape)
    return mixed_norm(shape, "b" + "o" * (len(shape) - 1))


def shape_of(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an input or of the members of a set."""
    like = x.like if is_domain(x) else x
    return jax.ShapeDtypeStruct(
        np.shape(like), jax.dtypes.canonicalize_dtype(_dtype(like))
    )


def known_input(x: Any, shape: jax.ShapeDtypeStruct) -> Known:
    """What the analysis knows of an input."""
    moves = jax.numpy.issubdtype(shape.dtype, jax.numpy.inexact)
    if isinstance(x, Domain):
        return Known(x.size, inputs=True, moves=moves)
    return Known(no_facts, inputs=True, moves=moves)


def _dtype(like: Any) -> Any:
    return like.dtype if hasattr(like, "dtype") else np.asarray(like).dtype
