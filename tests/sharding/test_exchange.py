"""What the owner exchange sends and computes, and the recipes beside it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from manifold_optax.matrices import map_matrices
from sharding import kernels
from sharding.layouts import assert_close, points_on

pytestmark = pytest.mark.devices

BF16_EPS = 2.0**-8


def transformer(rng: np.random.Generator, layers: int, width: int) -> dict[str, Any]:
    """Of PERFORMANCE 3, smaller: per layer 4 square, a wide and a tall matrix."""
    shapes = dict.fromkeys(("q", "k", "v", "o"), (width, width))
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    return {
        f"{name}{layer}": jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for layer in range(layers)
        for name, shape in shapes.items()
    }


# Mesh, its axes, the spec of all matrices, D devices that cut one, R replicas.
LAYOUTS: dict[str, tuple[Any, Any, P, int, int]] = {
    "rows": ((8,), ("data",), P("data", None), 8, 1),
    "columns": ((8,), ("model",), P(None, "model"), 8, 1),
    "two-dimensional": ((2, 4), ("data", "model"), P("data", "model"), 8, 1),
    "replicated": ((8,), ("data",), P(None, None), 1, 8),
    "hybrid": ((2, 4), ("data", "model"), P(None, "model"), 4, 2),
    "partial": ((2, 2, 2), ("data", "fsdp", "tensor"), P(None, "fsdp"), 2, 4),
}


def placed(tree: Any, layout: str, **options: Any) -> tuple[Any, mo.sharding.Placement]:
    shape, names, spec, _, _ = LAYOUTS[layout]
    kinds = (AxisType.Auto,) * len(shape)
    mesh = jax.make_mesh(shape, names, axis_types=kinds)
    put = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec)), tree)
    specs = jax.tree.map(lambda _: spec, tree)
    return put, mo.sharding.owned(mesh, specs, **options)


def whole_step(tx: Any, params: Any) -> tuple[Any, Any]:
    """Compiled update and apply, with a state laid out like the parameters."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    sharded = isinstance(jax.tree.leaves(params)[0].sharding, NamedSharding)
    layout = mo.sharding.state_shardings(tx, params) if sharded else None
    state = jax.jit(tx.init, out_shardings=layout)(params)
    return jax.jit(step).lower(params, state, params).compile(), state


@pytest.fixture(scope="module")
def one_device() -> tuple[Any, Any, int]:
    """Parameters, what a step makes of them on one device, and its FLOPs."""
    params = transformer(np.random.default_rng(0), 4, 32)
    step, state = whole_step(mo.muon(0.1), params)
    return params, step(params, state, params)[0], mo.programs.dot_flops(step)


# By day `test_placements` sends the first two, another test here the last one.
NIGHTLY = ("columns", "two-dimensional", "hybrid")


@pytest.mark.promise(
    "Layouts and devices",
    "A step of Muon sends the bytes of the lower bound of one exchange, and no more",
    on=(
        "owned, 8 devices; rows, columns, both, replicated, hybrid replicas "
        "(HSDP), part of the mesh"
    ),
)
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in NIGHTLY else [])
        for name in LAYOUTS
    ],
)
def test_a_step_of_muon_sends_what_the_bound_asks_for(
    layout: str, one_device: tuple[Any, Any, int], measured: Callable[..., None]
) -> None:
    params, expected, total = one_device
    put, placement = placed(params, layout)
    sharded, state = whole_step(mo.muon(0.1, placement=placement), put)
    assert_close(sharded(put, state, put)[0], expected)

    *_, devices, replicas = LAYOUTS[layout]
    shard = sum(x.nbytes for x in params.values()) / devices
    found = mo.programs.collectives(sharded)
    assert found.inside_loops == 0
    counts = {kind.name: kind.outside.count for kind in found.kinds}
    assert counts == {
        **({"all-to-all": 2} if devices > 1 else {}),
        **({"all-gather": 1} if replicas > 1 else {}),
    }
    # One input, one output: the bound of the exchange, in bytes.
    bound = 2 * (devices - 1) / devices / replicas + (replicas - 1) / replicas
    assert found.wire() >= bound * shard * (1 - 1e-6)
    # The bound itself is rounded.
    measured(found.wire() / (bound * shard), at_most=1 + 1e-6)
    assert mo.programs.dot_flops(sharded) <= 1.05 * total / (devices * replicas)


def test_parameters_that_travel_along_cost_half_as_much_again(
    rng: np.random.Generator,
) -> None:
    params = points_on(mo.Stiefel(), transformer(rng, 4, 8))
    put, placement = placed(params, "rows")
    tx = mo.retract_polar(placement=placement)
    compiled = jax.jit(tx.update).lower(put, optax.EmptyState(), put).compile()
    found = mo.programs.collectives(compiled)
    shard = sum(x.nbytes for x in params.values()) / 8
    assert found.count("all-to-all") == found.count() == 2
    assert found.wire() == pytest.approx(3 * 7 / 8 * shard, rel=1e-6)


@pytest.mark.parametrize(
    "layout", ["hybrid", pytest.param("replicated", marks=pytest.mark.slow)]
)
def test_replicas_that_repeat_the_work_gather_nothing(
    layout: str, rng: np.random.Generator
) -> None:
    params = transformer(rng, 1, 16)
    expected = jax.jit(lambda x: map_matrices(kernels.newton_schulz, (x,)))(params)
    put, placement = placed(params, layout, replicas="repeat")
    go = jax.jit(
        lambda x: map_matrices(kernels.newton_schulz, (x,), placement=placement)
    )
    compiled = go.lower(put).compile()
    assert_close(compiled(put), expected)
    assert mo.programs.collectives(compiled).count("all-gather") == 0
    plan = str(mo.plan_matrices(params, placement=placement))
    assert ("repeated 8 times over data" in plan) == (layout == "replicated")


# The hybrid has an all-gather besides.
@pytest.mark.parametrize(
    "layout", [pytest.param("two-dimensional", marks=pytest.mark.slow), "hybrid"]
)
def test_a_narrow_wire_halves_the_bytes(layout: str, rng: np.random.Generator) -> None:
    params = {f"w{i}": x for i, x in enumerate(rng.standard_normal((8, 32, 16)))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    programs = []
    for wire in (None, jnp.bfloat16):
        put, placement = placed(params, layout, wire=wire)
        go = jax.jit(
            lambda x, placement=placement: map_matrices(
                kernels.newton_schulz, (x,), placement=placement
            )
        )
        programs.append(go.lower(put).compile())
    wide, narrow = (program(put) for program in programs)
    wires = [mo.programs.collectives(program).wire() for program in programs]
    assert wires[1] == wires[0] / 2
    for name, x in wide.items():
        # Rounded on the way there, and the polynomial's slope at 0 is below 500 times
        # what is left of small singular values; rounded once more on the way back.
        error = jnp.linalg.norm(narrow[name] - x) / jnp.linalg.norm(x)
        assert 0 < error < 4 * BF16_EPS


def test_half_precision_leaves_travel_as_they_are(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.standard_normal((8, 32, 16)), jnp.bfloat16)
    params = {f"w{i}": leaf for i, leaf in enumerate(x)}
    expected = jax.jit(lambda x: map_matrices(kernels.newton_schulz, (x,)))(params)
    put, placement = placed(params, "rows")
    go = jax.jit(
        lambda x: map_matrices(kernels.newton_schulz, (x,), placement=placement)
    )
    compiled = go.lower(put).compile()

    def close(a: Any, b: Any) -> None:
        # Sums in another order may end on the other side of a rounding to bfloat16.
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=BF16_EPS)

    jax.tree.map(close, compiled(put), expected)
    shard = sum(leaf.nbytes for leaf in params.values()) / 8
    assert mo.programs.collectives(compiled).wire() == 2 * 7 / 8 * shard


UNEVEN = {
    "fewer matrices than devices": {"a": (3, 16, 8)},
    "one": {"a": (16, 8)},
    "several shapes": {"a": (9, 16, 8), "b": (5, 8, 8), "c": (8, 24), "d": (24, 8)},
}


@pytest.mark.promise(
    "Layouts and devices",
    "Stacks that do not divide by the devices, or are fewer, give the "
    "numbers of one device",
    on="owned, 8 devices",
)
# Three are fewer matrices than devices as well as one is.
@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "one" else [])
        for name in UNEVEN
    ],
)
def test_uneven_stacks(shapes: str, rng: np.random.Generator) -> None:
    trees = [
        {
            name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
            for name, shape in UNEVEN[shapes].items()
        }
        for _ in range(2)
    ]
    vectors = {
        name: jnp.asarray(rng.standard_normal((*x.shape[:-2], 8)), jnp.float32)
        for name, x in trees[0].items()
    }
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    specs = {name: P(*(None,) * (x.ndim - 2), "x", "y") for name, x in trees[0].items()}
    put = {
        name: jax.device_put(x, NamedSharding(mesh, specs[name]))
        for name, x in trees[0].items()
    }

    def go(placement: Any) -> Any:
        return jax.jit(
            lambda x: map_matrices(
                kernels.weigh,
                (x,),
                (vectors,),
                returns=("matrix", "number"),
                axes=mo.STACKED,
                placement=placement,
            )
        )

    placement = mo.sharding.owned(mesh, specs)
    assert_close(go(placement)(put), go(None)(trees[0]))


@pytest.mark.parametrize(
    "kind", [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.slow)]
)
def test_a_cut_of_the_short_side_is_moved_to_the_long_one(
    kind: AxisType, rng: np.random.Generator
) -> None:
    shapes = {"tall": (64, 16), "wide": (2, 16, 64), "both": (64, 8)}
    specs = {"tall": P(None, "x"), "wide": P(None, "y", None), "both": P("x", "y")}
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind))
    tree = {
        name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for name, shape in shapes.items()
    }
    vectors = {
        name: jnp.asarray(
            rng.standard_normal((*x.shape[:-2], min(x.shape[-2:]))), jnp.float32
        )
        for name, x in tree.items()
    }
    put = {
        name: jax.device_put(x, NamedSharding(mesh, specs[name]))
        for name, x in tree.items()
    }
    placement = mo.sharding.sliced(mesh, specs if kind == AxisType.Auto else None)

    def go(placement: Any) -> Any:
        return jax.jit(
            lambda x, v: map_matrices(
                kernels.weigh,
                (x,),
                (v,),
                returns=("matrix", "number"),
                axes=mo.STACKED,
                placement=placement,
            )
        )

    where = NamedSharding(mesh, P())
    there = jax.tree.map(lambda x: jax.device_put(x, where), vectors)
    compiled = go(placement).lower(put, there).compile()
    assert_close(compiled(put, there), go(None)(tree, vectors))
    assert mo.programs.collectives(compiled).count("all-to-all") == 6
    plan = str(mo.plan_matrices(put, axes=mo.STACKED, placement=placement))
    assert plan.count("cooperative over") == 3


def test_work_of_several_exchanges_is_spread_over_all_devices() -> None:
    # Four layouts of two matrices each: eight owners, one matrix each.
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    cuts = (P("x", None), P(None, "y"), P("x", "y"), P(None, None))
    specs = {f"w{i}": spec for i, spec in enumerate(2 * cuts)}
    tree = {
        name: jax.random.normal(jax.random.key(i), (16, 16))
        for i, name in enumerate(specs)
    }
    put = {n: jax.device_put(x, NamedSharding(mesh, specs[n])) for n, x in tree.items()}
    placement = mo.sharding.owned(mesh, specs)
    plan = mo.plan_matrices(tree, placement=placement)
    alone = str(mo.plan_matrices({"w": tree["w0"]}))
    busiest = [text.splitlines()[-1].split()[2] for text in (str(plan), alone)]
    assert busiest[0] == busiest[1]
    # Only the way there and back matters here.
    square = lambda x, axis_name=None: x * x
    found = jax.jit(lambda x: map_matrices(square, (x,), placement=placement))(put)
    for name, x in found.items():
        np.testing.assert_array_equal(x, tree[name] ** 2)


def test_auto_slices_long_matrices_and_deals_out_the_others() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    shapes = {"embedding": (4096, 64), "mlp": (16, 256, 64), "head": (64, 4096)}
    tree = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    specs = {"embedding": P("x", None), "mlp": P(None, "x", None), "head": P("x", None)}
    placement = mo.sharding.auto(mesh, specs)
    plan = mo.plan_matrices(tree, axes=mo.STACKED, placement=placement)
    recipes = {
        member.view.path: group.recipe
        for group in (*plan.groups, *plan.exchanges[0].groups)
        for member in group.members
    }
    assert recipes == {"embedding": "sliced", "head": "cooperative", "mlp": "owned"}


def test_the_order_of_a_short_side_of_several_axes_is_kept() -> None:
    # Two leaves that share a shape and a cut, but not the sizes of the axes cut.
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    tree = {"a": jnp.ones((64, 4, 8)), "b": jnp.ones((64, 8, 4))}
    axes = optax.contrib.MuonDimensionNumbers(0, (1, 2))
    specs = dict.fromkeys(tree, P(None, None, "x"))
    put = {
        name: jax.device_put(x, NamedSharding(mesh, specs[name]))
        for name, x in tree.items()
    }

    def number_columns(x: Any, axis_name: Any = None) -> Any:
        return x * jnp.arange(x.shape[1])[None, :]

    for placement in (mo.sharding.sliced(mesh, specs), mo.sharding.owned(mesh, specs)):
        go = jax.jit(
            lambda x, placement=placement: map_matrices(
                number_columns, (x,), axes=axes, placement=placement
            )
        )
        for name, x in go(put).items():
            numbered = np.broadcast_to(np.arange(32.0), (64, 32))
            np.testing.assert_array_equal(x.reshape(64, 32), numbered, err_msg=name)
