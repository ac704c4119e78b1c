"""States laid out as their parameters are, from `init` on and after every step."""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from manifold_optax.sharding import state_shardings
from manifold_optax.trees import leaf_path
from sharding.layouts import mesh_of

pytestmark = pytest.mark.devices

KINDS = (AxisType.Explicit, AxisType.Auto)

# Each spec as long as results on a mesh of its kind have it, see `_as_jax_writes`: a
# parameter in another form would make the second program by itself.
LAYOUTS = {
    "Dense_0/kernel": ((32, 16), P("x", "y")),
    "Dense_1/kernel": ((16, 32), P(None, ("x", "y"))),
    "Dense_1/bias": ((32,), P("y")),
}
MATRICES = ("Dense_0/kernel", "Dense_1/kernel")


def parameters(mesh: Any, names: Any = tuple(LAYOUTS)) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for index, name in enumerate(names):
        shape, spec = LAYOUTS[name]
        value = jax.random.normal(jax.random.key(index), shape)
        layer, leaf = name.split("/")
        placed = jax.device_put(value, NamedSharding(mesh, spec))
        tree.setdefault(layer, {})[leaf] = placed
    return tree


def owners(mesh: Any) -> Any:
    """Auto meshes need the specs; Explicit ones are read."""
    if AxisType.Explicit in mesh.axis_types:
        return None
    specs = {name: spec for name, (_, spec) in LAYOUTS.items() if name in MATRICES}
    return mo.sharding.owned(mesh, specs)


def short_muon(mesh: Any) -> optax.GradientTransformation:
    # One step of the iteration: it has the layout of five and compiles sooner.
    return mo.muon(0.02, schedule=mo.linalg.JORDAN[:1], placement=owners(mesh))


def short_manifold_muon(mesh: Any) -> optax.GradientTransformation:
    return mo.manifold_muon(0.02, momentum=0.9, steps=1, placement=owners(mesh))


def by_group(mesh: Any) -> optax.GradientTransformation:
    groups: dict[Hashable, optax.GradientTransformation] = {
        "matrix": optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9)),
        "vector": optax.adamw(1e-2),
    }
    group = lambda x: "matrix" if x.ndim > 1 else "vector"
    return optax.partition(groups, lambda tree: jax.tree.map(group, tree))


# Maker of the transformation, and whether it takes matrices only.
TRANSFORMATIONS = {
    "adamw": (lambda mesh: optax.adamw(optax.linear_schedule(1e-2, 0.0, 9)), False),
    "manifold_muon": (short_manifold_muon, True),
    "muon": (short_muon, True),
    "hybrid": (lambda mesh: mo.hybrid(short_muon(mesh)), False),
    "partition": (by_group, False),
    "accumulated": (lambda mesh: optax.MultiSteps(optax.adam(1e-2), 2), False),
    "injected": (
        lambda mesh: optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2),
        False,
    ),
}


def case(name: str, mesh: Any) -> tuple[optax.GradientTransformation, Any]:
    make, matrices_only = TRANSFORMATIONS[name]
    made = make(mesh)
    tx = optax.GradientTransformation(made.init, made.update)
    return tx, parameters(mesh, MATRICES if matrices_only else tuple(LAYOUTS))


def assert_laid_out(state: Any, shardings: Any) -> None:
    paired = jax.tree_util.tree_leaves_with_path(state)
    for (keys, leaf), wanted in zip(paired, jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding == wanted, leaf_path(keys)


@pytest.mark.promise(
    "Layouts and devices",
    "The state is sharded like its parameters",
    on="`sharding.state_shardings`, Auto and Explicit",
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_averages_lie_as_their_parameters(name: str, kind: AxisType) -> None:
    mesh = mesh_of(kind)
    tx, params = case(name, mesh)
    shardings = state_shardings(tx, params)
    state = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    seen = set()
    paired = jax.tree_util.tree_leaves_with_path(state)
    for (keys, leaf), sharding in zip(paired, jax.tree.leaves(shardings), strict=True):
        path = leaf_path(keys)
        owner = next((p for p in LAYOUTS if path.endswith(p) and leaf.ndim), None)
        wanted = P() if owner is None else LAYOUTS[owner][1]
        assert sharding.mesh == mesh
        assert sharding.is_equivalent_to(NamedSharding(mesh, wanted), leaf.ndim), path
        seen.add(owner)
    assert set(MATRICES) <= seen


STEPS = [
    # Donated on one kind of mesh; what compiles soon, both ways on both.
    *((name, kind, kind == KINDS[1]) for name in TRANSFORMATIONS for kind in KINDS),
    *(("adamw", kind, kind == KINDS[0]) for kind in KINDS),
]


def is_fast(name: str, kind: AxisType) -> bool:
    """Whether a step is compiled by day: on one kind of mesh, in turn.

    The solver and the retraction of manifold Muon compile for 3 s: below it is run
    without compiling. Adam is compiled on both.
    """
    turn = list(TRANSFORMATIONS).index(name)
    return name == "adamw" or (name != "manifold_muon" and kind == KINDS[turn % 2])


STEPS = [
    pytest.param(*step, marks=[] if is_fast(*step[:2]) else [pytest.mark.slow])
    for step in STEPS
]


@pytest.mark.parametrize(("name", "kind", "donate"), STEPS)
def test_a_step_keeps_the_layout_and_its_one_program(
    name: str, kind: AxisType, donate: bool
) -> None:
    tx, params = case(name, mesh_of(kind))
    shardings = state_shardings(tx, params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    assert_laid_out(state, shardings)
    layouts = jax.tree.map(lambda x: x.sharding, params)
    gradients = jax.tree.map(jnp.sin, params)

    def step(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradients, state, params)
        return state, optax.apply_updates(params, updates)

    jitted: Any = jax.jit(step, donate_argnums=(1, 2) if donate else ())
    for _ in range(3):
        state, params = jitted(gradients, state, params)
        assert_laid_out((state, params), (shardings, layouts))
    assert jitted._cache_size() == 1


def test_specs_with_trailing_nones_keep_one_program() -> None:
    layout = NamedSharding(mesh_of(AxisType.Auto), P("x", None))
    params = {"w": jax.device_put(jnp.ones((8, 4)), layout)}
    tx = optax.trace(0.9)
    shardings = state_shardings(tx, params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)

    def step(state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = tx.update(params, state, params)
        return state, optax.apply_updates(params, updates)

    jitted: Any = jax.jit(step)
    for _ in range(3):
        state, params = jitted(state, params)
    assert jitted._cache_size() == 1


PRESETS = (
    mo.hyperball,
    mo.manifold_muon,
    mo.muon,
    mo.normuon,
    mo.scion,
    mo.sign_descent,
    mo.spectral_sphere,
    mo.spel,
)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.__name__)
def test_an_update_derives_the_layout_that_it_was_given(preset: Any) -> None:
    # On Explicit meshes JAX derives the layout of each result without compiling.
    tx, params = preset(0.02), parameters(mesh_of(AxisType.Explicit), MATRICES)
    shardings = jax.tree.leaves(state_shardings(tx, params))
    state = jax.eval_shape(tx.init, params)
    _, new = jax.eval_shape(tx.update, params, state, params)
    for (keys, leaf), wanted in zip(
        jax.tree_util.tree_leaves_with_path(new), shardings, strict=True
    ):
        spec = P() if leaf.sharding is None else leaf.sharding.spec
        assert tuple(wanted.spec) == tuple(spec), leaf_path(keys)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_per_matrix_lie_along_the_batch_axes(kind: AxisType) -> None:
    mesh = mesh_of(kind)
    layout = NamedSharding(mesh, P("y", "x", None))
    params = {"experts": jax.ShapeDtypeStruct((4, 32, 16), "float32", sharding=layout)}
    gap = state_shardings(
        mo.manifold_muon(0.02, axes=mo.STACKED, certify=True), params
    )["direction"].gap["experts"]
    assert gap.is_equivalent_to(NamedSharding(mesh, P("y")), 1)
    right = state_shardings(
        mo.add_spectral_weight_decay(0.1, axes=mo.STACKED), params
    ).right["experts"]
    assert right.is_equivalent_to(NamedSharding(mesh, P("y", None)), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_an_nnx_optimizer(kind: AxisType) -> None:
    mesh = mesh_of(kind)
    model = nnx.Linear(16, 32, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    spec = lambda x: P("x", "y") if x.ndim == 2 else P("y")
    params = jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, spec(x))), params
    )
    nnx.update(model, params)
    tx = mo.hybrid(mo.muon(0.02, placement=owners_of_linear(mesh)))
    shardings = state_shardings(tx, params)
    assert jax.tree.structure(shardings) == jax.tree.structure(tx.init(params))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    found = jax.tree_util.tree_leaves_with_path(optimizer.opt_state)
    wanted = jax.tree.leaves(shardings)
    assert sum(any(sharding.spec) for sharding in wanted) == 3  # Momentum, two of Adam.
    for (keys, leaf), sharding in zip(found, wanted, strict=True):
        # Counts are made on one device, when nobody places them.
        if leaf.ndim:
            assert sharding.is_equivalent_to(leaf.sharding, leaf.ndim), leaf_path(keys)


def owners_of_linear(mesh: Any) -> Any:
    if AxisType.Explicit in mesh.axis_types:
        return None
    return mo.sharding.owned(mesh, {"kernel": P("x", "y")})


def from_shapes() -> optax.GradientTransformation:
    """State made from shapes alone, which carry no layout."""

    def init(params: Any) -> Any:
        return {
            "zeros": jax.tree.map(lambda p: jnp.zeros(p.shape), params),
            "grams": jax.tree.map(lambda p: jnp.zeros((p.shape[-1],) * 2), params),
            "other": jnp.zeros((16, 32)),
        }

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return updates, state

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_from_a_shape_lies_as_the_parameter_of_its_path(
    kind: AxisType,
) -> None:
    mesh = mesh_of(kind)
    found = state_shardings(from_shapes(), parameters(mesh))
    equals = lambda sharding, spec, rank: sharding.is_equivalent_to(
        NamedSharding(mesh, spec), rank
    )
    assert equals(found["zeros"]["Dense_0"]["kernel"], P("x", "y"), 2)
    assert equals(found["zeros"]["Dense_1"]["kernel"], P(None, ("x", "y")), 2)
    assert equals(found["zeros"]["Dense_1"]["bias"], P("y"), 1)
    # Of the path of a parameter but not of its shape, and the other way round.
    assert equals(found["grams"]["Dense_0"]["kernel"], P(), 2)
    assert equals(found["other"], P(), 2)


def test_the_longest_path_decides() -> None:
    mesh = mesh_of(AxisType.Auto)
    place = lambda *axes: jax.device_put(
        jnp.ones((8, 8)), NamedSharding(mesh, P(*axes))
    )
    params = {"w": place("x"), "z": {"w": place("y")}}
    found = state_shardings(from_shapes(), params)["zeros"]
    assert found["w"].spec == P("x")
    assert found["z"]["w"].spec == P("y")


def test_absent_leaves_stay_absent() -> None:
    mesh = mesh_of(AxisType.Explicit)
    params = {"a": None, "b": optax.MaskedNode(), **parameters(mesh)}
    found = state_shardings(optax.trace(0.9), params).trace
    assert found["a"] is None
    assert found["b"] == optax.MaskedNode()
    assert found["Dense_0"]["kernel"].spec == P("x", "y")


def test_shapes_with_layouts_are_enough() -> None:
    mesh = mesh_of(AxisType.Explicit)
    described = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        parameters(mesh),
    )
    tx = optax.adamw(1e-2)
    assert state_shardings(tx, described) == state_shardings(tx, parameters(mesh))
    # Without devices in the layouts, the mesh has to be said.
    kinds = (AxisType.Explicit,) * 2
    abstract = AbstractMesh((2, 4), ("x", "y"), axis_types=kinds)
    described = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(abstract, x.sharding.spec)
        ),
        described,
    )
    found = state_shardings(tx, described, mesh=mesh)
    assert found == state_shardings(tx, parameters(mesh))
    with pytest.raises(ValueError, match="name no mesh of devices; give mesh="):
        state_shardings(tx, described)


def test_parameters_that_lie_on_no_common_mesh_are_refused() -> None:
    mesh = mesh_of(AxisType.Explicit)
    tx = optax.adamw(1e-2)
    with pytest.raises(ValueError, match="No parameter is laid out over a mesh; shard"):
        state_shardings(tx, {"w": jnp.ones((4, 4))})
    params = {**parameters(mesh), "scale": jnp.ones(3)}
    with pytest.raises(ValueError, match="parameter 'scale' has the sharding Single"):
        state_shardings(tx, params)
    other = jax.make_mesh((8,), ("x",))
    params["scale"] = jax.device_put(jnp.ones(3), NamedSharding(other, P()))
    with pytest.raises(ValueError, match=r"'scale' lies on a mesh {'x': 8}, but"):
        state_shardings(tx, params)
    with pytest.raises(ValueError, match="name no mesh of devices"):
        state_shardings(tx, {})
