"""What `describe` says of a model, and of what it was given by mistake."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec as P

import manifold_optax as mo


def shaped(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


LAYERS = {
    "embed": shaped(10, 4),
    "up": {"kernel": shaped(4, 8), "bias": shaped(8, dtype=jnp.bfloat16)},
    "down": {"kernel": shaped(8, 4)},
    "step": shaped(dtype=jnp.int32),
}
TITLES = ["path", "shape", "dtype", "label", "fan_out × fan_in", "matrices"]


def rows(description: Any, titles: Sequence[str] = TITLES) -> list[list[str]]:
    """Cells of the first table; they are two spaces apart."""
    table = str(description).split("\n\n")[0].splitlines()
    starts = [table[0].index(name) for name in titles]
    ends = [*starts[1:], None]
    return [
        [line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in table
    ]


def test_one_line_for_each_leaf_and_then_the_plan() -> None:
    description = mo.describe(mo.roles(), LAYERS)
    assert rows(description) == [
        TITLES,
        ["down/kernel", "(8, 4)", "float32", "matrix", "4 × 8", "1"],
        ["embed", "(10, 4)", "float32", "embedding", "", ""],
        ["step", "()", "int32", "vector", "", ""],
        ["up/bias", "(8,)", "bfloat16", "vector", "", ""],
        ["up/kernel", "(4, 8)", "float32", "matrix", "8 × 4", "1"],
    ]
    kernels = {"down": LAYERS["down"], "up": {"kernel": LAYERS["up"]["kernel"]}}
    assert str(description).split("\n\n")[1] == str(mo.plan_matrices(kernels))
    assert [leaf.count for leaf in description.leaves] == [1, 0, 0, 0, 1]


def test_arrays_shapes_and_numpy_give_the_same() -> None:
    arrays = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), LAYERS)
    expected = mo.describe(mo.roles(), LAYERS)
    assert mo.describe(mo.roles(), arrays) == expected
    assert str(mo.describe(mo.roles(), jax.device_get(arrays))) == str(expected)


def test_batch_axes_and_blocks_are_counted() -> None:
    layers = {"qkv": {"kernel": shaped(3, 8, 16)}, "out": {"kernel": shaped(8, 16)}}
    out, qkv = mo.describe(mo.roles({"qkv": mo.STACKED}), layers).leaves
    assert (qkv.sizes, qkv.count) == ("16 × 8", 3)
    split = mo.roles({"kernel": mo.Split((8, 4, 4))})
    out, qkv = mo.describe(split, layers).leaves
    assert (qkv.sizes, qkv.count) == ("8 × 8, 4 × 8", 9)
    assert (out.sizes, out.count) == ("8 × 8, 4 × 8", 3)
    heads = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=(0, 2))
    out, qkv = mo.describe(mo.roles({"qkv": heads}), layers).leaves
    assert (qkv.sizes, qkv.count) == ("48 × 8", 1)


MODEL = {
    "attention": {"query": shaped(8, 2, 4), "key": shaped(8, 2, 4)},
    "experts": shaped(3, 8, 8),
    "up": {"kernel": shaped(8, 16), "bias": shaped(16)},
}
ROLES = mo.roles({"query|key": mo.HEADS, "experts": mo.Role("expert", mo.STACKED)})


def test_several_labels_of_matrices_have_a_plan_each() -> None:
    description = mo.describe(ROLES, MODEL)
    key, query, experts, bias, up = description.leaves
    assert (query.sizes, query.count) == (key.sizes, key.count) == ("8 × 8", 1)
    assert (experts.sizes, experts.count) == ("8 × 8", 3)
    assert (up.sizes, up.count, bias.count) == ("16 × 8", 1, 0)
    expert, matrix = description.plans
    assert expert == mo.plan_matrices({"experts": MODEL["experts"]}, axes=mo.STACKED)
    # Leaves that lie differently share one plan.
    assert str(matrix).count("attention/key, attention/query") == 1
    assert "up/kernel" in str(matrix)


@pytest.mark.promise(
    "What is applied",
    "`describe` shows each leaf as the optimizer treats it",
    on="hybrid, partition, presets",
)
def test_an_optimizer_is_described_as_it_was_built() -> None:
    tx = mo.hybrid(
        {
            "matrix": mo.muon(0.02, axes=ROLES),
            "expert": mo.manifold_muon(0.1, axes=ROLES),
        },
        labels=ROLES,
    )
    wrapped = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), tx), 2)
    for transformation in (tx, wrapped.gradient_transformation()):
        description = mo.describe(transformation, MODEL)
        described = {leaf.path: leaf for leaf in description.leaves}
        assert described["experts"].label == "expert"
        assert described["experts"].links == ("dual_ascent_spectral", "retract")
        assert described["attention/query"].sizes == "8 × 8"
        links = ("orthogonalize_via_newton_schulz", "scale_by_shape")
        assert described["attention/query"].links == links
        assert described["up/bias"].links == ("others",)
        assert set(description.plans) == set(mo.describe(ROLES, MODEL).plans)


def test_muon_clip_shows_which_leaves_are_clipped() -> None:
    spec = mo.Attention(2, query="query", key="key")
    known = mo.roles({"query|key": mo.HEADS, "experts": mo.STACKED})
    tx = mo.muon_clip(1e-3, {"attention": spec}, roles=known)
    clipped = [
        leaf.path
        for leaf in mo.describe(tx, MODEL).leaves
        if "qk_clip" in leaf.links and "orthogonalize" in leaf.links[0]
    ]
    assert clipped == ["attention/key", "attention/query"]


def test_an_optimizer_without_labels_has_no_such_column() -> None:
    text = str(mo.describe(mo.muon(0.02), {"w": shaped(4, 2)}))
    assert text.splitlines()[0].split() == (
        ["path", "shape", "dtype", "fan_out", "×", "fan_in", "matrices", "links"]
    )


def test_states_of_flax_have_the_paths_of_the_optimizer() -> None:
    model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    description = mo.describe(mo.roles(), nnx.state(model, nnx.Param))
    assert [leaf.path for leaf in description.leaves] == ["bias", "kernel"]
    assert str(description.plans[0]).splitlines()[1].endswith("kernel")


def test_what_is_not_there_is_passed_over() -> None:
    params = {
        "absent": None,
        "empty": shaped(0, 4),
        "masked": optax.MaskedNode(),
        "w": shaped(4, 2),
    }
    known = mo.roles({"empty": "matrix"})
    for subject in (known, mo.muon(0.02)):
        description = mo.describe(subject, params)
        assert [leaf.path for leaf in description.leaves] == ["w"]


def test_without_matrices_there_is_no_plan() -> None:
    description = mo.describe(mo.roles(), {"b": shaped(3)})
    assert str(description) == (
        "path  shape  dtype    label\nb     (3,)   float32  vector"
    )


def test_the_placement_reaches_the_plan() -> None:
    mesh = AbstractMesh((4,), ("x",), axis_types=(AxisType.Auto,))
    specs = {"down": {"kernel": P("x")}, "up": {"kernel": P(None, "x")}}
    placement = mo.sharding.owned(mesh, specs)
    description = mo.describe(mo.roles(), LAYERS, placement=placement)
    assert "owned, 0 to 1 each, over x" in str(description)
    tx = mo.hybrid(mo.muon(0.02, placement=placement))
    assert mo.describe(tx, LAYERS).plans == description.plans


def test_mistakes_name_the_leaf(unhooked: None) -> None:
    with pytest.raises(ValueError, match="do not tell what they are: 'conv/kernel'"):
        mo.describe(mo.roles(), {"conv": {"kernel": shaped(3, 3, 4, 8)}})
    with pytest.raises(ValueError, match="'up/bias' of shape"):
        mo.describe(mo.muon(0.02), {"up": LAYERS["up"]})
    integers = {"w": shaped(4, 2, dtype=jnp.int32)}
    for subject in (mo.roles(), mo.muon(0.02)):
        with pytest.raises(TypeError, match="'w' has dtype int32"):
            mo.describe(subject, integers)
    mesh = AbstractMesh((4,), ("x",), axis_types=(AxisType.Auto,))
    placement = mo.sharding.owned(mesh, {"v": P("x")})
    with pytest.raises(ValueError, match="no spec for 'w'"):
        mo.describe(mo.roles(), {"w": shaped(4, 2)}, placement=placement)
    with pytest.raises(ValueError, match="An optimizer has a placement of its own"):
        mo.describe(mo.muon(0.02), {"w": shaped(4, 2)}, placement=placement)
    with pytest.raises(TypeError, match="subject must be an optax"):
        mo.describe("matrix", {"w": shaped(4, 2)})  # pyright: ignore[reportArgumentType]
