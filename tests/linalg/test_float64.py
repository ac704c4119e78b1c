"""Float64 inside float32 programs, through every transformation of JAX that is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.linalg._float64 import in_float64
from manifold_optax.linalg._reductions import gram
from manifold_optax.linalg._square_root import eigh_root


def small_root(x):
    """Smallest eigenvalue of the root of `xᵀx`: in float32 it would be noise."""
    return eigh_root(gram(x), epsilon=1e-9).values[0]


smallest = in_float64(small_root)


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.standard_normal((2, 3, 6, 4)))[0]
    return jnp.asarray(left * np.array([1.0, 1.0, 1.0, 1e-5]), jnp.float32)


WAYS = {
    "eager": lambda x: jnp.stack([jnp.stack([smallest(m) for m in row]) for row in x]),
    "jit of vmap": jax.jit(jax.vmap(jax.vmap(smallest))),
    "vmap of jit": jax.vmap(jax.vmap(jax.jit(smallest))),
    "vmap of map": jax.vmap(jax.jit(lambda row: jax.lax.map(smallest, row))),
    "vmap of cond": jax.vmap(
        jax.vmap(jax.jit(lambda m: jax.lax.cond(m[0, 0] > 9, jnp.max, smallest, m)))
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_small_singular_values_survive_the_square(x, way):
    found = WAYS[way](x)
    assert found.dtype == jnp.float32
    assert found.shape == (2, 3)
    # Rounding of the float32 input, 1e-7 of the largest (seen: 1e-8).
    np.testing.assert_allclose(found, 1e-5, atol=1e-7)


def test_float32_alone_does_not_see_them(x):
    noise = jax.vmap(jax.vmap(small_root))(x)
    assert np.abs(np.asarray(noise) - 1e-5).max() > 1e-6


def test_float64_comes_back_as_float64(x64, x):
    wide = jnp.asarray(x[0, 0], jnp.float64)
    assert smallest(wide).dtype == jnp.float64
    assert smallest(wide) == small_root(wide)


def test_unbatched_arguments_stay_so():
    product = in_float64(lambda x, y: x @ y)
    found = jax.vmap(jax.jit(product), in_axes=(0, None))(jnp.ones((3, 2)), jnp.ones(2))
    np.testing.assert_array_equal(found, [2, 2, 2])


def test_gradients_are_those_of_float64(x):
    def length(x):
        return jnp.sqrt(jnp.sum(x**2))

    expected = x[0, 0] / jnp.linalg.norm(x[0, 0])
    for gradient in (
        jax.grad(in_float64(length))(x[0, 0]),
        jax.jit(jax.grad(jax.jit(in_float64(length))))(x[0, 0]),
        jax.vmap(jax.grad(jax.jit(in_float64(length))))(x[0])[0],
    ):
        assert gradient.dtype == jnp.float32
        # One rounding of entries below 1 (seen: 0).
        np.testing.assert_allclose(gradient, expected, atol=1e-7)
