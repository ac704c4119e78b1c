"""One device computes a gradient that is not finite: what all eight do then."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from sharding.layouts import assert_close, mesh_of

pytestmark = pytest.mark.devices

SPECS = {"rows": P(("x", "y"), None), "replicated": P()}
SHAPES = {"rows": (16, 8), "replicated": (8, 4)}


def on_one_device(sound: jax.Array, value: float) -> jax.Array:
    """`sound`, but for the part that the sixth device holds: all of it is `value`."""
    parts = [
        jnp.full_like(shard.data, value) if turn == 5 else shard.data
        for turn, shard in enumerate(sound.addressable_shards)
    ]
    return jax.make_array_from_single_device_arrays(sound.shape, sound.sharding, parts)


@pytest.mark.promise(
    "Faults",
    "Where one device has a gradient that is not finite, all skip the step: parameters "
    "and momentum keep their bits, and all count the same",
    on="Muon in `apply_if_finite`, owned; 8 devices, Auto and Explicit axes",
)
@pytest.mark.parametrize(
    "kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)]
)
def test_all_devices_skip_a_step_that_is_not_finite_on_one(kind: AxisType) -> None:
    mesh = mesh_of(kind)
    where = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    rng = np.random.default_rng(0)

    def draw() -> Any:
        tree = {
            name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
            for name, shape in SHAPES.items()
        }
        return jax.device_put(tree, where)

    params, first, second = draw(), draw(), draw()
    placement = mo.sharding.owned(mesh, SPECS if kind == AxisType.Auto else None)
    muon = mo.muon(0.1, placement=placement)
    tx: Any = optax.apply_if_finite(muon, max_consecutive_errors=5)

    @jax.jit
    def step(gradient: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(first, tx.init(params), params)
    for count, value in enumerate((np.nan, np.inf, -np.inf), start=1):
        bad = second | {"rows": on_one_device(second["rows"], value)}
        moved, skipped = step(bad, state, params)
        before = jax.device_get((params, state.inner_state))
        after = jax.device_get((moved, skipped.inner_state))
        jax.tree.map(np.testing.assert_array_equal, after, before)
        counts = [int(x.data) for x in skipped.total_notfinite.addressable_shards]
        assert counts == [count] * 8
        params, state = moved, skipped
    moved, state = step(second, state, params)
    assert int(state.notfinite_count) == 0
    assert np.isfinite(np.asarray(moved["rows"])).all()
    assert np.abs(np.asarray(moved["rows"] - params["rows"])).max() > 1e-3


@pytest.mark.promise(
    "Faults",
    "Without such a wrapper a bad gradient of one device shows in its whole matrix on "
    "all devices, and in no other matrix",
    on="Muon, owned and sliced; 8 devices",
)
@pytest.mark.parametrize(
    "place",
    [pytest.param(mo.sharding.owned, marks=pytest.mark.slow), mo.sharding.sliced],
    ids=["owned", "sliced"],
)
def test_what_is_not_finite_on_one_device_shows_on_all(place: Any) -> None:
    mesh = mesh_of(AxisType.Auto)
    specs = SPECS | {"other": SPECS["rows"]}
    shapes = SHAPES | {"other": SHAPES["rows"]}
    where = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    rng = np.random.default_rng(0)
    sound = {
        name: jax.device_put(
            jnp.asarray(rng.standard_normal(shape), jnp.float32), where[name]
        )
        for name, shape in shapes.items()
    }
    bad = sound | {"rows": on_one_device(sound["rows"], np.nan)}
    tx = mo.orthogonalize_via_newton_schulz(placement=place(mesh, specs))
    update = jax.jit(lambda gradient: tx.update(gradient, tx.init(sound))[0])
    found, expected = update(bad), update(sound)
    assert np.isnan(np.asarray(found["rows"])).all()
    for name in ("replicated", "other"):
        assert_close(found[name], expected[name])
