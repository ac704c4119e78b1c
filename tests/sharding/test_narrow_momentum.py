"""Momentum in few bytes on eight devices: the same bits, and nothing sent in vain."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from manifold_optax.states import state_digest
from sharding.layouts import mesh_of

pytestmark = pytest.mark.devices

KINDS = (AxisType.Explicit, AxisType.Auto)
WHOLE = (8, 512)
"""Over 2 × 4 devices each device holds two whole blocks of 64 of a row."""
CUT = (8, 96)
"""Two blocks of 48, over four devices."""


def update_of(tx: Any) -> Any:
    def update(gradient: Any, state: Any) -> Any:
        return tx.update(gradient, state)

    return update


def gradient_of(shape: tuple[int, ...]) -> Any:
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    return {"w": jnp.asarray(values)}


def two_updates(tx: Any, gradient: Any, state: Any) -> tuple[Any, Any, Any]:
    update: Any = jax.jit(update_of(tx))
    program = update.lower(gradient, state).compile()
    _, state = update(gradient, state)
    updates, state = update(gradient, state)
    assert update._cache_size() == 1
    return updates, state, program


def sharded(shape: tuple[int, ...], kind: AxisType) -> Any:
    place = NamedSharding(mesh_of(kind), P("x", "y"))
    return jax.tree.map(lambda x: jax.device_put(x, place), gradient_of(shape))


@pytest.mark.promise(
    "Layouts and devices",
    "The state of momentum in few bytes is equal bit by bit on one device and on "
    "eight, and a device that holds whole blocks sends nothing",
    on='`momentum(dtype=…)`: "bfloat16", "bfloat16+int8", "int8"; Auto and Explicit',
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        pytest.param("bfloat16", WHOLE, marks=pytest.mark.slow),
        pytest.param("bfloat16+int8", WHOLE, marks=pytest.mark.slow),
        ("int8", WHOLE),
        pytest.param("int8", CUT, marks=pytest.mark.slow),
    ],
)
def test_the_bits_are_those_of_one_device(
    dtype: str, shape: tuple[int, ...], kind: AxisType
) -> None:
    tx, gradient = mo.momentum(0.9, dtype=dtype), sharded(shape, kind)
    shardings = mo.sharding.state_shardings(tx, gradient)
    state = jax.jit(tx.init, out_shardings=shardings)(gradient)
    updates, state, program = two_updates(tx, gradient, state)
    alone = gradient_of(shape)
    expected = two_updates(tx, alone, tx.init(alone))
    assert state_digest(state) == state_digest(expected[1])
    # One program may round a product before it is added, and another not.
    np.testing.assert_allclose(updates["w"], expected[0]["w"], rtol=2**-22)
    if shape == WHOLE:
        assert mo.programs.collectives(program).count() == 0
    for leaf, wanted in zip(
        jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True
    ):
        if leaf.ndim:
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "spec"), [(WHOLE, P("x", "y")), (CUT, P("x"))])
def test_scales_lie_as_their_codes_where_blocks_are_whole(
    shape: tuple[int, ...], spec: P, kind: AxisType
) -> None:
    tx, params = mo.momentum(0.9, dtype="int8"), sharded(shape, kind)
    found = mo.sharding.state_shardings(tx, params)
    codes, scales = found.codes["w"], found.scales["w"]
    assert codes.is_equivalent_to(params["w"].sharding, 2)
    assert scales.is_equivalent_to(NamedSharding(scales.mesh, spec), 2)


@pytest.mark.slow
def test_blocks_that_are_cut_work_without_jit() -> None:
    tx, gradient = mo.momentum(0.9, dtype="int8"), sharded(CUT, AxisType.Explicit)
    state: Any
    updates, state = tx.update(gradient, tx.init(gradient))
    alone = gradient_of(CUT)
    wanted = tx.update(alone, tx.init(alone))
    assert state_digest((updates, state)) == state_digest(wanted)
    assert state.codes["w"].sharding == gradient["w"].sharding
