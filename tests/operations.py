"""What the tests of manifolds and of directions run and assert alike, in float32."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from manifold_optax.geometry import Manifold

EPS = float(np.finfo(np.float32).eps)
SHAPE = (8, 5)


class Operations(NamedTuple):
    """What a manifold makes of a matrix x and a vector v, computed in float32."""

    point: NDArray[np.float64]
    """Projection of x."""
    residual: NDArray[np.float64]
    """Distance of x from the manifold."""
    tangent: NDArray[np.float64]
    """Tangent part of v at the point."""
    moved: NDArray[np.float64]
    """Retraction of the step v from the point."""


def operate(manifold: Manifold, x: ArrayLike, v: ArrayLike) -> Operations:
    """All operations of a manifold; one compilation for each manifold and shape."""
    found = _operate(manifold, jnp.asarray(x, jnp.float32), jnp.asarray(v, jnp.float32))
    return Operations(*(np.asarray(part, np.float64) for part in found))


@functools.partial(jax.jit, static_argnums=0)
def _operate(manifold: Manifold, x: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
    point = manifold.project(x)
    return (
        point,
        manifold.residual(x),
        manifold.to_tangent(point, v),
        manifold.retract(point, v),
    )


def scale_cases(g: ArrayLike, normal: ArrayLike) -> NDArray[np.float64]:
    """Gradients for `assert_no_scale`: `g` in three scales, 0, a normal one, NaN."""
    g, normal = np.asarray(g), np.asarray(normal)
    return np.stack([g, 1e-20 * g, 1e15 * g, 0 * g, normal, np.full(g.shape, np.nan)])


def assert_no_scale(directions: ArrayLike, atol: float) -> None:
    """Asserts what the directions for `scale_cases` must be."""
    plain, small, large, zero, nothing, bad = np.asarray(directions)
    np.testing.assert_allclose(small, plain, atol=atol)
    np.testing.assert_allclose(large, plain, atol=atol)
    assert not zero.any()
    assert not nothing.any()
    assert np.isnan(bad).all()
