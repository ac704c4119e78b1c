from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
import oracles
from transforms.draws import apply, blocks_of, draw_pair

# A few float32 roundings of inner products of a dozen terms of order 1.
ROUNDING = 2e-6

MANIFOLDS = [mo.Stiefel(), mo.Stiefel(2.0), mo.Stiefel("rms"), mo.Sphere(3.0)]
MANIFOLDS += [mo.Sphere("rms"), mo.Sphere("kept"), mo.Euclidean()]
SHAPES = [(6, 3), (2, 3, 6)]


def tangent(manifold, point, update, axes: Any = mo.STACKED):
    return apply(mo.tangent_project, manifold, point=point, update=update, axes=axes)


def normal_part(manifold, point, update):
    """What a tangent vector does not have: the derivative of the constraint."""
    tall = point if point.shape[-2] >= point.shape[-1] else point.mT
    moved = update if tall is point else update.mT
    if isinstance(manifold, mo.Stiefel):
        return tall.mT @ moved + moved.mT @ tall
    if isinstance(manifold, mo.Sphere):
        return np.sum(np.asarray(point * update), axis=(-2, -1))
    return np.zeros(())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_the_result_is_tangent_and_the_rest_is_orthogonal_to_it(rng, manifold, shape):
    point, update = draw_pair(rng, manifold, shape)
    found = tangent(manifold, point, update)
    size = np.abs(point).max()
    np.testing.assert_allclose(
        normal_part(manifold, point, found), 0, atol=6 * ROUNDING * size
    )
    products = np.sum(np.asarray(found * (update - found)), axis=(-2, -1))
    np.testing.assert_allclose(products, 0, atol=10 * ROUNDING)
    again = tangent(manifold, point, found)
    np.testing.assert_allclose(again, found, rtol=0, atol=ROUNDING)


def test_on_the_stiefel_manifold_it_is_the_formula_of_the_book(rng):
    point, update = draw_pair(rng, mo.Stiefel(), (6, 3))
    expected = oracles.stiefel_tangent(point, update)
    found = tangent(mo.Stiefel(), point, update)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("axis", [-1, -2])
def test_blocks_of_a_split_are_projected_one_by_one(rng, axis):
    shape, manifold = ((2, 6, 7), (2, 7, 6))[axis == -2], mo.Stiefel("rms")
    axes = mo.Split((4, 3), axis=axis)
    point, update = draw_pair(rng, manifold, shape, axes)
    found = blocks_of(tangent(manifold, point, update, axes), axes)
    points, updates = blocks_of(point, axes), blocks_of(update, axes)
    for block, at, vector in zip(found, points, updates, strict=True):
        # The same arithmetic, in another stack.
        np.testing.assert_allclose(block, tangent(manifold, at, vector), atol=1e-6)


def test_updates_keep_their_dtype(rng):
    point, update = draw_pair(rng, mo.Sphere(), (6, 3))
    found = tangent(mo.Sphere(), point, update.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16


def test_after_momentum_it_transports_the_average(rng):
    manifold = mo.Stiefel()
    tx: Any = optax.chain(mo.momentum(0.9), mo.tangent_project(manifold))
    point, update = draw_pair(rng, manifold, (6, 3))
    params = {"w": point}
    _, state = tx.update({"w": update}, tx.init(params), params)
    other, update = draw_pair(rng, manifold, (6, 3))
    updates, _ = tx.update({"w": update}, state, {"w": other})
    left = normal_part(manifold, other, updates["w"])
    np.testing.assert_allclose(left, 0, atol=ROUNDING)
