"""Momentum carried from one dtype to another."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from manifold_optax.states import (
    check_state_format,
    momentum_from,
    momentum_to,
    state_digest,
    state_format,
)

DTYPES = ("bfloat16", "bfloat16+int8", "int8")


def average_of(rng: Any) -> Any:
    return {"w": jnp.asarray(rng.standard_normal((2, 64)), jnp.float32)}


def kept(dtype: str | None) -> Any:
    return optax.chain(
        mo.momentum(0.9, dtype=dtype), mo.scale_by_row_rms(), optax.scale(-0.1)
    )


def trained(rng: Any, dtype: str | None) -> Any:
    """A state after an update, with row averages beside the momentum."""
    gradient, tx = average_of(rng), kept(dtype)
    return jax.jit(tx.update)(gradient, tx.init(gradient))[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_way_to_float32_and_back_changes_nothing(rng: Any, dtype: str) -> None:
    state = trained(rng, dtype)
    wide = momentum_to(state, None)
    assert wide[0].average["w"].dtype == jnp.float32
    np.testing.assert_array_equal(wide[0].average["w"], state[0].read()["w"])
    assert state_digest(momentum_to(wide, dtype)) == state_digest(state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_momentum_is_converted(rng: Any, dtype: str) -> None:
    state = trained(rng, None)
    small = momentum_to(state, dtype)
    assert state_digest(small[1:]) == state_digest(state[1:])
    assert int(small[0].count) == 1
    check_state_format(state_format(small), kept(dtype).init(average_of(rng)))
    # To nearest: half of 1/127 of the largest entry is the coarsest.
    exact = np.asarray(state[0].average["w"])
    off = np.abs(np.asarray(small[0].read()["w"]) - exact).max()
    assert off <= np.abs(exact).max() / 127 * 0.5001


@pytest.mark.parametrize("dtype", DTYPES)
def test_adam_and_back(rng: Any, dtype: str) -> None:
    params = average_of(rng)
    adam: Any = optax.scale_by_adam(b1=0.9)
    _, old = adam.update(params, adam.init(params))
    ours: Any = mo.momentum(0.9, dtype=dtype).init(params)
    state: Any = momentum_from(old, ours)
    assert int(state.count) == 1
    assert state_digest(state) == state_digest(
        ours.written(old.mu)._replace(count=old.count)
    )
    back: Any = momentum_from(state, adam.init(params), allow_missing=True)
    assert back.mu["w"].dtype == jnp.float32


def test_a_state_restored_as_numpy_is_read(rng: Any) -> None:
    state = trained(rng, "int8")[0]
    restored = jax.tree.map(np.asarray, state)
    wide: Any = momentum_to(restored, None)
    np.testing.assert_array_equal(wide.average["w"], state.read()["w"])


@pytest.mark.parametrize("old", [None, *DTYPES])
@pytest.mark.parametrize("new", [None, *DTYPES])
def test_the_check_says_how_to_convert(rng: Any, old: Any, new: Any) -> None:
    params = average_of(rng)
    saved = state_format(kept(old).init(params))
    if old == new:
        check_state_format(saved, kept(new).init(params))
        return
    with pytest.raises(ValueError, match=r"mo\.states\.momentum_to\(old_state, dtype"):
        check_state_format(saved, kept(new).init(params))


def test_other_differences_are_not_taken_for_it(rng: Any) -> None:
    params = average_of(rng)
    saved = state_format(kept("int8").init(params))
    with pytest.raises(ValueError, match="What to do") as error:
        check_state_format(saved, kept(None).init({"w": jnp.ones((4, 64))}))
    assert "momentum_to" not in str(error.value)


def test_a_state_without_our_momentum_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no average of mo\.momentum.*momentum_from"):
        momentum_to(optax.adam(0.1).init({"w": jnp.ones(2)}), "int8")
