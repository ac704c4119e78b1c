"""Rules that act entry by entry: attacked on arrays, rows and lone numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from manifold_optax.modular import declare
from modular.rule_attacks import attacked
from modular.rule_cases import case, data, fixed, weight

_W = weight(4, 4, marks="i o")
_MASK = np.tril(np.ones((4, 4), bool))
_FLAGS = fixed([[True, False, True], [False, False, True]])


@jax.custom_jvp
def _straight(x):
    return jnp.tanh(x)


_straight.defjvp(lambda x, d: (jnp.tanh(x[0]), d[0] * (1 - jnp.tanh(x[0]) ** 2)))


@jax.custom_vjp
def _doubled(x):
    return 2 * x


_doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))

CASES = [
    # Functions of one value.
    case("relu", jax.nn.relu, data(2, 3), given=("b o",)),
    case("gelu", jax.nn.gelu, data(2, 3)),
    case("silu of a weight", jax.nn.silu, _W),
    case("scaled weight", lambda w: 3 * w, _W),
    case("squares", lambda x: x * x, data(2, 3, size=2.0)),
    case("exponential", jnp.exp, data(2, 3, size=1.5)),
    case("root of squares", lambda x: lax.rsqrt(0.1 + (x * x).sum(-1)), data(2, 3)),
    case("plus one", lambda x: x + 1.0, data(2, 3), wanted=("s b",)),
    case("custom_jvp", _straight, data(2, 3)),
    case("custom_vjp", _doubled, data(2, 3)),
    case("jitted", jax.jit(lambda x: jnp.sin(2 * x)), data(2, 3)),
    case("checkpoint", jax.checkpoint(lambda x: jnp.sin(x) * x), data(2, 3)),
    case("stopped", lambda x: x + lax.stop_gradient(x), data(2, 3)),
    # Sums and choices.
    case("add", lambda x, y: x + y, data(2, 3), data(2, 3, marks="o o")),
    case("subtract", lambda x, y: x - y, data(2, 3), data(2, 3, marks="b b")),
    case("add number", lambda x, y: x + y, data(2, 3), data(), wanted=("s b", "i o")),
    case("bias", lambda x, b: x + b[None], data(2, 3), weight(3, marks="b")),
    case("add weights", lambda w, v: w + v, _W, _W, wanted=("i o",)),
    case("add_any", lambda x, y: x + y, data(2, 3), data(2, 3),
         operation=("add_any", {})),
    case("declared", declare(slope=(2.0, 3.0), size=1.0)(
        lambda x, y: 0.5 * jnp.sin(x) * jnp.cos(y)), data(2, 3), data(2, 3)),
    case("twice", lambda x: x + jnp.sin(x), data(2, 3)),
    case("max", jnp.maximum, data(2, 3), data(2, 3, marks="b b")),
    case("min", lambda x, y: jnp.minimum(x, y), data(2, 3), data()),
    case("max of weights", jnp.maximum, _W, _W, wanted=("i o",), given=("i o",)),
    case("clipped by data", lambda x, y: jnp.clip(x, -y, 1.0), data(2, 3), data(2, 3)),
    case("select", lambda m, x, y: jnp.where(m, x, y), _FLAGS, data(2, 3), data(2, 3)),
    case("select number", lambda m, x, y: jnp.where(m, x, y), _FLAGS, data(2, 3),
         data()),
    case("select by a constant", lambda x, y: jnp.where(np.arange(3) > 3, x, y),
         data(3), data(3)),
    case("masked", lambda w: jnp.where(_MASK, w, 0), _W, wanted=("i o",),
         given=("i o",)),
    # Products.
    case("mul", lambda x, y: x * y, data(2, 3), data(2, 3), wanted=("b s",)),
    case("mul number", lambda x, y: x * y, data(2, 3, marks="b b"), data(size=2.0),
         wanted=("s b", "o o")),
    case("mul number of weight", lambda w, y: w * y, _W, weight(size=2.0),
         wanted=("i o",), given=("i o",)),
    case("gate", lambda x, y: jax.nn.silu(x) * y, data(2, 3), data(2, 3)),
    case("gain", lambda x, g: x * g[None], data(2, 3), weight(3, marks="b", size=2.0)),
    case("row factor", lambda c, x: c[:, None] * x, data(2, marks="b"), data(2, 3),
         wanted=("b o",)),
    case("row factor, blocks", lambda c, x: c[..., None] * x, data(2, 2, marks="b o"),
         data(2, 2, 3), wanted=("b o o", "b b o", "o b o")),
    case("row factor, weights", lambda c, x: c[..., None] * x,
         data(2, 2, marks="i o"), data(2, 2, 3, marks="b b o"), wanted=("i o o",)),
    case("column factor", lambda c, x: c[None] * x, data(3), data(2, 3, marks="o b")),
    case("scaled columns", lambda w, g: w * g[None], _W, weight(4, marks="b", size=2.0),
         wanted=("i o", "o i"), given=("i o", "o i")),
    case("scaled rows", lambda w, g: w * g[..., None], weight(2, 3, 2, marks="b i o"),
         weight(2, 3, marks="b b", size=2.0), wanted=("b i o",), given=("b i o",)),
    case("scaled in part", lambda w, g: w * g[:, None], weight(2, 2, 3, marks="i i o"),
         weight(2, 3, marks="b b", size=2.0), wanted=("i i o", "i o o"),
         given=("i i o", "i o o")),
    case("mul weights", lambda w, v: w * v, _W, _W, wanted=("i o",), given=("i o",)),
    case("chosen by weights", lambda x, e: (x[:, :, None] * e).sum(1),
         data(2, 3, marks="b s"), data(2, 3, 2)),
    # Quotients.
    case("div", lambda x, y: x / (1 + jnp.abs(y)), data(2, 3), data(2, 3)),
    case("div by number", lambda x, y: x / (0.5 + y * y), data(2, 3), data(size=2.0)),
    case("number by div", lambda x, y: x / (0.5 + y * y), data(), data(2, 3),
         wanted=("o o", "s b")),
    case("div of weights", lambda w, v: w / (1 + v * v), _W, _W, wanted=("i o",)),
    case("div by a sum",
         lambda x: jnp.sin(x) / (1 + (x * x).sum(-1, keepdims=True)), data(2, 3)),
]  # fmt: skip


@pytest.mark.parametrize("the", CASES, ids=str)
@pytest.mark.usefixtures("x64")
def test_a_rule_is_never_exceeded(the):
    assert attacked(tuple(CASES))[the].found == []
