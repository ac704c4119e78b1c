"""Weights off their manifold are an error at `init`, wherever their parts lie."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from sharding.layouts import mesh_of

pytestmark = [pytest.mark.devices, pytest.mark.usefixtures("unhooked")]

KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
POINT = jnp.eye(16, 8)
# Of 2 X the Gram matrix is 4 I: 3 from the identity.
OFF = r"parameter '{path}' is not on Stiefel.*its residual is 3\. Project"


def owners(mesh: Any, specs: Any) -> Any:
    """Auto meshes need the specs; Explicit ones are read."""
    automatic = AxisType.Auto in mesh.axis_types
    return mo.sharding.owned(mesh, specs) if automatic else None


@KINDS
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "set_mesh"])
@pytest.mark.parametrize("spec", [P("x", "y"), P()], ids=str)
def test_sharded_weights_are_checked(kind: AxisType, inside: bool, spec: P) -> None:
    mesh = mesh_of(kind)
    tx = mo.manifold_muon(
        0.1, axes=mo.STACKED, placement=owners(mesh, {"mlp": {"up": spec}})
    )
    put = lambda x: {"mlp": {"up": jax.device_put(x, NamedSharding(mesh, spec))}}
    with jax.set_mesh(mesh) if inside else contextlib.nullcontext():
        tx.init(put(POINT))
        with pytest.raises(ValueError, match=OFF.format(path="mlp/up")):
            tx.init(put(2 * POINT))


@KINDS
def test_one_matrix_off_of_a_sharded_batch_is_enough(kind: AxisType) -> None:
    mesh, spec = mesh_of(kind), P("y", "x", None)
    tx = mo.retract(
        mo.Stiefel(), axes=mo.STACKED, placement=owners(mesh, {"experts": spec})
    )
    batch = jnp.stack([POINT] * 4)
    put = lambda x: {"experts": jax.device_put(x, NamedSharding(mesh, spec))}
    tx.init(put(batch))
    with pytest.raises(ValueError, match=OFF.format(path="experts")):
        tx.init(put(batch.at[2].mul(2)))


@KINDS
@pytest.mark.parametrize("hybrid", [False, True], ids=["alone", "hybrid"])
def test_variables_of_nnx_are_checked(kind: AxisType, hybrid: bool) -> None:
    mesh, spec = mesh_of(kind), P("x", "y")
    tx = mo.manifold_muon(0.1, placement=owners(mesh, {"kernel": spec}))
    tx = mo.hybrid(tx) if hybrid else tx

    def optimizer(scale: float) -> nnx.Optimizer[Any]:
        model = nnx.Linear(
            16,
            8,
            use_bias=hybrid,
            kernel_init=lambda key, shape, dtype: scale * POINT,
            kernel_metadata={"out_sharding": tuple(spec)},
            rngs=nnx.Rngs(0),
        )
        placed: Any = model.kernel[...].sharding
        assert placed.spec == spec
        return nnx.Optimizer(model, tx, wrt=nnx.Param)

    with jax.set_mesh(mesh):
        optimizer(1.0)
        with pytest.raises(ValueError, match=OFF.format(path="kernel")):
            optimizer(2.0)


def test_no_two_weights_are_gathered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, most = mesh_of(AxisType.Explicit), 0
    measure = mo.Stiefel.residual

    def watched(self: mo.Stiefel, x: jax.Array) -> jax.Array:
        nonlocal most
        # A size that no array of another test has.
        whole = [
            array
            for array in jax.live_arrays()
            if array.size == 22 * 6 and len(array.sharding.device_set) == 1
        ]
        most = max(most, len(whole))
        return measure(self, x)

    monkeypatch.setattr(mo.Stiefel, "residual", watched)
    put = jax.device_put(jnp.eye(22, 6), NamedSharding(mesh, P("x", None)))
    mo.manifold_muon(0.1).init({f"w{i}": put + 0 for i in range(4)})
    # A weight and its transpose.
    assert 0 < most <= 2


@KINDS
def test_weights_that_are_not_known_yet_are_not_checked(kind: AxisType) -> None:
    mesh, spec = mesh_of(kind), P("x", "y")
    tx = mo.manifold_muon(0.1, placement=owners(mesh, {"up": spec}))
    params = {"up": jax.device_put(2 * POINT, NamedSharding(mesh, spec))}
    jax.jit(tx.init)(params)
    jax.eval_shape(tx.init, params)
