"""What `describe` says of a model, and of what it was given by mistake."""

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
BY_KERNEL = mo.label_by_path({"kernel$": "matrix"}, default="other")


BY_NAME = mo.label_by_path({"empty|w": "matrix"}, default="other")
TITLES = ["path", "shape", "dtype", "label", "fan_out × fan_in", "matrices"]


def rows(description: Any) -> list[list[str]]:
    """Cells of the first table; they are two spaces apart."""
    table = str(description).split("\n\n")[0].splitlines()
    starts = [table[0].index(name) for name in TITLES]
    ends = [*starts[1:], None]
    return [
        [line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in table
    ]


def test_one_line_for_each_leaf_and_then_the_plan() -> None:
    description = mo.describe(mo.label_matrices, LAYERS)
    assert rows(description) == [
        TITLES,
        ["down/kernel", "(8, 4)", "float32", "matrix", "4 × 8", "1"],
        ["embed", "(10, 4)", "float32", "other", "", ""],
        ["step", "()", "int32", "other", "", ""],
        ["up/bias", "(8,)", "bfloat16", "other", "", ""],
        ["up/kernel", "(4, 8)", "float32", "matrix", "8 × 4", "1"],
    ]
    kernels = {"down": LAYERS["down"], "up": {"kernel": LAYERS["up"]["kernel"]}}
    assert str(description).split("\n\n")[1] == str(mo.plan_matrices(kernels))
    assert [leaf.count for leaf in description.leaves] == [1, 0, 0, 0, 1]


def test_arrays_shapes_and_numpy_give_the_same() -> None:
    arrays = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), LAYERS)
    expected = mo.describe(mo.label_matrices, LAYERS)
    assert mo.describe(mo.label_matrices, arrays) == expected
    assert str(mo.describe(mo.label_matrices, jax.device_get(arrays))) == str(expected)


def test_a_tree_of_labels_and_a_prefix_of_one() -> None:
    params = {"a": [shaped(4, 2), shaped(2, 4)], "b": {"w": shaped(4, 2)}}
    tree = {"a": ["matrix", "matrix"], "b": {"w": "other"}}
    expected = mo.describe(tree, params)
    assert [leaf.label for leaf in expected.leaves] == ["matrix", "matrix", "other"]
    assert mo.describe({"a": "matrix", "b": "other"}, params) == expected
    everything = mo.describe("matrix", params)
    assert [leaf.label for leaf in everything.leaves] == ["matrix"] * 3


def test_batch_axes_and_blocks_are_counted() -> None:
    layers = {"qkv": {"kernel": shaped(3, 8, 16)}, "out": {"kernel": shaped(8, 16)}}
    out, qkv = mo.describe(BY_KERNEL, layers).leaves
    assert (qkv.sizes, qkv.count) == ("16 × 8", 3)
    split = mo.Split((8, 4, 4))
    out, qkv = mo.describe(BY_KERNEL, layers, axes=split).leaves
    assert (qkv.sizes, qkv.count) == ("8 × 8, 4 × 8", 9)
    assert (out.sizes, out.count) == ("8 × 8, 4 × 8", 3)
    heads = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=(0, 2))
    (qkv,) = mo.describe("matrix", layers["qkv"], axes=heads).leaves
    assert (qkv.sizes, qkv.count) == ("48 × 8", 1)


def test_several_labels_of_matrices_have_axes_and_a_plan_each() -> None:
    params = {"query": shaped(8, 2, 4), "up": {"kernel": shaped(8, 16)}, "b": shaped(3)}
    labels = {"query": "heads", "up": "matrix", "b": "other"}
    per_head = optax.contrib.MuonDimensionNumbers(0, 2)
    axes = {"heads": per_head, "matrix": mo.LAST_TWO}
    description = mo.describe(labels, params, axes=axes)
    bias, query, up = description.leaves
    assert (query.sizes, query.count) == ("4 × 8", 2)
    assert (up.sizes, up.count, bias.count) == ("16 × 8", 1, 0)
    heads, matrix = description.plans
    assert heads == mo.plan_matrices({"query": params["query"]}, axes=per_head)
    assert str(description).split("\n\n")[1:] == [str(heads), str(matrix)]
    with pytest.raises(ValueError, match=r"labels \['head'\], which no parameter has"):
        mo.describe(labels, params, axes={"head": per_head})


def test_states_of_flax_have_the_paths_of_the_optimizer() -> None:
    model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    description = mo.describe(mo.label_matrices, nnx.state(model, nnx.Param))
    assert [leaf.path for leaf in description.leaves] == ["bias", "kernel"]
    assert str(description.plans[0]).splitlines()[1].endswith("kernel")


def test_what_is_not_there_is_passed_over() -> None:
    params = {
        "absent": None,
        "empty": shaped(0, 4),
        "masked": optax.MaskedNode(),
        "w": shaped(4, 2),
    }
    for labels in (BY_NAME, dict.fromkeys(params, "matrix")):
        description = mo.describe(labels, params)
        assert [leaf.path for leaf in description.leaves] == ["w"]


def test_without_matrices_there_is_no_plan() -> None:
    description = mo.describe("other", {"b": shaped(3)})
    assert str(description) == (
        "path  shape  dtype    label  fan_out × fan_in  matrices\n"
        "b     (3,)   float32  other"
    )


def test_the_placement_reaches_the_plan() -> None:
    mesh = AbstractMesh((4,), ("x",), axis_types=(AxisType.Auto,))
    specs = {"down": {"kernel": P("x")}, "up": {"kernel": P(None, "x")}}
    placement = mo.sharding.owned(mesh, specs)
    description = mo.describe(mo.label_matrices, LAYERS, placement=placement)
    assert "owned, 0 to 1 each, over x" in str(description)


def test_mistakes_name_the_leaf(unhooked: None) -> None:
    with pytest.raises(ValueError, match=r"Cannot tell .* 'conv/kernel'"):
        mo.describe(mo.label_matrices, {"conv": {"kernel": shaped(3, 3, 4, 8)}})
    up = {"up": LAYERS["up"]}
    few = {"up": {"kernel": "matrix"}}
    with pytest.raises(ValueError, match="none for the parameter 'up/bias'"):
        mo.describe(few, up)
    many = {"up": {"kernel": "matrix", "bias": "other", "scale": "other"}}
    with pytest.raises(ValueError, match=r"labels at \['up/scale'\].*up/kernel"):
        mo.describe(many, up)
    with pytest.raises(ValueError, match="'up/bias' of shape"):
        mo.describe("matrix", up)
    with pytest.raises(TypeError, match="'w' has dtype int32"):
        mo.describe("matrix", {"w": shaped(4, 2, dtype=jnp.int32)})
    mesh = AbstractMesh((4,), ("x",), axis_types=(AxisType.Auto,))
    placement = mo.sharding.owned(mesh, {"v": P("x")})
    with pytest.raises(ValueError, match="no spec for 'w'"):
        mo.describe("matrix", {"w": shaped(4, 2)}, placement=placement)
