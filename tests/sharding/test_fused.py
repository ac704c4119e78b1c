"""Blocks that repeat along an axis are folded into a batch, wherever the leaf lies."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from manifold_optax.matrices import map_matrices
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


def normalize(x: Any, axis_name: Any = None) -> Any:
    """Each matrix over its norm, and the norm: every entry matters, and no solver."""
    total = jnp.sum(x**2)
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    return x / jnp.sqrt(total), jnp.sqrt(total)


class Cut(NamedTuple):
    """A leaf cut along the axis of its blocks, and what that costs."""

    shape: tuple[int, ...]
    spec: P
    sizes: tuple[int, ...]
    recipe: Any
    exchanges: int
    """All-to-alls: two for moving the cut, two for the owners."""


CUTS = {
    # Queries, keys and values side by side: a device holds halves of two blocks.
    "side by side": Cut((16, 24), P("x", "y"), (12, 8, 4), mo.sharding.owned, 4),
    "sliced": Cut((16, 24), P(None, "y"), (12, 8, 4), mo.sharding.sliced, 2),
    "two mesh axes": Cut((16, 24), P(None, ("x", "y")), (12, 12), mo.sharding.owned, 4),
    # Cut along a batch axis instead, matrices are whole.
    "layers": Cut((8, 16, 24), P("x", None, "y"), (12, 8, 4), mo.sharding.owned, 2),
    # Each device holds whole groups of heads already.
    "groups": Cut((16, 48), P(None, "y"), (8, 4) * 4, mo.sharding.owned, 0),
}
BY_DAY = (
    ("side by side", AxisType.Auto),
    ("layers", AxisType.Explicit),
    ("groups", AxisType.Explicit),
)


@pytest.mark.promise(
    "Layouts and devices",
    "Fused weights may be cut along the axis on which their blocks lie side by side",
    on="owned and sliced, 8 devices; queries, keys, values; layers; groups of heads",
)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(
            name, kind, marks=() if (name, kind) in BY_DAY else pytest.mark.slow
        )
        for name in CUTS
        for kind in (AxisType.Auto, AxisType.Explicit)
    ],
)
def test_blocks_along_a_cut_axis(
    name: str, kind: AxisType, rng: np.random.Generator
) -> None:
    cut = CUTS[name]
    tree = {"w": jnp.asarray(rng.standard_normal(cut.shape), jnp.float32)}
    axes, mesh = mo.Split(cut.sizes), mesh_of(kind)
    specs = {"w": cut.spec} if kind == AxisType.Auto else None
    placement = cut.recipe(mesh, specs)

    def go(tree: Any, placement: Any) -> Any:
        return map_matrices(
            normalize,
            (tree,),
            returns=("matrix", "number"),
            axes=axes,
            placement=placement,
        )

    expected = jax.jit(lambda tree: go(tree, None))(tree)
    put = jax.device_put(tree, NamedSharding(mesh, cut.spec))
    compiled = jax.jit(lambda tree: go(tree, placement)).lower(put).compile()
    matrices, norms = compiled(put)
    assert_close((matrices, norms), expected)
    wanted = NamedSharding(mesh, cut.spec)
    assert matrices["w"].sharding.is_equivalent_to(wanted, len(cut.shape))
    if kind == AxisType.Explicit:
        # As the state begins: along the batch axes, and no other.
        blocks = P(*cut.spec[:-2], None)
        assert norms["w"].sharding.spec == blocks
    found = mo.programs.collectives(compiled)
    assert found.count("all-to-all") == cut.exchanges
    plan = str(mo.plan_matrices(put, axes=axes, placement=placement))
    assert ("w is cut along its blocks" in plan) == (cut.exchanges > 0)


def test_leaves_that_move_their_cut_share_two_all_to_alls() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    tree = {name: jnp.ones((16, 24)) for name in "abc"}
    specs = dict.fromkeys(tree, P(None, "x"))
    put = jax.device_put(tree, NamedSharding(mesh, P(None, "x")))
    placement = mo.sharding.owned(mesh, specs)
    go = jax.jit(
        lambda tree: map_matrices(
            lambda x, axis_name=None: 2 * x,
            (tree,),
            axes=mo.Split((12, 12)),
            placement=placement,
        )
    )
    compiled = go.lower(put).compile()
    assert_close(compiled(put), jax.tree.map(lambda x: 2 * x, tree))
    assert mo.programs.collectives(compiled).count("all-to-all") == 4


def test_elementwise_links_take_a_cut_axis(rng: np.random.Generator) -> None:
    gradient, _ = drawn(rng)
    tx = mo.scale_by_shape("spectral", axes=REPEATED)
    expected = tx.update(gradient, tx.init(gradient))[0]
    where = NamedSharding(mesh_of(AxisType.Explicit), P(None, None, "x"))
    cut = jax.device_put(gradient, where)
    assert_close(jax.jit(tx.update)(cut, tx.init(cut))[0], expected)


def test_blocks_along_a_sharded_axis_without_another_one_are_refused() -> None:
    """No other axis can be cut by 8; blocks of 3 cannot either, and come after."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    for sizes in ((8, 8), (3, 13)):
        params = {"w": jnp.ones((4, 16))}
        placement = mo.sharding.owned(mesh, {"w": P(None, "x")})
        with pytest.raises(ValueError, match=r"'w'.*axis on which.*no other axis"):
            mo.plan_matrices(params, axes=mo.Split(sizes), placement=placement)
