"""Roles that follow from use, decisions, and conflicts with names."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from manifold_optax.modular._computation._trace import trace
from manifold_optax.modular._uses._roles import conflicts, described, roles_from_use
from manifold_optax.modular._uses._use import uses
from modular.used import LENGTH, Shapes, TOKENS, used, WIDTH, X


def test_paths_are_matched_exactly() -> None:
    function = lambda p, x: x @ p["a.b"] @ p["a+b"] @ p["a.b(c)"]
    square = (WIDTH, WIDTH)
    shapes: Shapes = {"a.b": square, "a+b": square, "a.b(c)": square}
    roles = roles_from_use(used(function, shapes, X), shapes)
    labels = roles({path: jnp.ones(shape) for path, shape in shapes.items()})
    assert labels == {"a.b": "matrix", "a+b": "matrix", "a.b(c)": "readout"}


def _tied(p: Any, tokens: jax.Array) -> jax.Array:
    return jnp.tanh(p["table"][tokens] @ p["w"]) @ p["table"].T


TIED = {"table": (11, WIDTH), "w": (WIDTH, WIDTH)}


def test_a_tied_embedding_must_be_decided() -> None:
    found = used(_tied, TIED, TOKENS)
    with pytest.raises(ValueError, match="more than one way") as error:
        roles_from_use(found, TIED)
    message = str(error.value)
    assert "matrix [out, in]" in message
    assert "gather [test_use_roles.py:" in message
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
    found = used(_tied, TIED, TOKENS)
    with pytest.raises(ValueError, match=r"'tabel'.*'table', 'w'"):
        roles_from_use(found, TIED, {"tabel": "embedding"})


def test_a_use_in_words() -> None:
    (use,) = used(_tied, TIED, TOKENS)["w"]
    assert described(use, 2).startswith(
        "matrix [in, out], by dot_general [test_use_roles.py"
    )


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
    full = f"inner/{path}"
    shapes = {full: shape, "last": (3, 3)}

    def forward(p: Any, x: jax.Array) -> jax.Array:
        y = jnp.sum(function(p[full], x), axis=-1, keepdims=True)
        return (y * jnp.ones((1, 3))) @ p["last"]

    found = used(forward, shapes, X)
    messages = conflicts(found, shapes)
    if words is None:
        assert messages == []
        return
    (message,) = messages
    assert re.search(words, message)
    assert full in message
    assert "test_use_roles.py:" in message
    assert conflicts(found, shapes, {path: "other"}) == []


def test_the_layers_of_a_readout_are_no_conflict() -> None:
    function = lambda p, x: jnp.tanh(x @ p["head/0/kernel"]) @ p["head/1/kernel"]
    shapes = {"head/0/kernel": (WIDTH, WIDTH), "head/1/kernel": (WIDTH, 3)}
    found = used(function, shapes, X)
    assert conflicts(found, shapes) == []
