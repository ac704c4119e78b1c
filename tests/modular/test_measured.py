"""Budgets by sensitivities that are measured at the start: estimates, named so."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._budgets._measured import measured_budget
from modular.handmade import gaussian, Handmade, handmade

# Forward and derivative of a few float32 products.
ROUNDING = 1e-5
INPUTS = jnp.asarray([[1.0], [-2.0], [0.5]])


def chain(params: Any, inputs: Any) -> Any:
    """Numbers as matrices: `head · layers[2] · layers[1] · layers[0] · x`."""
    for k in range(3):
        inputs = inputs @ params["layers"][k]
    return {"logits": inputs @ params["head"], "count": jnp.asarray(3)}


def numbers(dtype: Any = jnp.float32) -> Any:
    layers = jnp.asarray([2.0, -4.0, 0.5], dtype).reshape(3, 1, 1)
    return {"head": jnp.asarray([[8.0]], dtype), "layers": layers, "steps": 3}


def of_numbers(function: Any = chain) -> Handmade:
    atoms = [Atom("head", "readout"), Atom("layers", axes=mo.STACKED)]
    params = {key: value for key, value in numbers().items() if key != "steps"}
    module = handmade(params, atoms, {"layers": [1.0] * 3}, function=function)
    return dataclasses.replace(module, shapes={**module.shapes, "steps": ()})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_of_numbers(dtype: Any) -> None:
    # The output changes by 1/|w| of itself when w changes by 1.
    found = measured_budget(of_numbers(), numbers(dtype), INPUTS.astype(dtype))
    assert found.kind == "measured"
    wanted = {"head": (1 / 8,), "layers": (1 / 2, 1 / 4, 2.0)}
    for path, own in wanted.items():
        # All numbers are powers of two, which bfloat16 holds exactly.
        np.testing.assert_allclose(found.sensitivities[path], own, ROUNDING)
        shares = [1 / 2 / number for number in found.sensitivities[path]]
        np.testing.assert_allclose(found.share(path), shares, 1e-14)  # one quotient
    worst = measured_budget(
        of_numbers(), numbers(dtype), INPUTS.astype(dtype), addition="worst"
    )
    for path, own in found.shares.items():
        # Each of four equal parts is 1/4 of the sum, and 1/2 of the root of squares.
        np.testing.assert_allclose(worst.share(path), np.divide(own, 2), 1e-14)
    assert "estimates" in str(found)


def hidden(params: Any, inputs: Any) -> Any:
    bias = params["bias"][None]
    return jax.nn.relu(inputs @ params["up"] + bias) @ params["head"]


SHAPES = {"bias": (32,), "head": (32, 8), "up": (16, 32)}
ATOMS = (
    Atom("bias", "vector", norm=mo.Max()),
    # Directions that compile in no time; RmsToRms has a test of its own.
    Atom("head", "readout", norm=mo.Frobenius()),
    Atom("up", norm=mo.Frobenius()),
)


def of_hidden(atoms: Any = ATOMS) -> tuple[Handmade, Any, Any]:
    params = jax.tree.map(lambda x: x / 4, gaussian(SHAPES))
    return handmade(params, atoms, function=hidden), params, gaussian((64, 16), 3)


@pytest.mark.slow
def test_one_direction_is_near_the_mean_of_many() -> None:
    module, params, inputs = of_hidden()
    many = measured_budget(module, params, inputs, draws=16, vectors=True)
    for seed in range(2):
        few = measured_budget(
            module, params, inputs, key=jax.random.key(seed), vectors=True
        )
        for path, (mean,) in many.sensitivities.items():
            # The mean of four draws has a standard deviation of 7 % at most.
            assert few.sensitivities[path][0] == pytest.approx(mean, rel=0.2), path


def test_the_estimate_is_below_the_bound() -> None:
    atoms = (*ATOMS[:2], Atom("up", norm=mo.RmsToRms()))
    module, params, inputs = of_hidden(atoms)
    found = measured_budget(module, params, inputs)
    output = np.asarray(hidden(params, inputs), np.float64)
    size = math.sqrt(np.square(output).mean())
    # ‖D‖ = 1 from RMS to RMS, behind an input of this RMS, a slope of 1 and the head.
    scale = math.sqrt(32 / 8) * np.linalg.norm(np.asarray(params["head"]), 2)
    bound = scale * math.sqrt(np.square(np.asarray(inputs)).mean()) / size
    assert 0.1 * bound < found.sensitivities["up"][0] < bound
    assert set(found.shares) == {"up", "head"}


def test_a_zero_readout_hides_what_is_before_it() -> None:
    module, params, inputs = of_hidden()
    params["head"] = jnp.zeros_like(params["head"])
    with pytest.raises(ValueError, match=r"mean square.* is 0\.0.*readout"):
        measured_budget(module, params, inputs)


def test_a_parameter_that_does_not_reach_the_output() -> None:
    module, params, inputs = of_hidden()
    dead = dataclasses.replace(
        module, function=lambda params, inputs: inputs @ params["up"]
    )
    with pytest.raises(ValueError, match=r"sensitivity.* is 0: \['head'\]"):
        measured_budget(dead, params, inputs)
    found = measured_budget(dead, params, inputs, masses={"head": None})
    assert set(found.shares) == {"up"}


def test_other_parameters_than_were_read() -> None:
    module, params, inputs = of_hidden()
    params["up"] = params["up"][:8]
    with pytest.raises(ValueError, match=r"'up' is \(8, 32\) here"):
        measured_budget(module, params, inputs)


def test_under_jit_it_says_where_to_call_it() -> None:
    module, params, inputs = of_hidden()

    def step(params: Any) -> Any:
        return measured_budget(module, params, inputs).share("up")

    with pytest.raises(ValueError, match=r"measured_budget: shares.*outside of jit"):
        jax.jit(step)(params)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"draws": 0}, ValueError, "draws must be at least 1"),
        ({"draws": 2.0}, TypeError, "draws must be"),
        ({"masses": {"new": 1.0}}, ValueError, r"keys \['new'\] of masses"),
        ({"tare": {"new": 1.0}}, ValueError, r"keys \['new'\] of tare"),
    ],
)
def test_wrong_arguments(
    arguments: Any, error: Any, message: str, unhooked: None
) -> None:
    module, params, inputs = of_hidden()
    with pytest.raises(error, match=message):
        measured_budget(module, params, inputs, **arguments)
