"""Sets of inputs that a certificate may be declared on: points in them and projections.

Every set is one of arrays whose first axis holds examples.
"""

import dataclasses
import math
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array, numpy as jnp

from manifold_optax import modular


class Domain(Protocol):
    """A set of inputs.

    Attributes:
        like: shape and dtype of the inputs.
    """

    @property
    def like(self) -> jax.ShapeDtypeStruct: ...

    @property
    def scale(self) -> float:
        """The L2 norm of a typical example, relative to the middle of the set."""
        ...

    def declared(self) -> Any:
        """The set as the library takes it."""
        ...

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        """A random point of the set."""
        ...

    def nearest(self, x: Array, margin: Array | float = 0.0) -> Array:
        """A point of the set near `x`; with a margin, moves of that length stay inside.

        Points of the set stay where they are if `margin` is 0.
        """
        ...


def lengths(x: Array) -> Array:
    """The L2 norm of each example, with axes of size 1; its slope at 0 is 0."""
    square = jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True)
    return _root(square)


def norms(x: Array) -> Array:
    """The L2 norm over the last axis, which goes; its slope at 0 is 0."""
    return _root(jnp.sum(jnp.square(x), axis=-1))


def _root(square: Array) -> Array:
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


@dataclasses.dataclass(frozen=True)
class EntryBox:
    """Entries between two numbers."""

    like: jax.ShapeDtypeStruct
    low: float = 0.0
    high: float = 1.0

    @property
    def scale(self) -> float:
        return (self.high - self.low) / 2 * math.sqrt(math.prod(self.like.shape[1:]))

    def declared(self) -> Any:
        return modular.Box(self.like, self.low, self.high)

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(self.low, self.high, self.like.shape)

    def nearest(self, x: Array, margin: Array | float = 0.0) -> Array:
        return jnp.clip(x, self.low + margin, self.high - margin)


@dataclasses.dataclass(frozen=True)
class Ball:
    """A Euclidean ball for every example, around `center` times ones."""

    like: jax.ShapeDtypeStruct
    radius: float
    center: float = 0.0

    @property
    def scale(self) -> float:
        return self.radius

    def declared(self) -> Any:
        center = np.full(self.like.shape, self.center, np.float32)
        return modular.L2Ball(self.like, self.radius, center if self.center else None)

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        x = rng.normal(size=self.like.shape)
        axes = tuple(range(1, x.ndim))
        x /= np.sqrt(np.sum(np.square(x), axis=axes, keepdims=True))
        return self.center + self.radius * rng.uniform() * x

    def nearest(self, x: Array, margin: Array | float = 0.0) -> Array:
        moved = x - self.center
        return self.center + at_most(moved, lengths(moved), self.radius - margin)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """An RMS over the last axis of at most `radius`."""

    like: jax.ShapeDtypeStruct
    radius: float

    @property
    def scale(self) -> float:
        return self.radius * math.sqrt(math.prod(self.like.shape[1:]))

    def declared(self) -> Any:
        return modular.RmsBall(self.like, self.radius)

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        x = rng.normal(size=self.like.shape)
        x /= np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True))
        return self.radius * rng.uniform(0.2, 1, (*x.shape[:-1], 1)) * x

    def nearest(self, x: Array, margin: Array | float = 0.0) -> Array:
        # A move of this L2 norm changes the norm of a token by as much at most.
        largest = self.radius * math.sqrt(self.like.shape[-1]) - margin
        return at_most(x, norms(x)[..., None], largest)


@dataclasses.dataclass(frozen=True)
class Everything:
    """All arrays of a shape; points are drawn with entries of about `size`."""

    like: jax.ShapeDtypeStruct
    size: float = 1.0

    @property
    def scale(self) -> float:
        return self.size * math.sqrt(math.prod(self.like.shape[1:]))

    def declared(self) -> Any:
        return self.like

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        return self.size * rng.normal(size=self.like.shape)

    def nearest(self, x: Array, margin: Array | float = 0.0) -> Array:
        del margin
        return x


def at_most(x: Array, size: Array, largest: Array | float) -> Array:
    """`x`, made shorter where its size is above the largest."""
    return x * jnp.minimum(1, largest / jnp.where(size > 0, size, 1))
