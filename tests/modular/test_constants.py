"""Values that depend on no input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.modular._computation._constants import (
    compact_array,
    constant_array,
    constant_number,
    is_constant,
)
from manifold_optax.modular._computation._trace import trace


def outputs(function, x=np.ones(3, np.float32)):  # noqa: B008
    return trace(function, x)[0].outputs


def table(x):
    angle = jnp.arange(16)[:, None] / 10000 ** (jnp.arange(0, 8, 2)[None] / 8)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


CONSTANTS = {
    "table": table,
    "mask": lambda x: jnp.where(jnp.tril(jnp.ones((5, 5), bool)), 0.0, -jnp.inf),
    "reversed sums": lambda x: jnp.cumsum(jnp.arange(5.0))[::-1],
    "eye": lambda x: jnp.eye(4),
    "linspace": lambda x: jnp.linspace(0, 1, 5),
    "powers": lambda x: 2.0 ** -jnp.arange(5),
    "integers": lambda x: jnp.arange(-7, 7) // 2 + jnp.arange(14) % 3,
    "moved": lambda x: table(x).reshape(4, 4, 8).transpose(1, 0, 2)[::2, 1:3],
    "captured": lambda x: jnp.asarray(np.arange(6.0)).reshape(2, 3) * 2,
    "dot": lambda x: jnp.eye(3).dot(jnp.arange(3.0)),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_values(name):
    (value,) = outputs(CONSTANTS[name])
    truth = np.asarray(jax.jit(CONSTANTS[name])(np.ones(3, np.float32)))
    array = constant_array(value)
    assert array is not None
    assert array.dtype == truth.dtype
    # NumPy's cosines and powers differ from XLA's by a few eps of entries up to 15.
    np.testing.assert_allclose(array, truth, rtol=1e-6, atol=1e-6)


def test_what_depends_on_inputs():
    for value in outputs(
        lambda x: (x, x * 0, jnp.arange(3) + x, jnp.zeros(3)[0] * x[0])
    ):
        assert not is_constant(value)
        assert constant_array(value) is None
        assert constant_number(value) is None


def test_broadcasts_cost_nothing():
    (value,) = outputs(lambda x: jnp.broadcast_to(table(x) + 1, (10**6, 16, 8)) * 2)
    array = compact_array(value)
    assert array is not None
    assert array.shape == (1, 16, 8)
    whole = constant_array(value)
    assert whole is not None
    assert whole.shape == (10**6, 16, 8)


def test_too_large():
    (value,) = outputs(lambda x: jnp.arange(10**5)[:, None] * jnp.arange(10**5)[None])
    assert is_constant(value)
    assert constant_array(value) is None


def test_numbers():
    half, equal, mixed, true = outputs(
        lambda x: (jnp.float32(1) / 2, jnp.ones((2, 3)) * 3, jnp.arange(3), jnp.pi > 1)
    )
    assert constant_number(half) == 0.5
    assert constant_number(equal) == 3
    assert constant_number(mixed) is None
    assert constant_number(true) == 1


def test_keys_and_random_numbers():
    key, number = outputs(
        lambda x: (jax.random.key(0), jax.random.normal(jax.random.key(0)))
    )
    assert constant_array(key) is None
    assert constant_array(number) is None
