"""What the rules do not follow: each names the primitive and the user's line."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from manifold_optax.modular._bounds._gains import Gains
from manifold_optax.modular._bounds._mixed_norm import natural_norm
from manifold_optax.modular._bounds._number import reference
from manifold_optax.modular._bounds._sizes import Fact, RULES, Unreadable
from modular.rule_cases import case, data, fixed, read, weight


def _routed(x, r, w):
    return x @ w[jnp.argmax(x @ r)]


def _routed_later(x, w):
    """The choice leaves one loop, and is used after it."""
    _, chosen = lax.scan(lambda c, row: (c, jnp.argmax(row)), 0.0, x)
    return w[chosen]


def _decoded(x, w):
    """The choice of one step is used in the next one."""

    def step(token, _):
        logits = w[token] + x
        return jnp.argmax(logits), logits

    return lax.scan(step, 0, None, length=3)[1]


def _until(x):
    return lax.while_loop(lambda h: h.sum() > 1.0, lambda h: 0.5 * h, x)


def _branch(x):
    return lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)


def _grouped(x, w):
    return lax.conv_general_dilated(
        x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"),
        batch_group_count=2,
    )  # fmt: skip


_INDEX = fixed(1)

JUMPS = ("eq", "ne", "le", "lt", "ge", "gt", "floor", "ceil", "round", "sign",
         "is_finite", "random_bits", "argmax", "argmin", "top_k")  # fmt: skip

CASES = [
    ("top_k", case("top_k", lambda x: lax.top_k(x, 2)[0], data(2, 4))),
    ("argmax", case("routing", _routed, data(3), weight(3, 3), weight(3, 3, 2))),
    ("argmax", case("routing later", _routed_later, data(2, 3), weight(3, 2))),
    ("argmax", case("decoding", _decoded, data(3), weight(3, 3))),
    ("argmin", case("argmin", lambda x, w: w[jnp.argmin(x)], data(3), weight(3, 2))),
    ("sort", case("argsort", lambda x, w: w[jnp.argsort(x)], data(3), weight(3, 2))),
    ("sort", case("sorted by keys", lambda x, y: lax.sort((x, y), num_keys=1)[1],
                  data(3), data(3))),
    ("scatter", case("set", lambda x, y, i: x.at[i].set(y), data(4), data(), _INDEX)),
    ("scatter-add", case("add", lambda x, y, i: x.at[i].add(y), data(4), data(),
                         _INDEX)),
    ("dynamic_update_slice", case(
        "update", lambda x, y, i: lax.dynamic_update_slice(x, y, (i,)), data(4),
        data(2), _INDEX)),
    ("gt", case("branch", _branch, data(3))),
    ("while", case("until", _until, data(3))),
    ("gt", case("chosen", lambda x, y: jnp.where(x.sum() > 0, y, -y), data(3),
                data(3))),
    ("gt", case("compared", lambda x, y: (x > y) * 1.0, data(3), data(3))),
    ("convert_element_type", case(
        "rounded", lambda x, w: w[x.astype(int)], data(2), weight(3, 2))),
    ("entrywise", case("step", lambda x: jnp.where(x > 0, 1.0, 0.0), data(3))),
    ("entrywise", case("sign", lambda x: jnp.sign(x), data(3))),
    ("entrywise", case("root", lambda x: jnp.sqrt(jnp.abs(x)), data(3))),
    ("div", case("div", lambda x, y: x / y, data(3), data(3))),
    ("conv_general_dilated", case("groups", _grouped, data(2, 4, 1),
                                  weight(2, 1, 2))),
]  # fmt: skip


def _all_gains(the: Any) -> list[float]:
    graph, sizes = read(the)
    out = graph.outputs[0]
    gains = Gains(graph, sizes, {out: [Fact(natural_norm(out.shape), 1.0)]})
    return [
        reference(gains.gain(value, natural_norm(value.shape)))
        for value in graph.inputs
    ]


@pytest.mark.parametrize(("name", "the"), CASES, ids=[str(c) for _, c in CASES])
def test_what_is_refused_is_named(name: str, the: Any):
    with pytest.raises(Unreadable) as caught:
        _all_gains(the)
    message = str(caught.value)
    assert re.match(re.escape(name) + r"\b", message), message
    assert re.search(r"\[test_refused_rules\.py:\d+", message), message
    assert "mo.modular.declare" in message


def test_what_does_not_move_is_followed():
    """A choice that depends on no parameter and no moving input is no jump."""

    def masked(x, i):
        return jnp.where(jnp.arange(3) == i, x, 0.0)

    # Every entry passes as it is, or not at all; an index has no gain.
    assert _all_gains(case("masked", masked, data(3), _INDEX)) == [1.0, 0.0]


def test_the_line_within_a_call():
    """The innermost line of the user's own is named."""

    @jax.jit
    def inner(x):
        return lax.top_k(x, 1)[0]

    with pytest.raises(Unreadable, match=r"top_k: .*<locals>\.inner\)\]"):
        _all_gains(case("inner", lambda x: inner(x), data(3)))


@pytest.mark.parametrize("name", JUMPS)
def test_what_jumps_by_itself(name: str):
    """Most of these are read as scalar functions; alone each is refused."""
    one = case(name, lambda x: x, data(3), operation=(name, {}))
    graph, sizes = read(one)
    (operation,) = graph.operations()
    norm = natural_norm((3,))
    assert RULES[name].size(operation, 0, norm, sizes) == math.inf
    with pytest.raises(Unreadable, match=name + ": its result jumps"):
        RULES[name].moves(operation, 0, norm, sizes)
