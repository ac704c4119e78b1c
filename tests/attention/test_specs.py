"""Specs and statistics that do not fit are errors that name the path."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from manifold_optax import Attention, HeadPart

ONE = Attention(4, 2, query="query", key="key")
PARAMS = {"attention": {"query": jnp.ones((6, 4, 3)), "key": jnp.ones((6, 2, 3))}}
LARGEST = {"attention": jnp.ones(4)}


def clip(
    spec: Any = ONE, *, params: Any = PARAMS, largest: Any = LARGEST, **options: Any
) -> Any:
    attention = spec if isinstance(spec, dict) else {"attention": spec}
    return mo.apply_qk_clip(params, largest, attention, **options)


def spec(**sides: Any) -> Attention:
    return Attention(4, 2, **{"query": "query", "key": "key", **sides})


def raises(error: Exception) -> Any:
    """Expects an error of this class, whose message contains this one."""
    return pytest.raises(type(error), match=re.escape(str(error)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Attention(0, query="q", key="k"), ValueError, "heads must be"),
        (lambda: Attention(6, 4, query="q", key="k"), ValueError, "must divide heads"),
        (lambda: Attention(4, query=(), key="k"), ValueError, "query side, got none"),
        (lambda: Attention(4, query=3, key="k"), TypeError, "must hold paths"),  # pyright: ignore[reportArgumentType]
        (lambda: Attention(4, query=(3,), key="k"), TypeError, "must hold paths"),  # pyright: ignore[reportArgumentType]
        (
            lambda: Attention(
                4, query="q", key="k", query_rope=HeadPart("q", axis=None)
            ),
            ValueError,
            "query_rope must name leaves that hold each head",
        ),
        (lambda: mo.qk_clip({}), TypeError, "at least one entry"),
        (lambda: mo.qk_clip({"a": "query"}), TypeError, "mo.Attention"),  # pyright: ignore[reportArgumentType]
        (lambda: mo.qk_clip(ONE), TypeError, "must be a dict"),  # pyright: ignore[reportArgumentType]
        (lambda: mo.qk_clip({"a": ONE}, threshold=0.0), ValueError, r"in \(0, inf\)"),
        (lambda: mo.qk_clip({"a": ONE}, threshold=-1.0), ValueError, "threshold"),
        (lambda: mo.qk_clip({"a": ONE}, threshold="3"), TypeError, "threshold"),  # pyright: ignore[reportArgumentType]
        (lambda: mo.qk_clip({"a": ONE}, balance=1.1), ValueError, "balance"),
        (lambda: mo.qk_clip({"a": ONE}, balance=float("nan")), ValueError, "balance"),
    ],
)
def test_specs_that_make_no_sense(
    unhooked: None, make: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


SPECS_FIT = pytest.mark.promise(
    "Faults",
    "Specs and statistics of attention that do not fit the model are errors "
    "that say where",
    on="qk_clip: heads, groups, layers, shapes, names",
)


@SPECS_FIT
@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"attn": ONE}, "'attn'.* matches nothing. The paths are: attention/key"),
        ({"attention": ONE, "att.*": ONE}, "Two attention patterns match 'attention'"),
        (spec(key=("key", "bias")), "has no leaf 'attention/bias'"),
        (spec(key=HeadPart("key", axis=3)), "Axis 3 does not exist .*'attention/key'"),
        (spec(key=HeadPart("key", layers=5)), "Axis 5 does not exist"),
        (spec(key=HeadPart("key", axis=0, layers=0)), "must be different"),
        (spec(query=HeadPart("query", axis=(1, 1))), "must be different"),
        (Attention(8, query="query", key="key"), "cannot be shared evenly by 8 query"),
        (spec(query="key", key="key"), "cannot be shared evenly by 4 query"),
        (Attention(2, query="query", key="query"), "name the same entries"),
        (
            spec(key=HeadPart("key", split=mo.Split((2, 2)))),
            r"split \(2, 2\) of axis -1 sums to 4, but the leaf 'attention/key' "
            "of shape .* has 3 there",
        ),
        (
            spec(key=HeadPart("key", split=mo.Split((2, 1)), block=2)),
            "must name some of the blocks 0 to 1",
        ),
        (
            spec(key=HeadPart("key", split=mo.Split((2, 1)), block=(1, 0))),
            "different and in order",
        ),
        (
            Attention(
                2,
                query=HeadPart("key", split=mo.Split((2, 1)), block=0),
                key=HeadPart("key", split=mo.Split((2, 1)), block=1, offset=1.0),
            ),
            "disagree about its axes of stacked layers or its offset",
        ),
        (
            Attention(
                3, query=HeadPart("query", -1), key=HeadPart("key", -1), layers=1
            ),
            "disagree about the number of stacked layers",
        ),
    ],
)
def test_specs_that_do_not_fit_the_model(attention: Any, message: str) -> None:
    attention = attention if isinstance(attention, dict) else {"attention": attention}
    with pytest.raises(ValueError, match=message):
        mo.qk_clip(attention).init(PARAMS)


@SPECS_FIT
@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize(
    ("largest", "error"),
    [
        (None, TypeError("must be a dict")),
        (jnp.ones(4), TypeError("must be a dict")),
        ({}, ValueError("missing: ['attention']")),
        ({**LARGEST, "attentoin": jnp.ones(4)}, ValueError("unknown: ['attentoin']")),
        ({"attention": [1.0] * 4}, TypeError("must be an array, got list")),
        ({"attention": jnp.ones(4, int)}, TypeError("must be real and floating")),
        # The number of key heads, a layer axis that is not there, a batch that was
        # not reduced, the heads of one of two devices, the logits themselves.
        ({"attention": jnp.ones(2)}, ValueError("the shape (4,), got (2,)")),
        ({"attention": jnp.ones((1, 4))}, ValueError("the shape (4,), got (1, 4)")),
        ({"attention": jnp.ones((4, 7, 7))}, ValueError("got (4, 7, 7)")),
    ],
)
def test_statistics_that_do_not_fit(largest: Any, error: Exception) -> None:
    with raises(error):
        clip(largest=largest)


def test_stacked_layers_want_one_statistic_each() -> None:
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), PARAMS)
    stacked = Attention(4, 2, query="query", key="key", layers=0)
    for wrong in ((4,), (2, 4), (4, 3)):
        with pytest.raises(ValueError, match=r"the shape \(3, 4\), got"):
            clip(stacked, params=params, largest={"attention": jnp.ones(wrong)})
    clip(stacked, params=params, largest={"attention": jnp.ones((3, 4))})


def test_missing_statistics_can_be_allowed_but_unknown_ones_never() -> None:
    clipped = clip(largest={}, allow_missing=True)
    np.testing.assert_array_equal(
        clipped["attention"]["query"], PARAMS["attention"]["query"]
    )
    with pytest.raises(ValueError, match="unknown"):
        clip(largest={"other": jnp.ones(4)}, allow_missing=True)


def test_without_the_extra_argument_or_parameters() -> None:
    tx = mo.qk_clip({"attention": ONE})
    with pytest.raises(TypeError, match="max_logits"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="needs the current parameters"):
        tx.update(PARAMS, tx.init(PARAMS), max_logits=LARGEST)


def test_inside_a_partition_masked_leaves_are_named() -> None:
    params = {**PARAMS, "attention": {**PARAMS["attention"], "bias": jnp.ones((4, 3))}}
    with_bias = spec(query=("query", "bias"))
    tx = optax.masked(
        mo.qk_clip({"attention": with_bias}),
        lambda tree: jax.tree.map(lambda leaf: leaf.ndim == 3, tree),
    )
    with pytest.raises(ValueError, match=r"'attention/bias'.*after optax.partition"):
        tx.init(params)


def test_frozen_leaves_are_named() -> None:
    tx = mo.qk_clip({"attention": ONE})
    updates = {"attention": {**PARAMS["attention"], "key": None}}
    with pytest.raises(ValueError, match="'attention/key', but its update is None"):
        tx.update(updates, tx.init(PARAMS), PARAMS, max_logits=LARGEST)


def test_integer_weights_are_named() -> None:
    params = {"attention": {**PARAMS["attention"], "key": jnp.ones((6, 2, 3), int)}}
    with pytest.raises(TypeError, match="'attention/key' has dtype int"):
        mo.qk_clip({"attention": ONE}).init(params)


def test_the_whole_tree_can_be_the_attention() -> None:
    clipped = mo.apply_qk_clip(PARAMS["attention"], {"": jnp.full(4, 400.0)}, {"": ONE})
    np.testing.assert_allclose(clipped["key"], 0.5)


def test_a_path_matches_in_full_and_per_layer() -> None:
    params = {"blocks": [PARAMS, PARAMS], "cross": PARAMS}
    largest = {f"blocks/{i}/attention": jnp.full(4, 400.0) for i in range(2)}
    clipped = clip({r"blocks/\d/attention": ONE}, params=params, largest=largest)
    np.testing.assert_allclose(clipped["blocks"][1]["attention"]["key"], 0.5)
    np.testing.assert_array_equal(clipped["cross"]["attention"]["key"], 1.0)


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize(
    ("part", "error"),
    [
        (HeadPart("key", axis=()), ValueError("must name an axis, got ()")),
        (HeadPart("key", axis=[]), ValueError("must name an axis, got []")),  # pyright: ignore[reportArgumentType]
        (HeadPart("key", axis="1"), TypeError("axis of 'key' must be an int")),  # pyright: ignore[reportArgumentType]
        (HeadPart("key", offset=float("nan")), ValueError("must be finite")),
        (HeadPart("key", axis=1.0), TypeError("axis of 'key' must be an int")),  # pyright: ignore[reportArgumentType]
        (HeadPart("key", layers="0"), TypeError("layers of 'key' must be an int")),  # pyright: ignore[reportArgumentType]
        (HeadPart("key", block=1), ValueError("needs split=")),
        (HeadPart("key", split=(1, 2)), TypeError("must be a mo.Split")),  # pyright: ignore[reportArgumentType]
        (
            HeadPart("key", split=mo.Split((1, 2)), block=None),  # pyright: ignore[reportArgumentType]
            TypeError("block of 'key'"),
        ),
        (HeadPart("key", offset="1"), TypeError("offset of 'key' must be a number")),  # pyright: ignore[reportArgumentType]
        (HeadPart(3), TypeError("path of a leaf must be a string")),  # pyright: ignore[reportArgumentType]
    ],
)
def test_parts_that_mean_nothing(part: HeadPart, error: Exception) -> None:
    with raises(error):
        spec(key=part)


def test_layers_twice_and_a_leaf_of_two_layers_are_refused() -> None:
    """Both would be silent wrong factors."""
    twice = Attention(4, 2, query="query", key="key", layers=(0, 0))
    with pytest.raises(ValueError, match=r"layers \(0, 0\) .* must be different"):
        mo.qk_clip({"attention": twice}).init(PARAMS)
    outer = Attention(4, 2, query="query", key="attention/key")
    params = {**PARAMS, "query": PARAMS["attention"]["query"]}
    with pytest.raises(ValueError, match="'attention/key' belongs to two"):
        mo.qk_clip({"": outer, "attention": ONE}).init(params)


def test_a_traced_threshold_that_is_not_positive_clips_nothing() -> None:
    clipped = jax.jit(lambda t: clip(threshold=t))(jnp.float32(-1.0))
    np.testing.assert_array_equal(clipped["attention"]["key"], 1.0)


def test_two_leaves_of_one_path_are_refused() -> None:
    params = {"attention/key": PARAMS["attention"]["key"], **PARAMS}
    with pytest.raises(ValueError, match="Two leaves have one path, 'attention/key'"):
        mo.qk_clip({"attention": ONE}).init(params)


def test_patterns_thresholds_and_updates_that_are_none(unhooked: None) -> None:
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
        mo.qk_clip({"(": ONE}).init(PARAMS)
    with pytest.raises(ValueError, match=r"threshold must be in \(0, inf\)"):
        mo.qk_clip({"attention": ONE}, threshold=jnp.float32(0))
    with pytest.raises(TypeError, match="balance must be a number, got None"):
        mo.qk_clip({"attention": ONE}, balance=None)  # pyright: ignore[reportArgumentType]
    tx = mo.qk_clip({"attention": ONE})
    updates = {"attention": {**PARAMS["attention"], "key": jnp.ones((1, 2, 3))}}
    with pytest.raises(ValueError, match="'attention/key' differ in shape"):
        tx.update(updates, tx.init(PARAMS), PARAMS, max_logits=LARGEST)


def test_a_kernel_without_the_bias_beside_it_is_an_error() -> None:
    leaf = lambda *shape: jnp.ones(shape)
    dense = lambda: {"kernel": leaf(4, 2, 3), "bias": leaf(2, 3)}
    spec = {"a": mo.Attention(2, query="query/kernel", key="key/kernel")}
    params = {"a": {"query": dense(), "key": dense()}}
    message = r"names 'query/kernel' as query, .* 'query/bias' of shape \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        mo.qk_clip(spec).init(params)
    flat = {"a": {"wq": leaf(4, 2, 3), "bq": leaf(2, 3), "wk": leaf(4, 2, 3)}}
    spec = {"a": mo.Attention(2, query="wq", key="wk")}
    with pytest.raises(ValueError, match="not the bias 'bq'"):
        mo.qk_clip(spec).init(flat)
    named = {"a": mo.Attention(2, query=("wq", "bq"), key="wk")}
    mo.qk_clip(named).init(flat)
    torch = {"q.weight": leaf(6, 4), "q.bias": leaf(6), "k.weight": leaf(6, 4)}
    at = lambda path: mo.HeadPart(path, axis=0)
    spec = {"": mo.Attention(2, query=at("q.weight"), key=at("k.weight"))}
    with pytest.raises(ValueError, match=r"not the bias 'q\.bias'"):
        mo.qk_clip(spec).init(torch)


def test_the_head_axis_of_a_kernel_of_two_axes_must_be_said() -> None:
    params = {
        "query": {"kernel": jnp.ones((4, 6))},
        "key": {"kernel": jnp.ones((4, 6))},
    }
    spec = {"": mo.Attention(2, query="query/kernel", key="key/kernel")}
    message = r"'query/kernel' of shape \(4, 6\) has two axes.*axis=-1\).*axis=-2"
    with pytest.raises(ValueError, match=message):
        mo.qk_clip(spec).init(params)
    stacked = {name: {"kernel": jnp.ones((3, 4, 6))} for name in params}
    layers = {"": mo.Attention(2, query="query/kernel", key="key/kernel", layers=0)}
    with pytest.raises(ValueError, match="has two axes"):
        mo.qk_clip(layers).init(stacked)
