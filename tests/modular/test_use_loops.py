"""Loops, look-ups, vectors and readouts from use."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import manifold_optax as mo
from manifold_optax.modular._uses._roles import roles_from_use, unused
from modular.used import BATCH, kinds, LENGTH, Shapes, the_axes, TOKENS, used, WIDTH, X

INDEX = jax.ShapeDtypeStruct((), np.int32)


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
    found = used(function, shapes, X)
    assert kinds(found) == {"w": ["matrix"], "b": ["bias"], "out": ["matrix"]}
    assert the_axes(found, "w") is mo.STACKED
    assert [path for path in shapes if found[path][0].readout] == ["out"]
    assert ("scanned" in found["w"][0].note) == (loop in ("scan", "nested"))


def test_slices_of_one_axis_that_a_loop_takes() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        rows = p["w"].reshape(3, WIDTH, WIDTH)
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, rows)[0] @ p["out"]

    found = used(function, {"w": (3 * WIDTH, WIDTH), "out": (WIDTH, 3)}, X)
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
    found = used(function, shapes | {"start": (WIDTH,)}, X)
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
    found = used(function, shapes, X)
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
    found = used(function, shapes, TOKENS, INDEX)
    assert kinds(found) == {"table": ["embedding"], "out": ["matrix"]}


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
    found = used(function, shapes, X, hidden)
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
    shapes: Shapes = {
        "basis": square,
        "w": square,
        "out": (WIDTH, 3),
        "returned": square,
    }
    found = used(function, shapes | {"unused": square}, X)
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
    found = used(function, shapes, X)
    assert found["w"][0].readout
    assert roles_from_use(found, shapes).role_of("w", (WIDTH, 3)) == mo.Role(
        "matrix", mo.STACKED
    )


def test_readouts_are_what_no_matrix_follows_on_any_way() -> None:
    def function(p: Any, x: jax.Array) -> Any:
        hidden = jnp.tanh(x @ p["first"])
        return hidden @ p["policy"], hidden @ p["value"], hidden

    shapes = {"first": (WIDTH, WIDTH), "policy": (WIDTH, 4), "value": (WIDTH, 1)}
    found = used(function, shapes, X)
    assert [p for p in shapes if found[p][0].readout] == ["policy", "value"]
