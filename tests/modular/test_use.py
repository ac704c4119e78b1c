"""Matrices, convolutions and heads from use, and all golden models."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import manifold_optax as mo
from manifold_optax.modular._computation._trace import trace
from manifold_optax.modular._uses._roles import conflicts, roles_from_use
from manifold_optax.modular._uses._use import uses
from modular.models import each_model, gpt2, MODELS, same_role
from modular.used import (
    BATCH,
    HEADS,
    in_heads,
    kinds,
    LENGTH,
    mixed,
    SIZE,
    the_axes,
    used,
    WIDTH,
    X,
)

PER_HEAD = optax.contrib.MuonDimensionNumbers(-3, -1)


CONTRADICTING = {
    # The second of a low-rank pair is called `b`, as biases are.
    "lora": "'adapters/0/b' (and 1 like it)",
    "lora_merged": "'adapters/0/b' (and 1 like it)",
    # `output_proj` is a readout in other libraries.
    "equinox_transformer": "'attention/output_proj/weight'",
}
"""The golden models whose names contradict their use, and where."""


@each_model()
def test_the_roles_of_a_model(name: str) -> None:
    model = MODELS[name]()
    graph, paths, _ = trace(model.forward, model.params, *model.inputs)
    shapes = {
        path: value.shape for path, value in zip(paths, graph.inputs, strict=False)
    }
    found = uses(graph, paths)
    tied = {path: "embedding" for path, use in model.uses.items() if use == "tied"}
    assert {path for path, some in found.items() if len(some) > 1} == set(tied)
    roles = roles_from_use(found, shapes, tied)
    for path in paths:
        role = roles.role_of(path, shapes[path])
        assert role is not None
        golden = (model.roles[path], model.alternatives.get(path, model.roles[path]))
        assert any(same_role(one, role, shapes[path]) for one in golden), (path, role)
    messages = conflicts(found, shapes)
    assert len(messages) == (name in CONTRADICTING)
    assert all(CONTRADICTING[name] in message for message in messages)


def test_twelve_layers_are_read_quickly() -> None:
    model = gpt2()
    graph, paths, _ = trace(model.forward, model.params, *model.inputs)
    start = time.process_time()
    found = uses(graph, paths)
    # 0.08 s on an idle core, 0.5 s with checks of types, 1.3 s under coverage: a rule
    # that enumerates the entries of a leaf takes minutes.
    assert time.process_time() - start < 5.0
    assert the_axes(found, "h/11/c_attn/w") == mo.Split((64,) * 36)


def _per_head_fused(p: Any, x: jax.Array) -> jax.Array:
    y = (x @ p["w"]).reshape(BATCH, LENGTH, HEADS, 3, SIZE)
    return mixed(y[:, :, :, 0], y[:, :, :, 1], y[:, :, :, 2]) @ p["out"]


def _unstacked(p: Any, x: jax.Array) -> jax.Array:
    y = (x @ p["w"]).reshape(BATCH, LENGTH, 3, HEADS, SIZE)
    return mixed(*jnp.moveaxis(y, 2, 0)) @ p["out"]


def _sliced_weights(p: Any, x: jax.Array) -> jax.Array:
    parts = (p["w"][:, i * WIDTH : (i + 1) * WIDTH] for i in range(3))
    return mixed(*(in_heads(x @ part) for part in parts)) @ p["out"]


def _rotated_together(p: Any, x: jax.Array) -> jax.Array:
    """Queries and keys are joined, turned by their first half, and split again."""
    query, key, value = map(in_heads, jnp.split(x @ p["w"], 3, axis=-1))
    both = jnp.concatenate([query, key], axis=2)
    turned, kept = both[..., :2], both[..., 2:]
    half = jnp.concatenate([-turned[..., 1:], turned[..., :1]], axis=-1)
    both = jnp.concatenate([turned + 2 * half, kept], axis=-1)
    query, key = jnp.split(both, 2, axis=2)
    return mixed(query, key, value) @ p["out"]


def _complex_rotation(p: Any, x: jax.Array) -> jax.Array:
    query, key, value = map(in_heads, jnp.split(x @ p["w"], 3, axis=-1))
    pairs = query.reshape(*query.shape[:-1], SIZE // 2, 2)
    turned = lax.complex(pairs[..., 0], pairs[..., 1]) * jnp.exp(1j)
    query = jnp.stack([turned.real, turned.imag], axis=-1).reshape(query.shape)
    return mixed(query, key, value) @ p["out"]


def _one_head_after_the_other(p: Any, x: jax.Array) -> jax.Array:
    query, key, value = jnp.split(x @ p["w"], 3, axis=-1)
    heads = []
    for head in range(HEADS):
        own = slice(head * SIZE, (head + 1) * SIZE)
        logits = query[..., own] @ jnp.swapaxes(key[..., own], 1, 2)
        heads.append(jax.nn.softmax(logits) @ value[..., own])
    return jnp.concatenate(heads, axis=-1) @ p["out"]


@pytest.mark.parametrize(
    "function",
    [
        _one_head_after_the_other,
        _per_head_fused,
        _unstacked,
        _sliced_weights,
        _rotated_together,
        _complex_rotation,
    ],
)
def test_fused_heads_are_found(function: Callable[..., Any]) -> None:
    shapes = {"w": (WIDTH, 3 * WIDTH), "out": (WIDTH, 3)}
    found = used(function, shapes, X)
    assert the_axes(found, "w") == mo.Split((SIZE,) * 6)
    assert found["out"][0].readout
    assert not found["w"][0].readout


def test_heads_of_unequal_fused_parts() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        y = x @ p["w"]
        query, key, value = map(in_heads, (y[..., :16], y[..., 16:24], y[..., 24:]))
        key, value = (jnp.repeat(one, 2, axis=2) for one in (key, value))
        return mixed(query, key, value) @ p["out"]

    found = used(function, {"w": (WIDTH, 32), "out": (16, 3)}, X)
    assert the_axes(found, "w") == mo.Split((SIZE,) * 8)


def test_heads_that_share_their_keys() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        query = jnp.einsum("btd,dhk->bthk", x, p["query"])
        key, value = x @ p["key"], x @ p["value"]
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkd->bhqk", query, key))
        y = jnp.einsum("bhqk,bkd->bqhd", weights, value)
        return jnp.einsum("bqhd,hde->bqe", y, p["out"])

    shapes = {"query": (WIDTH, HEADS, SIZE), "key": (WIDTH, SIZE)}
    shapes |= {"value": (WIDTH, SIZE), "out": (HEADS, SIZE, 3)}
    found = used(function, shapes, X)
    assert the_axes(found, "query") == PER_HEAD
    assert the_axes(found, "key") is the_axes(found, "value") is mo.STACKED
    assert the_axes(found, "out") is mo.HEADS_OUT
    assert "heads one by one" in found["query"][0].note


def test_heads_by_vmap_and_by_map() -> None:
    def vmapped(p: Any, x: jax.Array) -> jax.Array:
        def head(query: jax.Array, key: jax.Array) -> jax.Array:
            logits = (x @ query) @ jnp.swapaxes(x @ key, 1, 2)
            return jax.nn.softmax(logits) @ (x @ key)

        y = jax.vmap(head, (0, 0), 2)(p["query"], p["key"])
        return y.reshape(BATCH, LENGTH, -1) @ p["out"]

    shapes = {"query": (HEADS, WIDTH, SIZE), "key": (HEADS, WIDTH, SIZE)}
    found = used(vmapped, shapes | {"out": (WIDTH, 3)}, X)
    assert the_axes(found, "query") is the_axes(found, "key") is mo.STACKED


def test_heads_that_alternate_are_one_matrix() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        y = (x @ p["w"]).reshape(BATCH, LENGTH, SIZE, HEADS).swapaxes(2, 3)
        return mixed(y, y, y) @ p["out"]

    found = used(function, {"w": (WIDTH, WIDTH), "out": (WIDTH, 3)}, X)
    assert the_axes(found, "w") is mo.STACKED
    assert "alternate" in found["w"][0].note


def test_parts_of_different_kinds_of_one_product() -> None:
    """A state space layer: gate, input, two projections of the state, step sizes."""

    def function(p: Any, x: jax.Array) -> jax.Array:
        gate, u, b, c, step = jnp.split(x @ p["w"], [8, 16, 20, 24], axis=-1)
        step = jax.nn.softplus(step)[..., None]
        u = (step * in_heads(u))[..., None] * b[:, :, None, None]
        state = jnp.cumsum(u, axis=1)
        y = jnp.einsum("bthkn,btn->bthk", state, c).reshape(gate.shape)
        return (y * jax.nn.silu(gate)) @ p["out"]

    found = used(function, {"w": (WIDTH, 26), "out": (WIDTH, 3)}, X)
    assert the_axes(found, "w") == mo.Split((8, 8, 4, 4, 2))
    assert found["w"][0].note == "5 fused products"


def test_a_padded_vocabulary_is_no_split() -> None:
    function = lambda p, x: (x @ p["w"])[..., :10]
    assert the_axes(used(function, {"w": (WIDTH, 16)}, X), "w") is mo.STACKED


def test_convolutions_of_another_layout_and_their_groups() -> None:
    numbers = ("NCHW", "OIHW", "NCHW")

    def function(p: Any, x: jax.Array) -> jax.Array:
        for name, groups in (("plain", 1), ("grouped", 2), ("depthwise", 8)):
            x = lax.conv_general_dilated(
                x,
                p[name],
                (1, 1),
                "SAME",
                dimension_numbers=numbers,
                feature_group_count=groups,
            )
        return x.mean((2, 3)) @ p["out"]

    shapes = {"plain": (8, 3, 3, 3), "grouped": (8, 4, 3, 3), "depthwise": (8, 1, 3, 3)}
    image = jax.ShapeDtypeStruct((BATCH, 3, 6, 6), np.float32)
    found = used(function, shapes | {"out": (8, 3)}, image)
    out_in = optax.contrib.MuonDimensionNumbers((-3, -2, -1), -4)
    assert the_axes(found, "plain") == out_in
    assert the_axes(found, "grouped") == mo.Split((4, 4), -4, out_in)
    assert the_axes(found, "depthwise").sizes == (1,) * 8
    assert found["plain"][0].kind == "convolution"


def test_matrices_that_parameters_are_made_of() -> None:
    def function(p: Any, x: jax.Array, frozen: jax.Array, mask: jax.Array) -> Any:
        x = x @ (frozen + p["a"] @ p["b"])
        x = x @ (p["masked"] * mask)
        x = x @ (p["scale"][:, None] * p["scaled"])
        x = x @ p["rounded"] + x @ lax.stop_gradient(jnp.round(p["rounded"]))
        x = x @ jnp.concatenate([p["left"], p["right"]], axis=1)
        return x @ jax.nn.softmax(p["soft"], axis=0)

    square = (WIDTH, WIDTH)
    shapes = {"a": (WIDTH, 2), "b": (2, WIDTH), "masked": square, "scale": (WIDTH,)}
    shapes |= {"scaled": square, "rounded": square, "left": (WIDTH, 3)}
    shapes |= {"right": (WIDTH, 5), "soft": square}
    found = used(function, shapes, X, *[jax.ShapeDtypeStruct(square, np.float32)] * 2)
    assert kinds(found) == {
        path: ["gain"] if path == "scale" else ["matrix"] for path in shapes
    }
    assert {the_axes(found, path) for path in shapes if path != "scale"} == {mo.STACKED}


def test_three_low_rank_factors_have_one_direction() -> None:
    function = lambda p, x: x @ (p["a"] @ p["b"] @ p["c"])
    found = used(function, {"a": (WIDTH, 2), "b": (2, 2), "c": (2, WIDTH)}, X)
    assert {the_axes(found, path) for path in "abc"} == {mo.STACKED}


def test_learned_queries_are_activations() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        queries = jnp.broadcast_to(p["queries"], (BATCH, 3, WIDTH)) @ p["w"]
        return jnp.einsum("bnd,btd->bnt", queries, x) @ p["out"]

    shapes = {"queries": (1, 3, WIDTH), "w": (WIDTH, WIDTH), "out": (LENGTH, 3)}
    found = used(function, shapes, X)
    assert kinds(found) == {"queries": ["bias"], "w": ["matrix"], "out": ["matrix"]}
    assert the_axes(found, "w") is mo.STACKED


def test_vectors_that_are_scores_of_one_number() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        x = jnp.tanh(x[..., :1] @ p["from_one"])
        return x @ p["to_one"] + (x @ p["vector"])[..., None]

    shapes = {"from_one": (1, WIDTH), "to_one": (WIDTH, 1), "vector": (WIDTH,)}
    found = used(function, shapes, X)
    assert the_axes(found, "from_one") is the_axes(found, "to_one") is mo.STACKED
    assert found["to_one"][0].readout
    assert kinds(found)["vector"] == ["gain"]


def test_a_statistic_without_gradient_is_no_use() -> None:
    """Spectral normalisation: the singular vectors are constants to the gradient."""

    def function(p: Any, x: jax.Array, left: jax.Array) -> jax.Array:
        right = lax.stop_gradient(left @ p["w"])
        left = lax.stop_gradient(p["w"] @ right)
        return x @ (p["w"] / (left @ p["w"] @ right)) @ p["out"]

    vector = jax.ShapeDtypeStruct((WIDTH,), np.float32)
    found = used(function, {"w": (WIDTH, WIDTH), "out": (WIDTH, 3)}, X, vector)
    assert the_axes(found, "w") is mo.STACKED


def test_ragged_experts() -> None:
    function = lambda p, x, groups: lax.ragged_dot(x[0], p["w"], groups) @ p["out"]
    groups = jax.ShapeDtypeStruct((4,), np.int32)
    found = used(function, {"w": (4, WIDTH, WIDTH), "out": (WIDTH, 3)}, X, groups)
    assert the_axes(found, "w") is mo.STACKED
    assert kinds(found)["w"] == ["matrix"]


def test_heads_on_the_devices_of_a_mesh() -> None:
    """Each device has one pair of the heads; the leaf has them all."""
    mesh = jax.sharding.AbstractMesh((2,), ("model",))
    spec = jax.sharding.PartitionSpec

    def local(query: jax.Array, out: jax.Array, x: jax.Array) -> jax.Array:
        y = in_heads(x @ query)
        return lax.psum(mixed(y, y, y) @ out, "model")

    def function(p: Any, x: jax.Array) -> jax.Array:
        specs = (spec(None, "model"), spec("model"), spec())
        sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=spec())
        return sharded(p["query"], p["out"], x)

    found = used(function, {"query": (WIDTH, 16), "out": (16, 3)}, X)
    assert the_axes(found, "query") == mo.Split((SIZE,) * 4)
    assert the_axes(found, "out") is mo.STACKED
    assert found["out"][0].readout


def test_weights_that_devices_gather() -> None:
    mesh = jax.sharding.AbstractMesh((2,), ("data",))
    spec = jax.sharding.PartitionSpec

    def local(w: jax.Array, out: jax.Array, x: jax.Array) -> jax.Array:
        w = lax.all_gather(w, "data", axis=1, tiled=True)
        gate, up = jnp.split(x @ w, 2, axis=-1)
        return (jax.nn.silu(gate) * up) @ out

    def function(p: Any, x: jax.Array) -> jax.Array:
        specs = (spec(None, "data"), spec(), spec("data"))
        sharded = jax.shard_map(
            local, mesh=mesh, in_specs=specs, out_specs=spec("data")
        )
        return sharded(p["w"], p["out"], x)

    found = used(function, {"w": (WIDTH, 16), "out": (8, 3)}, X)
    assert the_axes(found, "w") == mo.Split((8, 8))
    assert the_axes(found, "out") is mo.STACKED
