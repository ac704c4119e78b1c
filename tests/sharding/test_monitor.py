"""`monitor` on Explicit meshes, where the layout is read from the arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from conformance.steps import filled
from sharding.layouts import mesh_of, TOLERANCE

pytestmark = [pytest.mark.devices, pytest.mark.slow]

SHAPES = {"tall": (16, 8), "wide": (8, 16), "stack": (8, 16, 8)}
SPECS = {"tall": P("y", "x"), "wide": P(None, "y"), "stack": P("x", "y", None)}


def numbers(params: Any, gradients: list[Any], groups: Any) -> Any:
    """What is collected after two steps of one compiled program."""
    tx = mo.monitor(
        optax.sgd(0.1),
        axes=mo.STACKED,
        manifold=mo.Stiefel(),
        every=2,
        groups=groups,
    )
    state, step = jax.jit(tx.init)(params), jax.jit(tx.update)
    for gradient in gradients:
        _, state = step(gradient, state, params)
    return jax.device_get(mo.diagnostics.collect(state))


@pytest.mark.parametrize("groups", [None, {"stack": "deep", ".*": "flat"}])
def test_the_numbers_are_those_of_one_device(groups: Any) -> None:
    params, gradients = filled(SHAPES, 0), [filled(SHAPES, 1), filled(SHAPES, 2)]
    gradients[1]["wide"] = gradients[1]["wide"].at[0, 0].set(jnp.inf)
    expected = numbers(params, gradients, groups)
    mesh = mesh_of(AxisType.Explicit)
    where = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    params = jax.device_put(params, where)
    with jax.set_mesh(mesh):
        found = numbers(params, [jax.device_put(g, where) for g in gradients], groups)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    total = "flat/total" if groups else "wide"
    assert found["nonfinite"][total] == 1
    for name, by_path in expected.items():
        for path, wanted in by_path.items():
            scale = max(1.0, float(np.max(wanted)))
            np.testing.assert_allclose(
                found[name][path], wanted, rtol=0, atol=TOLERANCE * scale, err_msg=name
            )
