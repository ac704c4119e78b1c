"""The same kernels local, at owners, and with a sliced long side, on eight devices."""

import functools
import re
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
    counts_outside_loops,
    LAYOUTS,
    mesh_of,
    points_on,
    replicate,
    SHAPES,
    shard,
    spec_for,
    trees,
)

pytestmark = pytest.mark.devices


def case(name: str, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Kernel, input trees and trees of numbers; of one leaf by `"kernel of leaf"`."""
    gradients, points = trees(rng)
    name, _, leaf = name.partition(" of ")
    if leaf:
        gradients, points = ({leaf: tree[leaf]} for tree in (gradients, points))
    if name == "newton_schulz":
        return kernels.newton_schulz, (gradients,), ()
    if name in ("stiefel_spectral", "reject"):
        return getattr(kernels, name), (gradients, points), ()
    vectors = {
        key: jnp.asarray(
            rng.standard_normal((*SHAPES[key][:-2], min(SHAPES[key][-2:]))), jnp.float32
        )
        for key in SHAPES
    }
    return getattr(kernels, name), (gradients,), (vectors,)


def reduced_shapes(compiled: Any) -> set[tuple[int, ...]]:
    """Shapes of the results of all all-reduces of a compiled program."""
    found = set()
    for result in re.findall(r"= (.*?) all-reduce(?:-start)?\(", compiled.as_text()):
        for shape in re.findall(r"\w+\[([\d,]*)\]", result):
            found.add(tuple(int(n) for n in shape.split(",") if n))
    return found


def mapped(kernel: Any, inputs: Any, numbers: Any, placement: Any = None) -> Any:
    """The results of the kernel, always as a tuple of trees."""
    returns = kernels.RETURNS[kernel]
    found = map_matrices(
        kernel,
        inputs,
        numbers,
        returns=returns,
        axes=mo.STACKED,
        placement=placement,
    )
    return found if len(returns) > 1 else (found,)


def run(kernel: Any, inputs: Any, numbers: Any, placement: Any) -> Any:
    go = jax.jit(lambda i, n: mapped(kernel, i, n, placement))
    compiled = go.lower(inputs, numbers).compile()
    return compiled(inputs, numbers), compiled


KERNELS = ("newton_schulz", "stiefel_spectral", "rank_one_decay")
SOLVER = "stiefel_spectral of tall"
"""By day on one shape, which compiles in a third of the time."""


# The layout is the exchange's business: all of them with the cheapest kernel, and the
# hardest one with the others.
CASES = [("newton_schulz", layout) for layout in LAYOUTS] + [
    ("reject", "two-dimensional turned"),
    ("stiefel_spectral", "two-dimensional turned"),
    ("rank_one_decay", "two-dimensional turned"),
]
NIGHTLY = [
    # `test_exchange` has muon on rows and replicated, the next test two dimensions.
    ("newton_schulz", "rows"),
    ("newton_schulz", "both axes on rows"),
    ("newton_schulz", "two-dimensional"),
    ("newton_schulz", "replicated"),
    ("stiefel_spectral", "long side"),
    # `test_every_transform` slices the decay that computes so.
    ("rank_one_decay", "long side"),
    # What the solver needs is what `reject` needs; the vectors are in the next test.
    ("stiefel_spectral", "two-dimensional turned"),
    ("rank_one_decay", "two-dimensional turned"),
]
"""Cases that another test measures by day."""
_SLOW = pytest.mark.slow


def each_on_one_kind(cases: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """Each case on a mesh of one kind of axes, in turn; nightly on the other, too."""
    kinds = (AxisType.Auto, AxisType.Explicit)
    return pytest.mark.parametrize(
        ("name", "layout", "kind"),
        [
            pytest.param(
                *case,
                kind,
                marks=() if turn % 2 == index and case not in NIGHTLY else _SLOW,
            )
            for turn, case in enumerate(cases)
            for index, kind in enumerate(kinds)
        ],
    )


@functools.cache
def on_one_device(name: str) -> tuple[Any, ...]:
    """Kernel, inputs, numbers, and what one device makes of them."""
    kernel, inputs, numbers = case(name, np.random.default_rng(0))
    expected = jax.jit(lambda i, n: mapped(kernel, i, n))(inputs, numbers)
    return kernel, inputs, numbers, jax.device_get(expected)


@pytest.mark.promise(
    "Layouts and devices",
    "Each matrix whole on one owner: the numbers of one device",
    on="owned, 8 devices; rows, columns, both, replicated; Auto and Explicit axes",
)
@each_on_one_kind(CASES)
def test_owned_equals_one_device(name: str, layout: str, kind: AxisType) -> None:
    kernel, inputs, numbers, expected = on_one_device(name)
    mesh = mesh_of(kind)
    sharded = shard(inputs, mesh, LAYOUTS[layout])
    specs = jax.tree.map(lambda x: spec_for(LAYOUTS[layout], x), inputs[0])
    placement = mo.sharding.owned(mesh, specs if kind == AxisType.Auto else None)
    actual, compiled = run(kernel, sharded, replicate(numbers, mesh), placement)
    assert_close(actual, expected)
    for key, leaf in actual[0].items():
        wanted = NamedSharding(mesh, spec_for(LAYOUTS[layout], inputs[0][key]))
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    if layout == "replicated":
        assert counts_outside_loops(compiled) == {"all-gather": 1}


@pytest.mark.promise(
    "Layouts and devices",
    "An exchange is two all-to-alls for the whole tree",
    on="owned, 8 devices",
)
@pytest.mark.parametrize(
    "name",
    [
        "newton_schulz",
        "weigh",
        pytest.param("rank_one_decay", marks=_SLOW),
        pytest.param("stiefel_spectral", marks=_SLOW),
    ],
)
def test_all_stacks_travel_by_two_all_to_alls_together(
    name: str,
) -> None:
    kernel, inputs, numbers, expected = on_one_device(name)
    mesh = mesh_of(AxisType.Explicit)
    sharded = shard(inputs, mesh, LAYOUTS["two-dimensional"])
    actual, compiled = run(kernel, sharded, replicate(numbers, mesh), None)
    assert_close(actual, expected)
    # Numbers per matrix come back by a small one of their own.
    gathered = {"all-gather": 1} if "number" in kernels.RETURNS[kernel] else {}
    assert counts_outside_loops(compiled) == {"all-to-all": 2, **gathered}


@each_on_one_kind([(name, "long side") for name in (*KERNELS, "weigh", SOLVER)])
def test_sliced_equals_one_device_and_reduces_small_arrays_only(
    name: str, layout: str, kind: AxisType
) -> None:
    del layout
    kernel, inputs, numbers, expected = on_one_device(name)
    # A square matrix is turned if need be, but not under a vector of its short side.
    specs = {
        "square": P(None, "x") if numbers else P("x", None),
        "tall": P(("x", "y"), None),
        "wide": P(None, ("y", "x")),
        "batch": P(None, "y", None),
    }
    mesh = mesh_of(kind)
    specs = {key: specs[key] for key in inputs[0]}
    sharded = tuple(
        {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in tree.items()}
        for tree in inputs
    )
    actual, compiled = run(
        kernel,
        sharded,
        replicate(numbers, mesh),
        mo.sharding.sliced(mesh, specs if kind == AxisType.Auto else None),
    )
    assert_close(actual, expected)
    assert set(counts_outside_loops(compiled)) <= {"all-reduce", "all-gather"}
    if name == "newton_schulz":
        # For each of three stacks one of the scales, and one of the Gram matrices.
        assert counts_outside_loops(compiled) == {"all-gather": 3, "all-reduce": 3}
    short = {32, 16}
    for shape in reduced_shapes(compiled):
        # n × n, vectors of the short side, or numbers, after the size of the stack.
        assert all(size in short or size == 1 for size in shape[1:]), shape


@pytest.mark.promise(
    "Layouts and devices",
    "Stacks sharded along their batch, such as experts, send nothing",
    on="8 devices",
)
@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        # Two of each, and numbers per matrix.
        pytest.param(kernels.stiefel_spectral, AxisType.Explicit, marks=_SLOW),
        pytest.param(kernels.stiefel_spectral, AxisType.Auto, marks=_SLOW),
        (kernels.reject, AxisType.Explicit),
    ],
)
def test_batch_sharded_matrices_stay_where_they_are(
    kernel: Any, kind: AxisType, rng: np.random.Generator
) -> None:
    mesh = mesh_of(kind)
    x = jnp.asarray(rng.standard_normal((8, 24, 12)), jnp.float32)
    points = points_on(mo.Stiefel(), {"experts": x})
    spec = P(("x", "y"), None, None)
    expected = mapped(kernel, ({"experts": x}, points), ())
    put = lambda tree, spec: jax.tree.map(
        lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree
    )
    specs = {"experts": spec} if kind == AxisType.Auto else None
    actual, compiled = run(
        kernel,
        (put({"experts": x}, spec), put(points, spec)),
        (),
        mo.sharding.owned(mesh, specs),
    )
    assert_close(actual, expected)
    assert not counts_outside_loops(compiled)


def test_batch_and_matrix_axes_sharded_together(rng: np.random.Generator) -> None:
    mesh = mesh_of(AxisType.Explicit)
    x = jnp.asarray(rng.standard_normal((4, 24, 12)), jnp.float32)
    expected = mapped(kernels.newton_schulz, ({"w": x},), ())
    sharded = {"w": jax.device_put(x, NamedSharding(mesh, P("x", "y", None)))}
    actual, compiled = run(kernels.newton_schulz, (sharded,), (), None)
    assert_close(actual, expected)
    assert counts_outside_loops(compiled) == {"all-to-all": 2}


@pytest.mark.skipif(
    jax.__version_info__ < (0, 9), reason="JAX 0.8 cannot call such a shard_map eagerly"
)
def test_eager_calls_on_explicit_meshes(rng: np.random.Generator) -> None:
    mesh = mesh_of(AxisType.Explicit)
    x = jnp.asarray(rng.standard_normal((16, 8)), jnp.float32)
    expected = map_matrices(kernels.newton_schulz, ({"w": x},))
    sharded = {"w": jax.device_put(x, NamedSharding(mesh, P("x", "y")))}
    assert_close(map_matrices(kernels.newton_schulz, (sharded,)), expected)


@pytest.mark.parametrize("recipe", [mo.sharding.owned, mo.sharding.sliced])
def test_numbers_lie_as_the_batch_axes_of_their_matrices(recipe: Any) -> None:
    mesh = mesh_of(AxisType.Explicit)
    layout = NamedSharding(mesh, P("x", "y", None))
    tree = {"w": jax.device_put(jnp.ones((2, 16, 8)), layout)}

    def total(x: Any, axis_name: Any = None) -> Any:
        part = jnp.sum(x)
        return part if axis_name is None else jax.lax.psum(part, axis_name)

    go = jax.jit(
        lambda x: map_matrices(
            total,
            (x,),
            returns=("number",),
            axes=mo.STACKED,
            placement=recipe(mesh),
        )
    )
    found = go(tree)["w"]
    assert found.sharding.spec == P("x")
    np.testing.assert_array_equal(found, [128.0, 128.0])


def test_numbers_whose_shape_depends_on_the_placement_are_an_error() -> None:
    mesh = mesh_of(AxisType.Explicit)
    tree = {"w": jax.device_put(jnp.ones((16, 8)), NamedSharding(mesh, P("x", None)))}
    rows = lambda x, axis_name=None: jnp.sum(x, axis=1)
    with pytest.raises(ValueError, match=r"same shapes whether.*\(16,\).*\(8,\)"):
        map_matrices(
            rows, (tree,), returns=("number",), placement=mo.sharding.sliced(mesh)
        )
