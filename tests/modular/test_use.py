"""Roles from use: each rule on a small function, and all golden models."""

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
from manifold_optax.modular._roles import (
    conflicts,
    described,
    roles_from_use,
    unused,
)
from manifold_optax.modular._trace import trace
from manifold_optax.modular._use import Use, uses
from modular.models import each_model, gpt2, MODELS, same_role

BATCH, LENGTH, WIDTH, HEADS, SIZE = 2, 5, 8, 2, 4
X = jax.ShapeDtypeStruct((BATCH, LENGTH, WIDTH), np.float32)
TOKENS = jax.ShapeDtypeStruct((BATCH, LENGTH), np.int32)
IMAGE = jax.ShapeDtypeStruct((BATCH, 6, 6, WIDTH), np.float32)
INDEX = jax.ShapeDtypeStruct((), np.int32)

PER_HEAD = optax.contrib.MuonDimensionNumbers(-3, -1)
IN_HEADS = mo.Split((SIZE,) * HEADS)


def read(
    function: Callable[..., Any], shapes: dict[str, tuple[int, ...]], *inputs: Any
) -> dict[str, tuple[Use, ...]]:
    params = {k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()}
    with jax.numpy_rank_promotion("allow"):
        graph, paths, _ = trace(function, params, *inputs)
    return uses(graph, paths)


def kinds(found: dict[str, tuple[Use, ...]]) -> dict[str, list[str]]:
    return {path: [use.kind for use in some] for path, some in found.items()}


def the_axes(found: dict[str, tuple[Use, ...]], path: str) -> Any:
    (use,) = found[path]
    return use.axes


def mixed(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention of `[batch, length, heads, size]`."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    weights = jax.nn.softmax(logits, axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(BATCH, LENGTH, -1)


def in_heads(x: jax.Array) -> jax.Array:
    return x.reshape(BATCH, LENGTH, -1, SIZE)


# ---------------------------------------------------------------- golden models


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


def test_only_three_golden_models_contradict_their_names() -> None:
    contradicting = {}
    for name, make in MODELS.items():
        graph, paths, _ = trace(make().forward, make().params, *make().inputs)
        shapes = {p: v.shape for p, v in zip(paths, graph.inputs, strict=False)}
        contradicting[name] = len(conflicts(uses(graph, paths), shapes))
    assert {name: n for name, n in contradicting.items() if n} == {
        # The second of a low-rank pair is called `b`, as biases are.
        "lora": 1,
        "lora_merged": 1,
        # `output_proj` is a readout in other libraries.
        "equinox_transformer": 1,
    }


def test_twelve_layers_are_read_quickly() -> None:
    model = gpt2()
    graph, paths, _ = trace(model.forward, model.params, *model.inputs)
    start = time.process_time()
    found = uses(graph, paths)
    # 0.08 s on an idle core; a slow rule would take seconds.
    assert time.process_time() - start < 1.0
    assert the_axes(found, "h/11/c_attn/w") == mo.Split((64,) * 36)


# ------------------------------------------------------------ heads, fused parts


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


@pytest.mark.parametrize(
    "function",
    [_per_head_fused, _unstacked, _sliced_weights, _rotated_together, _complex_rotation],
)
def test_fused_heads_are_found(function: Callable[..., Any]) -> None:
    shapes = {"w": (WIDTH, 3 * WIDTH), "out": (WIDTH, 3)}
    found = read(function, shapes, X)
    assert the_axes(found, "w") == mo.Split((SIZE,) * 6)
    assert found["out"][0].readout
    assert not found["w"][0].readout


def test_heads_of_unequal_fused_parts() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        y = x @ p["w"]
        query, key, value = map(in_heads, (y[..., :16], y[..., 16:24], y[..., 24:]))
        key, value = (jnp.repeat(one, 2, axis=2) for one in (key, value))
        return mixed(query, key, value) @ p["out"]

    found = read(function, {"w": (WIDTH, 32), "out": (16, 3)}, X)
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
    found = read(function, shapes, X)
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
    found = read(vmapped, shapes | {"out": (WIDTH, 3)}, X)
    assert the_axes(found, "query") is the_axes(found, "key") is mo.STACKED


def test_heads_that_alternate_are_one_matrix() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        y = (x @ p["w"]).reshape(BATCH, LENGTH, SIZE, HEADS).swapaxes(2, 3)
        return mixed(y, y, y) @ p["out"]

    found = read(function, {"w": (WIDTH, WIDTH), "out": (WIDTH, 3)}, X)
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

    found = read(function, {"w": (WIDTH, 26), "out": (WIDTH, 3)}, X)
    assert the_axes(found, "w") == mo.Split((8, 8, 4, 4, 2))
    assert found["w"][0].note == "5 fused products"


def test_a_padded_vocabulary_is_no_split() -> None:
    function = lambda p, x: (x @ p["w"])[..., :10]
    assert the_axes(read(function, {"w": (WIDTH, 16)}, X), "w") is mo.STACKED


# ------------------------------------------------------- matrices, convolutions


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
    found = read(function, shapes | {"out": (8, 3)}, image)
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
    found = read(function, shapes, X, *[jax.ShapeDtypeStruct(square, np.float32)] * 2)
    assert kinds(found) == {
        path: ["gain"] if path == "scale" else ["matrix"] for path in shapes
    }
    assert {the_axes(found, path) for path in shapes if path != "scale"} == {mo.STACKED}


def test_three_low_rank_factors_have_one_direction() -> None:
    function = lambda p, x: x @ (p["a"] @ p["b"] @ p["c"])
    found = read(function, {"a": (WIDTH, 2), "b": (2, 2), "c": (2, WIDTH)}, X)
    assert {the_axes(found, path) for path in "abc"} == {mo.STACKED}


def test_learned_queries_are_activations() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        queries = jnp.broadcast_to(p["queries"], (BATCH, 3, WIDTH)) @ p["w"]
        return jnp.einsum("bnd,btd->bnt", queries, x) @ p["out"]

    shapes = {"queries": (1, 3, WIDTH), "w": (WIDTH, WIDTH), "out": (LENGTH, 3)}
    found = read(function, shapes, X)
    assert kinds(found) == {"queries": ["bias"], "w": ["matrix"], "out": ["matrix"]}
    assert the_axes(found, "w") is mo.STACKED


def test_vectors_that_are_scores_of_one_number() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        x = jnp.tanh(x[..., :1] @ p["from_one"])
        return x @ p["to_one"] + (x @ p["vector"])[..., None]

    shapes = {"from_one": (1, WIDTH), "to_one": (WIDTH, 1), "vector": (WIDTH,)}
    found = read(function, shapes, X)
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
    found = read(function, {"w": (WIDTH, WIDTH), "out": (WIDTH, 3)}, X, vector)
    assert the_axes(found, "w") is mo.STACKED


def test_ragged_experts() -> None:
    function = lambda p, x, groups: lax.ragged_dot(x[0], p["w"], groups) @ p["out"]
    groups = jax.ShapeDtypeStruct((4,), np.int32)
    found = read(function, {"w": (4, WIDTH, WIDTH), "out": (WIDTH, 3)}, X, groups)
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

    found = read(function, {"query": (WIDTH, 16), "out": (16, 3)}, X)
    assert the_axes(found, "query") == mo.Split((SIZE,) * 4)
    assert the_axes(found, "out") is mo.STACKED
    assert found["out"][0].readout


# ------------------------------------------------------------- loops, look-ups


@pytest.mark.parametrize("loop", ["for", "fori", "scan", "nested", "cond"])
def test_layers_of_a_stack(loop: str) -> None:
    def layer(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.tanh(x @ w + b)

    def function(p: Any, x: jax.Array) -> jax.Array:
        w, b = p["w"], p["b"]
        step = lambda x, row: (layer(x, *row), None)
        if loop == "for":
            for i in range(4):
                x = layer(x, w[i], b[i])
        elif loop == "fori":
            x = lax.fori_loop(0, 4, lambda i, x: layer(x, w[i], b[i]), x)
        elif loop == "scan":
            x, _ = lax.scan(step, x, (w, b))
        elif loop == "nested":
            rows = (w.reshape(2, 2, WIDTH, WIDTH), b.reshape(2, 2, WIDTH))
            x, _ = lax.scan(lambda x, row: lax.scan(step, x, row), x, rows)
        else:
            ways = [lambda x, i=i: layer(x, w[i], b[i]) for i in range(4)]
            x = lax.switch(jnp.argmax(x[0, 0, :4]), ways, x)
        return x @ p["out"]

    shapes = {"w": (4, WIDTH, WIDTH), "b": (4, WIDTH), "out": (WIDTH, 3)}
    found = read(function, shapes, X)
    assert kinds(found) == {"w": ["matrix"], "b": ["bias"], "out": ["matrix"]}
    assert the_axes(found, "w") is mo.STACKED
    assert [path for path in shapes if found[path][0].readout] == ["out"]
    assert ("scanned" in found["w"][0].note) == (loop in ("scan", "nested"))


def test_slices_of_one_axis_that_a_loop_takes() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        rows = p["w"].reshape(3, WIDTH, WIDTH)
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, rows)[0] @ p["out"]

    found = read(function, {"w": (3 * WIDTH, WIDTH), "out": (WIDTH, 3)}, X)
    assert the_axes(found, "w") == mo.Split((WIDTH,) * 3, -2, mo.STACKED)


def test_a_recurrence_over_time() -> None:
    """Gates are split in the next step; the first state is added, as a bias is."""

    def function(p: Any, x: jax.Array) -> jax.Array:
        def step(state: Any, x: jax.Array) -> Any:
            hidden, cell = state
            y = jnp.concatenate([x, hidden], axis=-1) @ p["w"] + p["b"]
            i, f, g, o = jnp.split(y, 4, axis=-1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden @ p["out"]

        start = jnp.broadcast_to(p["start"], (BATCH, WIDTH))
        return lax.scan(step, (start, start), jnp.swapaxes(x, 0, 1))[1]

    shapes = {"w": (2 * WIDTH, 4 * WIDTH), "b": (4 * WIDTH,), "out": (WIDTH, 3)}
    found = read(function, shapes | {"start": (WIDTH,)}, X)
    assert the_axes(found, "w") == mo.Split((WIDTH,) * 4)
    assert kinds(found)["start"] == ["bias"]
    assert found["out"][0].readout
    assert not found["w"][0].readout


def test_while_with_parameters_in_the_loop() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        small = lambda state: jnp.sum(state[0] ** 2) < p["limit"]
        step = lambda state: (jnp.tanh(state[0] @ state[1]), state[1])
        return lax.while_loop(small, step, (x, p["w"]))[0] @ p["out"]

    shapes = {"w": (WIDTH, WIDTH), "out": (WIDTH, 3), "limit": ()}
    found = read(function, shapes, X)
    assert kinds(found) == {"w": ["matrix"], "out": ["matrix"], "limit": ["other"]}


@pytest.mark.parametrize(
    "look_up",
    [
        lambda table, tokens, _: table[tokens],
        lambda table, tokens, _: jnp.take(table, tokens, axis=0),
        lambda table, tokens, _: table.T[:, tokens].transpose(1, 2, 0),
        lambda table, tokens, _: jax.nn.one_hot(tokens, 11) @ table,
        lambda table, *_: table[jnp.arange(LENGTH)][None],
        lambda table, _, start: lax.dynamic_slice_in_dim(table, start, LENGTH)[None],
    ],
    ids=["gather", "take", "columns", "one_hot", "positions", "window"],
)
def test_rows_that_are_looked_up(look_up: Callable[..., jax.Array]) -> None:
    function = lambda p, tokens, start: look_up(p["table"], tokens, start) @ p["out"]
    shapes = {"table": (11, WIDTH), "out": (WIDTH, 3)}
    found = read(function, shapes, TOKENS, INDEX)
    assert kinds(found) == {"table": ["embedding"], "out": ["matrix"]}


# ------------------------------------------------------- vectors, and the rest


def test_what_is_added_or_multiplied() -> None:
    def function(p: Any, x: jax.Array, hidden: jax.Array) -> jax.Array:
        x = x * (1 + p["gain"]) + p["positions"][:LENGTH] - p["mean"]
        x = jnp.where(hidden[..., None], p["mask"], x)
        x = jnp.einsum("btd,td->btd", x, p["by_place"])
        token = jnp.broadcast_to(p["token"], (BATCH, 1, WIDTH))
        x = jnp.concatenate([token, x], axis=1)
        return (x / jnp.exp(p["temperature"])) @ p["out"]

    shapes = {"gain": (WIDTH,), "positions": (9, WIDTH), "mean": (WIDTH,)}
    shapes |= {"mask": (1, 1, WIDTH), "by_place": (LENGTH, WIDTH), "temperature": ()}
    shapes |= {"token": (1, 1, WIDTH), "out": (WIDTH, 3)}
    hidden = jax.ShapeDtypeStruct((BATCH, LENGTH), np.bool_)
    found = read(function, shapes, X, hidden)
    biases = {"positions", "mean", "mask", "token"}
    gains = {"gain", "by_place", "temperature"}
    assert {path for path, one in kinds(found).items() if one == ["bias"]} == biases
    assert {path for path, one in kinds(found).items() if one == ["gain"]} == gains
    roles = roles_from_use(found, shapes)
    assert {roles.role_of(p, shapes[p]) for p in biases | gains} == {mo.Role("vector")}


def test_what_cannot_be_told_is_other() -> None:
    def function(p: Any, x: jax.Array) -> Any:
        basis = jnp.linalg.qr(p["basis"])[0]
        return x @ basis @ p["w"] @ p["out"], p["returned"], jnp.sum(p["w"] ** 2)

    square = (WIDTH, WIDTH)
    shapes = {"basis": square, "w": square, "out": (WIDTH, 3), "returned": square}
    found = read(function, shapes | {"unused": square}, X)
    shapes["unused"] = square
    assert kinds(found)["basis"] == ["other"]
    assert "householder" in str(found["basis"][0].operation) or "qr" in str(
        found["basis"][0].operation
    )
    assert kinds(found)["returned"] == ["output"]
    # A penalty on the weights is not a second use of them.
    assert kinds(found)["w"] == ["matrix"]
    assert unused(found) == ("unused",)
    roles = roles_from_use(found, shapes)
    for path in ("basis", "returned", "unused"):
        assert roles.role_of(path, square) == mo.Role("other")


def test_the_only_matrix_is_no_readout() -> None:
    function = lambda p, x: x @ p["w"] + p["b"]
    shapes = {"w": (WIDTH, 3), "b": (3,)}
    found = read(function, shapes, X)
    assert found["w"][0].readout
    assert roles_from_use(found, shapes).role_of("w", (WIDTH, 3)) == mo.Role(
        "matrix", mo.STACKED
    )


def test_readouts_are_what_no_matrix_follows_on_any_way() -> None:
    def function(p: Any, x: jax.Array) -> Any:
        hidden = jnp.tanh(x @ p["first"])
        return hidden @ p["policy"], hidden @ p["value"], hidden

    shapes = {"first": (WIDTH, WIDTH), "policy": (WIDTH, 4), "value": (WIDTH, 1)}
    found = read(function, shapes, X)
    assert [p for p in shapes if found[p][0].readout] == ["policy", "value"]


# ----------------------------------------------------------- roles and messages


def test_paths_are_matched_exactly() -> None:
    function = lambda p, x: x @ p["a.b"] @ p["a+b"] @ p["a.b(c)"]
    shapes = dict.fromkeys(("a.b", "a+b", "a.b(c)"), (WIDTH, WIDTH))
    roles = roles_from_use(read(function, shapes, X), shapes)
    labels = roles({path: jnp.ones(shape) for path, shape in shapes.items()})
    assert labels == {"a.b": "matrix", "a+b": "matrix", "a.b(c)": "readout"}


def _tied(p: Any, tokens: jax.Array) -> jax.Array:
    return jnp.tanh(p["table"][tokens] @ p["w"]) @ p["table"].T


TIED = {"table": (11, WIDTH), "w": (WIDTH, WIDTH)}


def test_a_tied_embedding_must_be_decided() -> None:
    found = read(_tied, TIED, TOKENS)
    with pytest.raises(ValueError, match="more than one way") as error:
        roles_from_use(found, TIED)
    message = str(error.value)
    assert "matrix [out, in]" in message
    assert "gather [test_use.py:" in message
    assert "{'table': 'embedding'}" in message

    roles = roles_from_use(found, TIED, {"table": "embedding"})
    assert roles.role_of("table", TIED["table"]) == mo.Role("embedding")
    assert roles.role_of("w", TIED["w"]) == mo.Role("matrix", mo.STACKED)
    roles = roles_from_use(found, TIED, {"table": "readout"})
    assert roles.role_of("table", TIED["table"]) == mo.Role("readout", mo.OUT_IN)
    roles = roles_from_use(found, TIED, {"table": mo.STACKED})
    assert roles.role_of("table", TIED["table"]) == mo.Role("matrix", mo.STACKED)


def test_a_matrix_used_in_both_directions_must_be_decided() -> None:
    function = lambda p, x: jnp.tanh(x @ p["0"]["w"]) @ p["0"]["w"].T @ p["out"]
    params = {"0": {"w": (WIDTH, 4)}, "out": (WIDTH, 3)}
    shapes = {"0/w": (WIDTH, 4), "out": (WIDTH, 3)}
    is_shape = lambda node: isinstance(node, tuple)
    as_leaf = lambda shape: jax.ShapeDtypeStruct(shape, np.float32)
    leaves = jax.tree.map(as_leaf, params, is_leaf=is_shape)
    graph, paths, _ = trace(function, leaves, X)
    with pytest.raises(ValueError, match="matrix \\[out, in\\]"):
        roles_from_use(uses(graph, paths), shapes)


def test_decisions_that_match_nothing() -> None:
    found = read(_tied, TIED, TOKENS)
    with pytest.raises(ValueError, match="'tabel'.*'table', 'w'"):
        roles_from_use(found, TIED, {"tabel": "embedding"})
    with pytest.raises(TypeError, match="must be axes, a label"):
        roles_from_use(found, TIED, {"table": 3})


def test_a_use_in_words() -> None:
    (use,) = read(_tied, TIED, TOKENS)["w"]
    assert described(use, 2).startswith("matrix [in, out], by dot_general [test_use.py")


@pytest.mark.parametrize(
    ("function", "shape", "path", "words"),
    [
        (lambda w, x: x @ w, (WIDTH, 4), "up/weight", r"matrix \[out, in\].*STACKED"),
        (lambda w, x: x @ w, (WIDTH, 4), "up/bias", r"says vector.*as matrix"),
        (lambda w, x: x * w, (LENGTH, WIDTH), "up/kernel", r"says matrix.*as gain"),
        (lambda w, x: x @ w, (WIDTH, 4), "lm_head/kernel", r"says readout"),
        (lambda w, x: x @ w, (WIDTH, 4), "up/kernel", None),
        (lambda w, x: x @ w.T, (4, WIDTH), "up/weight", None),
        (lambda w, x: x @ w, (WIDTH, 4), "patch_embed/kernel", None),
        (lambda w, x: x + w, (LENGTH, WIDTH), "pos_embed", None),
    ],
)
def test_names_that_say_something_else(
    function: Callable[..., Any], shape: tuple[int, ...], path: str, words: str | None
) -> None:
    parts = path.split("/")

    def model(p: Any, x: jax.Array) -> jax.Array:
        for part in parts:
            p = p[part]
        return jnp.sum(function(p, x), axis=-1, keepdims=True) * jnp.ones((1, 3))

    def forward(p: Any, x: jax.Array) -> jax.Array:
        return model(p["inner"], x) @ p["last"]

    inner: Any = jax.ShapeDtypeStruct(shape, np.float32)
    for part in reversed(parts):
        inner = {part: inner}
    last = jax.ShapeDtypeStruct((3, 3), np.float32)
    with jax.numpy_rank_promotion("allow"):
        graph, paths, _ = trace(forward, {"inner": inner, "last": last}, X)
    shapes = {f"inner/{path}": shape, "last": (3, 3)}
    found = uses(graph, paths)
    messages = conflicts(found, shapes)
    if words is None:
        assert messages == []
    else:
        (message,) = messages
        assert path in message
        assert pytest.approx(len(messages)) == 1
        import re

        assert re.search(words, message)
        assert "test_use.py:" in message
        assert conflicts(found, shapes, {path: "other"}) == []


def test_the_layers_of_a_readout_are_no_conflict() -> None:
    function = lambda p, x: jnp.tanh(x @ p["head/0/kernel"]) @ p["head/1/kernel"]
    shapes = {"head/0/kernel": (WIDTH, WIDTH), "head/1/kernel": (WIDTH, 3)}
    found = read(function, shapes, X)
    assert conflicts(found, shapes) == []
