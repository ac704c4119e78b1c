"""Blocks that repeat along an axis are folded into a batch, wherever the leaf lies."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from sharding.layouts import assert_close, mesh_of

pytestmark = pytest.mark.devices

REPEATED = mo.Split((4, 2) * 2)


def stepped(tx: Any, gradient: Any, params: Any) -> Any:
    """Update and state of two steps; the second starts from the sharded state."""
    state, found = tx.init(params), []
    update = jax.jit(tx.update)
    for scale in (1.0, 2.0):
        updates, state = update({"w": scale * gradient["w"]}, state, params)
        found.append((updates, state))
    return jax.device_get(found)


def drawn(rng: np.random.Generator) -> list[Any]:
    shape = (4, 16, 12)
    return [{"w": jnp.asarray(rng.standard_normal(shape), jnp.float32)} for _ in "gp"]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (AxisType.Explicit, P(None, "x")),
        pytest.param(AxisType.Auto, P("y", "x", None), marks=pytest.mark.slow),
        pytest.param(AxisType.Auto, P(None, "x"), marks=pytest.mark.slow),
        pytest.param(AxisType.Explicit, P("y", "x", None), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_decay_with_vectors_as_state_equals_that_of_one_device(
    kind: AxisType, spec: P, rng: np.random.Generator
) -> None:
    gradient, params = drawn(rng)
    options = {"steps": 2, "axes": REPEATED}
    expected = stepped(mo.add_spectral_weight_decay(1.0, **options), gradient, params)
    mesh = mesh_of(kind)
    cut = jax.device_put((gradient, params), NamedSharding(mesh, spec))
    placed = mo.sharding.owned(mesh, {"w": spec}) if kind == AxisType.Auto else None
    tx = mo.add_spectral_weight_decay(1.0, **options, placement=placed)
    assert_close(stepped(tx, *cut), expected)


def test_rows_stay_cut_under_the_split_recipe(rng: np.random.Generator) -> None:
    gradient, _ = drawn(rng)
    mesh, spec = mesh_of(AxisType.Auto), P(None, "x", None)
    tx = mo.orthogonalize_via_newton_schulz(axes=REPEATED)
    expected = jax.jit(tx.update)(gradient, tx.init(gradient))[0]
    placement = mo.sharding.sliced(mesh, {"w": spec})
    tx = mo.orthogonalize_via_newton_schulz(axes=REPEATED, placement=placement)
    cut = jax.device_put(gradient, NamedSharding(mesh, spec))
    assert_close(jax.jit(tx.update)(cut, tx.init(cut))[0], expected)


def test_along_a_cut_axis_there_is_one_error_on_both_kinds_of_mesh(
    rng: np.random.Generator,
) -> None:
    gradient, _ = drawn(rng)
    spec = P(None, None, "x")
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = mesh_of(kind)
        placed = mo.sharding.owned(mesh, {"w": spec}) if kind == AxisType.Auto else None
        tx = mo.orthogonalize_via_newton_schulz(axes=REPEATED, placement=placed)
        cut = jax.device_put(gradient, NamedSharding(mesh, spec))
        with pytest.raises(ValueError, match=r"'w'.*split into blocks"):
            tx.update(cut, tx.init(cut))


def test_elementwise_links_take_a_cut_axis(rng: np.random.Generator) -> None:
    gradient, _ = drawn(rng)
    tx = mo.scale_by_shape("spectral", axes=REPEATED)
    expected = tx.update(gradient, tx.init(gradient))[0]
    where = NamedSharding(mesh_of(AxisType.Explicit), P(None, None, "x"))
    cut = jax.device_put(gradient, where)
    assert_close(jax.jit(tx.update)(cut, tx.init(cut))[0], expected)


def test_blocks_along_a_sharded_axis_are_refused_whatever_their_size() -> None:
    """Blocks of 3 cannot be cut by 8 devices either; the axis is the reason to tell."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    for sizes in ((8, 8), (3, 13)):
        params = {"w": jnp.ones((4, 16))}
        placement = mo.sharding.owned(mesh, {"w": P(None, "x")})
        with pytest.raises(ValueError, match=r"'w'.*sharded along the axis on which"):
            mo.plan_matrices(params, axes=mo.Split(sizes), placement=placement)
