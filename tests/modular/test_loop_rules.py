"""Rules of loops and branches: attacked, and compared with loops written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from manifold_optax.modular._bounds._gains import Gains
from manifold_optax.modular._bounds._mixed_norm import MixedNorm, natural_norm
from manifold_optax.modular._bounds._sizes import (
    Assumptions,
    Fact,
    Known,
    known_facts,
    Sizes,
)
from manifold_optax.modular._computation._fuse import fuse
from manifold_optax.modular._computation._trace import trace
from manifold_optax.modular._primitives import slice_gains
from modular.rule_attacks import attacked, ROUNDING
from modular.rule_cases import Case, case, data, fixed, weight


def _layers(x, ws, **more):
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws, **more)[0]


def _traces(x, ws):
    return lax.scan(lambda h, w: (h @ w, jnp.sin(h)), x, ws)[1]


def _recurrent(xs, w, u):
    def step(h, x):
        h = jnp.tanh(h @ w + x @ u)
        return h, h

    return lax.scan(step, jnp.zeros((2,), xs.dtype), xs)[1]


def _residual(x, ws):
    return lax.scan(lambda h, w: (0.5 * h + 0.5 * jax.nn.relu(h @ w), None), x, ws)[0]


def _nested(x, ws):
    return lax.scan(lambda h, w: (_layers(h, w), None), x, ws)[0]


def _accumulated(x, ws):
    def step(carry, w):
        h, total = carry
        return (h @ w, total + h), None

    return lax.scan(step, (x, jnp.zeros_like(x)), ws)[0][1]


def _shifted(x, w):
    def step(carry, _):
        a, b, c, _ = carry
        return (a, a @ w, 2 * b, 2 * c), None

    zero = jnp.zeros_like(x)
    return lax.scan(step, (x, zero, zero, zero), None, length=4)[0][3]


def _swapped(x, y):
    return lax.scan(lambda c, _: ((c[1], 2 * c[0]), None), (x, y), None, length=3)[0][0]


def _counted(x, w):
    def step(carry):
        i, h = carry
        return i + 1, 0.5 * (h @ w)

    return lax.while_loop(lambda carry: carry[0] < 3, step, (0, x))[1]


def _counted_by_two(x):
    # i = 0, 2, 4: three steps.
    return lax.while_loop(
        lambda carry: carry[0] <= 5, lambda c: (c[0] + 2, 0.5 * c[1]), (0, x)
    )[1]


def _positions(x, ws):
    """Layers that are looked up by a counter."""

    def step(i, h):
        return h @ lax.dynamic_index_in_dim(ws, i, keepdims=False)

    return lax.fori_loop(0, 2, step, x)


_STACK = weight(3, 2, 2, marks="b i o", size=1.2)
_SQUARE = weight(2, 2, marks="i o", size=0.8)

CASES = [
    case("scan", _layers, data(2, 2), _STACK),
    case("scan back", lambda x, ws: _layers(x, ws, reverse=True), data(2, 2), _STACK),
    case("scan, unrolled", lambda x, ws: _layers(x, ws, unroll=2), data(2, 2), _STACK),
    case("residual", _residual, data(2, 2), _STACK),
    case("stacked results", _traces, data(2, 2), _STACK, wanted=("o b o", "s b b")),
    case("recurrent", _recurrent, data(3, 2), _SQUARE, weight(2, 2, marks="i o"),
         wanted=("o o", "s b")),
    case("nested", _nested, data(2, 2), weight(2, 3, 2, 2, marks="b b i o")),
    case("accumulated", _accumulated, data(2, 2), _STACK),
    case("shifted", _shifted, data(2, 2), _SQUARE),
    case("swapped", _swapped, data(2, 2), data(2, 2, size=3.0)),
    case("fori_loop", lambda x, w: lax.fori_loop(0, 3, lambda _, h: h @ w, x),
         data(2, 2), _SQUARE),
    case("looked up layers", _positions, data(2, 2), weight(2, 2, 2, marks="b i o")),
    case("while_loop", _counted, data(2, 2), _SQUARE, ahead=True),
    case("while_loop by two", _counted_by_two, data(2, 2), ahead=True),
    case("no steps", lambda x: lax.fori_loop(0, 0, lambda _, h: 0 * h, x), data(2, 2)),
    case("checkpointed", lambda x, ws: lax.scan(
        jax.checkpoint(lambda h, w: (jnp.sin(h @ w), None)), x, ws)[0],
         data(2, 2), _STACK),
    case("scaled stack", lambda x, ws: _layers(x, 0.5 * ws), data(2, 2), _STACK),
    case("bent stack", lambda x, ws: _layers(x, jax.nn.silu(ws)), data(2, 2), _STACK),
    # Branches.
    *[
        case(f"cond {flag}", lambda f, x: lax.cond(f, jnp.sin, lambda x: 2 * x, x),
             fixed(flag), data(2, 3))
        for flag in (True, False)
    ],
    case("switch", lambda i, x, w: lax.switch(
        i, [lambda x, w: x @ w, lambda x, w: x @ w.T, lambda x, w: 3 * x], x, w),
         fixed(1), data(2, 2), _SQUARE),
]  # fmt: skip


@pytest.mark.parametrize("the", CASES, ids=str)
@pytest.mark.usefixtures("x64")
def test_a_rule_is_never_exceeded(the: Case):
    assert attacked(tuple(CASES))[the].found == []


def _gains(function, shapes, known, norm):
    graph, _, _ = trace(lambda ws, x: function(x, ws), *shapes)
    fused = fuse(graph)
    facts = dict(zip(fused.inputs, known, strict=True))
    sizes = Sizes(fused, facts, Assumptions())
    out = fused.outputs[0]
    return Gains(fused, sizes, {out: [Fact(norm(out.shape), 1.0)]})


def _known(shape, norm, size, **flags):
    del shape
    return Known(known_facts(Fact(norm, size)), moves=True, norms=(norm,), **flags)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layer", ["tanh", "residual", "scaled"])
@pytest.mark.usefixtures("x64")
def test_the_gain_of_each_slice(layer, reverse):
    """Slice by slice as in the same layers written out, and never too small."""

    def one(h, w):
        if layer == "residual":
            return 0.5 * h + 0.5 * jax.nn.relu(h @ w)
        return 1.5 * jnp.tanh(h @ w) if layer == "scaled" else jnp.tanh(h @ w)

    def looped(x, ws):
        return lax.scan(lambda h, w: (one(h, w), None), x, ws, reverse=reverse)[0]

    def written(x, ws):
        for w in ws[::-1] if reverse else ws:
            x = one(x, w)
        return x

    stack = jax.ShapeDtypeStruct((3, 2, 2), float)
    x = jax.ShapeDtypeStruct((2, 2), float)
    operator = MixedNorm((((2, "i"),), ((2, "o"),)))
    whole = MixedNorm((((3, "b"),), *operator.axes))
    entering = _known(x.shape, natural_norm((2, 2)), 1.0, inputs=True)
    layers = _gains(
        looped, (stack, x), [_known(stack.shape, whole, 1.2, params=True), entering],
        natural_norm,
    )  # fmt: skip
    apart = _gains(
        written, ([jax.ShapeDtypeStruct((2, 2), float)] * 3, x),
        [*[_known(x.shape, operator, 1.2, params=True)] * 3, entering], natural_norm,
    )  # fmt: skip
    found = slice_gains(layers, layers.graph.inputs[0], whole)
    exact = [apart.gain(w, operator) for w in apart.graph.inputs[:3]]
    # The loop takes the largest input of all steps for each; the gain may only grow.
    assert np.all(np.array(found) >= np.array(exact) / (1 + 1e-9))
    if layer == "tanh":  # Layers of equal inputs: the sizes are those of all steps.
        beyond = np.array(found) / found[-1 if not reverse else 0]
        factors = np.array(exact) / exact[-1 if not reverse else 0]
        assert beyond.max() >= factors.max() / (1 + 1e-9)
    the = case(layer, looped, data(2, 2), weight(3, 2, 2, marks="b i o", size=1.2))
    attack = attacked((the,), points=2)[the]
    for _, jacobian in attack.jacobians:
        each = jacobian.reshape(4, 3, 4)
        for k in range(3):
            natural = natural_norm((2, 2))
            largest = attack.steepest_found(each[:, k], operator, natural)
            assert largest <= found[k] * ROUNDING
