"""What a placement does not cover: errors that name the leaf, and what is owned."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from sharding.layouts import assert_close

pytestmark = pytest.mark.devices


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_another_mesh_than_that_of_the_arrays_is_an_error(kind: AxisType) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    x = jax.device_put(jnp.ones((16, 16)), NamedSharding(mesh, P("x", None)))
    other = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    specs = {"w": P("x", None)}
    for placement in (mo.sharding.owned(other, specs), mo.sharding.owned(other)):
        with pytest.raises(ValueError, match=r"'w'.*'x': 8.*'x': 4"):
            mo.plan_matrices({"w": x}, placement=placement)


def test_other_specs_than_those_of_explicit_arrays_are_an_error() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    x = jax.device_put(jnp.ones((16, 16)), NamedSharding(mesh, P("x", None)))
    placement = mo.sharding.owned(mesh, {"w": P(None, "x")})
    # JAX 0.7 prints a `P` as `PartitionSpec`.
    specs = r"'w'.*P\w*\('x', None\).*P\w*\(None, 'x'\)"
    with pytest.raises(ValueError, match=specs):
        mo.plan_matrices({"w": x}, placement=placement)


@pytest.mark.parametrize("first", [AxisType.Explicit, AxisType.Auto])
def test_meshes_of_both_kinds_of_axes_take_specs(first: AxisType) -> None:
    kinds = sorted((AxisType.Explicit, AxisType.Auto), key=lambda kind: kind != first)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=tuple(kinds))
    x = jax.random.normal(jax.random.key(0), (16, 8))
    specs = {"w": P("x", "y")}
    tx = mo.orthogonalize_via_newton_schulz()
    expected, _ = jax.jit(tx.update)({"w": x}, optax.EmptyState())
    put = {"w": jax.device_put(x, NamedSharding(mesh, specs["w"]))}
    tx = mo.orthogonalize_via_newton_schulz(placement=mo.sharding.owned(mesh, specs))
    assert_close(jax.jit(tx.update)(put, optax.EmptyState())[0], expected)


def test_a_block_along_a_mesh_axis_of_size_1_is_not_cut() -> None:
    mesh = jax.make_mesh((8, 1), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    placement = mo.sharding.owned(mesh, {"qkv": P("x", "y")})
    plan = mo.plan_matrices(
        {"qkv": jnp.ones((16, 12))}, axes=mo.Split((8, 4)), placement=placement
    )
    assert str(plan).count("owned") == 2


@pytest.mark.parametrize(
    ("manifold", "norm"), [(mo.Sphere(), mo.Spectral()), (mo.Stiefel(), mo.RmsToRms())]
)
def test_directions_that_want_whole_matrices_are_never_split(
    manifold: Any, norm: Any
) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    x = {"w": jax.ShapeDtypeStruct((64, 8), jnp.float32)}
    tx = mo.steepest(manifold, norm, placement=mo.sharding.sliced(mesh, {"w": P("x")}))
    compiled = jax.jit(tx.update).lower(x, optax.EmptyState(), x).compile()
    found = mo.programs.collectives(compiled)
    assert found.inside_loops == 0
    assert found.count("all-to-all") == 2


@pytest.mark.usefixtures("unhooked")
def test_what_a_placement_refuses() -> None:
    mesh = jax.make_mesh((8,), ("x",))
    half: Any = "half"
    with pytest.raises(ValueError, match=r"replicas.*'share', 'repeat'.*'half'"):
        mo.sharding.owned(mesh, replicas=half)
    with pytest.raises(TypeError, match="wire must be a real floating dtype"):
        mo.sharding.owned(mesh, wire=jnp.int8)
    with pytest.raises(ValueError, match="wire must be a floating dtype with the"):
        mo.sharding.owned(mesh, wire=jnp.float16)
