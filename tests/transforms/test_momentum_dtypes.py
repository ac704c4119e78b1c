"""How momentum and the presets are told in what to keep an average."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from manifold_optax.states import state_digest

DTYPES = ("bfloat16", "bfloat16+int8", "int8")


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_may_be_given_as_classes_and_strings(dtype):
    params = {"w": jnp.ones((2, 64))}
    found = mo.momentum(0.9, dtype=dtype).init(params)
    if "+" not in dtype:
        same = mo.momentum(0.9, dtype=getattr(jnp, dtype)).init(params)
        assert state_digest(same) == state_digest(found)


@pytest.mark.parametrize("dtype", ["int4", jnp.float32, "float16", 8, "bf16", mo])
def test_another_dtype_is_an_error(unhooked, dtype):
    for make in (mo.momentum, mo.Average):
        with pytest.raises(TypeError, match=r"dtype of momentum must be None .*, got"):
            make(0.9, dtype=dtype)


@pytest.mark.parametrize("kept", [None, *DTYPES])
@pytest.mark.parametrize("wanted", [None, *DTYPES])
def test_a_state_that_is_kept_otherwise_is_an_error(unhooked, kept, wanted):
    params = {"w": jnp.ones((2, 64))}
    state = mo.momentum(0.9, dtype=kept).init(params)
    tx: Any = mo.momentum(0.9, dtype=wanted)
    if kept == wanted:
        jax.eval_shape(tx.update, params, state)
        return
    with pytest.raises(ValueError, match=r"Convert it: mo\.states\.momentum_to\("):
        tx.update(params, state)


@pytest.mark.parametrize(
    "preset", [mo.muon, mo.normuon, mo.scion, mo.sign_descent, mo.spel, mo.hyperball]
)
def test_a_preset_keeps_its_average_as_it_is_told(preset):
    params = {"w": jnp.eye(4, 2)}
    tx, plain = preset(0.1, momentum=mo.Average(0.9, "int8")), preset(0.1, momentum=0.9)
    state = jax.eval_shape(tx.init, params)["momentum"]
    assert state.codes["w"].dtype == jnp.int8
    assert list(jax.eval_shape(tx.init, params)) == list(
        jax.eval_shape(plain.init, params)
    )


@pytest.mark.slow
@pytest.mark.parametrize("preset", [mo.muon, mo.normuon, mo.spel, mo.manifold_muon])
def test_a_preset_makes_the_update_of_its_own_average(rng, preset):
    params = {"w": jnp.eye(8, 4)}
    gradient = {"w": jnp.asarray(rng.standard_normal((8, 4)), jnp.float32)}

    def first(momentum: Any) -> Any:
        tx = preset(0.1, momentum=momentum)
        return jax.jit(tx.update)(gradient, tx.init(params), params)[0]["w"]

    # Another program may round otherwise: some units of entries below 1.
    np.testing.assert_allclose(first(mo.Average(0.9, "int8")), first(0.9), atol=2e-6)


def test_the_decay_of_an_average_is_checked():
    with pytest.raises(ValueError, match=r"decay of Average must be in \[0, 1\)"):
        mo.Average(1.0, "int8")
