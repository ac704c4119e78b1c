"""Placements, meshes and specs of a wrong kind: errors that say what to give."""

import jax
import jax.numpy as jnp
import optax
import pytest

import manifold_optax as mo
from manifold_optax.matrices import map_matrices

pytestmark = pytest.mark.usefixtures("unhooked")

MESH = jax.make_mesh((1,), ("data",))
TREE = {"w": jnp.eye(4, 2)}

TAKE_A_PLACEMENT = {
    "map_matrices": lambda p: map_matrices(lambda x, **_: x, (TREE,), placement=p),
    "plan_matrices": lambda p: mo.plan_matrices(TREE, placement=p),
    "project": lambda p: mo.project(TREE, mo.Sphere(), placement=p),
    "retract": lambda p: mo.retract(mo.Sphere(), placement=p),
    "retract_polar": lambda p: mo.retract_polar(placement=p),
    "steepest": lambda p: mo.steepest(mo.Sphere(), mo.Spectral(), placement=p),
    "tangent_project": lambda p: mo.tangent_project(mo.Sphere(), placement=p),
    "dual_ascent_spectral": lambda p: mo.dual_ascent_spectral(placement=p),
    "orthogonalize": lambda p: mo.orthogonalize_via_newton_schulz(placement=p),
    "shrink_norm": lambda p: mo.shrink_norm(mo.Spectral(), 0.1, placement=p),
    "spectral_decay": lambda p: mo.add_spectral_weight_decay(0.1, placement=p),
    "muon": lambda p: mo.muon(0.1, placement=p),
    "manifold_muon": lambda p: mo.manifold_muon(0.1, placement=p),
}


# A function prints with its address, which differs between processes.
KINDS = ["string", "mesh", "function"]


@pytest.mark.parametrize("placement", ["owned", MESH, mo.sharding.owned], ids=KINDS)
@pytest.mark.parametrize("name", TAKE_A_PLACEMENT)
def test_a_placement_of_another_kind_is_an_error(name, placement):
    with pytest.raises(TypeError, match=r"placement must be None or made by mo\.shard"):
        TAKE_A_PLACEMENT[name](placement)


@pytest.mark.parametrize("mesh", ["data", None, (8,)], ids=str)
@pytest.mark.parametrize(
    "make", [mo.sharding.owned, mo.sharding.sliced, mo.sharding.auto]
)
def test_a_mesh_of_another_kind_is_an_error(make, mesh):
    with pytest.raises(TypeError, match="mesh must be a mesh of devices"):
        make(mesh)


@pytest.mark.parametrize("mesh", ["data", (8,)], ids=str)
def test_a_mesh_of_a_state_of_another_kind_is_an_error(mesh):
    with pytest.raises(TypeError, match="mesh must be a mesh of devices"):
        mo.sharding.state_shardings(optax.trace(0.9), TREE, mesh=mesh)


@pytest.mark.parametrize("specs", ["data", jax.P("data"), MESH], ids=str)
def test_specs_that_are_no_tree_are_an_error(specs):
    with pytest.raises(TypeError, match="specs must be a tree like the parameters"):
        mo.sharding.owned(MESH, specs)


@pytest.mark.parametrize("leaf", ["data", 1, ("data", None)], ids=str)
def test_specs_that_hold_something_else_are_an_error_that_names_it(leaf):
    with pytest.raises(TypeError, match=r"specs must hold PartitionSpecs.*'layer/w"):
        mo.sharding.owned(MESH, {"layer": {"w": leaf}})
