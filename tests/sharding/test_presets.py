"""Presets on eight devices, what no placement covers, and calls inside other maps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from manifold_optax.matrices import map_matrices
from sharding import kernels
from sharding.layouts import (
    assert_close,
    LAYOUTS,
    mesh_of,
    points_on,
    shard,
    spec_for,
    TOLERANCE,
    trees,
)

pytestmark = pytest.mark.devices


# On Auto axes `test_every_transform` runs them, too.
@pytest.mark.parametrize(
    "kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit]
)
@pytest.mark.parametrize(
    ("make", "manifold"),
    [
        # A whole model trains with muon in `test_train_step`.
        pytest.param(mo.muon, mo.Euclidean(), marks=pytest.mark.slow),
        (mo.manifold_muon, mo.Stiefel()),
        # By day in `test_every_transform`.
        pytest.param(mo.hyperspherical_descent, mo.Sphere(), marks=pytest.mark.slow),
    ],
)
def test_presets_train_sharded(
    make: Any, manifold: mo.Manifold, kind: AxisType, rng: np.random.Generator
) -> None:
    # One stack is enough here; test_placements goes over all shapes.
    gradients, points = (
        {name: tree[name] for name in ("tall", "batch")} for tree in trees(rng)
    )
    points = points_on(manifold, points)
    layout = LAYOUTS["two-dimensional"]
    mesh = mesh_of(kind)
    specs = jax.tree.map(lambda x: spec_for(layout, x), points)
    placement = mo.sharding.owned(mesh, specs) if kind == AxisType.Auto else None

    def three_steps(tx: Any, params: Any, gradients: Any) -> Any:
        state = tx.init(params)
        if params["tall"].sharding.num_devices > 1:
            # Numbers per matrix start replicated, which would be a second program.
            state = jax.device_put(state, mo.sharding.state_shardings(tx, params))
        for _ in range(3):
            updates, state = jax.jit(tx.update)(gradients, state, params)
            params = jax.tree.map(lambda p, u: p + u, params, updates)
        return params

    expected = three_steps(make(0.1, momentum=0.9, axes=mo.STACKED), points, gradients)
    actual = three_steps(
        make(0.1, momentum=0.9, axes=mo.STACKED, placement=placement),
        shard(points, mesh, layout),
        shard(gradients, mesh, layout),
    )
    assert_close(actual, expected)


@pytest.mark.parametrize(
    "spec",
    [P("x", "y", None), pytest.param(P("x", None, None), marks=pytest.mark.slow)],
)
def test_numbers_of_batch_sharded_matrices_start_replicated(
    spec: P, rng: np.random.Generator
) -> None:
    mesh = mesh_of(AxisType.Explicit)
    point, gradient = (
        jnp.asarray(rng.standard_normal((2, 16, 8)), jnp.float32) for _ in "pg"
    )
    point = points_on(mo.Stiefel(), point)
    tx = mo.dual_ascent_spectral(certify=True, axes=mo.STACKED)
    alone = {"w": point}
    expected = jax.jit(tx.update)({"w": gradient}, tx.init(alone), alone)
    put = lambda x: {"w": jax.device_put(x, NamedSharding(mesh, spec))}
    params, actual = put(point), ({}, tx.init(put(point)))
    for _ in range(2):
        actual = jax.jit(tx.update)(put(gradient), actual[1], params)
    assert_close(actual, expected)


def test_uncovered_shardings_name_the_leaf(rng: np.random.Generator) -> None:
    mesh = mesh_of(AxisType.Explicit)
    x = jnp.asarray(rng.standard_normal((64, 16)), jnp.float32)
    xy = P(None, ("x", "y"))
    # The long side, 12, cannot be cut into 8 parts once the short side is whole.
    short = {"dense": {"kernel": jax.device_put(x[:12, :8], NamedSharding(mesh, xy))}}
    with pytest.raises(ValueError, match=r"'dense/kernel'.*whose 12 rows"):
        map_matrices(
            kernels.newton_schulz, (short,), placement=mo.sharding.sliced(mesh)
        )
    automatic = mesh_of(AxisType.Auto)
    with pytest.raises(ValueError, match=r"'fused'.*split into blocks"):
        map_matrices(
            kernels.newton_schulz,
            ({"fused": x[:3]},),
            axes=mo.Split((12, 4)),
            placement=mo.sharding.owned(automatic, {"fused": P(None, "x")}),
        )
    for spec, message in (
        (P(P.UNCONSTRAINED, None), "unconstrained"),
        (P("x", None, None), "more entries"),
        (P(None, ("x", "y")), "equal parts"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*'w'|'w'.*{message}"):
            map_matrices(
                kernels.newton_schulz,
                ({"w": x[:, :12]},),
                placement=mo.sharding.owned(automatic, {"w": spec}),
            )
    turned = {"w": jax.device_put(x, NamedSharding(mesh, P("x", None)))}
    other = {"w": jax.device_put(x, NamedSharding(mesh, P("y", None)))}
    with pytest.raises(ValueError, match=r"'w' are sharded differently"):
        map_matrices(
            kernels.stiefel_spectral,
            (turned, other),
            returns=("matrix", "number", "number"),
        )
    with pytest.raises(ValueError, match=r"no spec for 'w'"):
        map_matrices(
            kernels.newton_schulz,
            ({"w": x},),
            placement=mo.sharding.owned(automatic, {"v": P(None, "x")}),
        )
    with pytest.raises(ValueError, match=r"'w'.*mesh axes \['z'\]"):
        map_matrices(
            kernels.newton_schulz,
            ({"w": x},),
            placement=mo.sharding.owned(automatic, {"w": P(None, "z")}),
        )
    with pytest.raises(ValueError, match=r"no specs.*'w'"):
        map_matrices(
            kernels.newton_schulz,
            ({"w": jax.device_put(x, NamedSharding(automatic, P("x", None)))},),
            placement=mo.sharding.owned(automatic),
        )


# `tests/matrices/test_program.py` has the same on a mesh of one device.
@pytest.mark.slow
def test_a_placement_inside_shard_map_is_an_error_and_none_is_local(
    rng: np.random.Generator,
) -> None:
    mesh = mesh_of(AxisType.Auto)
    x = jnp.asarray(rng.standard_normal((8, 16, 8)), jnp.float32)
    spec = P(("x", "y"), None, None)

    def mapped(placement: Any) -> Any:
        def body(x: Any) -> Any:
            return map_matrices(
                kernels.newton_schulz,
                ({"w": x},),
                axes=mo.STACKED,
                placement=placement,
            )["w"]

        return jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec)

    expected = map_matrices(kernels.newton_schulz, ({"w": x},), axes=mo.STACKED)
    # One matrix per device, without the loop over a stack: other code, same products.
    np.testing.assert_allclose(mapped(None)(x), expected["w"], rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="inside shard_map"):
        mapped(mo.sharding.owned(mesh, {"w": spec}))(x)


def test_pmap_computes_locally(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.standard_normal((8, 16, 8)), jnp.float32)
    tx: Any = mo.muon(0.1)

    def step(x: Any) -> Any:
        return tx.update({"w": x}, tx.init({"w": x}), {"w": x})[0]["w"]

    expected = jnp.stack([jax.jit(step)(slice_) for slice_ in x])
    # The same program on each device: equal to rounding of differently fused code.
    np.testing.assert_allclose(jax.pmap(step)(x), expected, rtol=0, atol=1e-6)


def test_plan_prints_placement_and_unknown() -> None:
    mesh = mesh_of(AxisType.Auto)
    x = jnp.ones((64, 16))
    tree = {"w": jax.device_put(x, NamedSharding(mesh, P("x", "y")))}
    unknown = str(mo.plan_matrices(tree))
    assert "unknown" in unknown.splitlines()[1]
    assert unknown.endswith("left to the compiler")
    placed = mo.plan_matrices(
        tree, placement=mo.sharding.owned(mesh, {"w": P("x", "y")})
    )
    # 64 × 16: 3 Gram products and as many with the polynomial, 11 of 16 × 16; an eighth
    # of 4096 bytes from each of 8 devices to the only owner, and back.
    assert "owned, 0 to 1 each, over x, y" in str(placed)
    assert str(placed).endswith("7.17k bytes sent, 6.27k of them padding")
