"""Rules of sums, maxima, windows, and of softmax, norm layers and linear maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from modular.rule_attacks import attacked
from modular.rule_cases import case, data, fixed, weight

_W = weight(4, 4, marks="i o")


def _window(function, start, size, strides=None, padding="VALID"):
    def apply(x):
        return lax.reduce_window(
            x, np.array(start, x.dtype), function, size, strides or size, padding
        )

    return apply


def _rms_norm(x):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 0.25)


def _layer_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 0.25)


def _differences(x):
    x = x.reshape(2, 4)
    return x[:, :2] - x[:, 2:]


def _softmax(*axes):
    return lambda x: jax.nn.softmax(x, axes)


CASES = [
    # Sums and means.
    case("sum", lambda x: x.sum(1), data(2, 3, 2), wanted=("s b",)),
    case("sum of two axes", lambda x: x.sum((0, 2)), data(2, 3, 2, marks="o b o")),
    case("sum of all", lambda x: x.sum(), data(2, 6, marks="b 2b3o")),
    case("sum of inputs", lambda w: w.sum(0), _W),
    case("sum of outputs", lambda w: w.sum(1), _W),
    case("sum of layers", lambda w: w.sum(0), weight(2, 3, 3, marks="b i o"),
         wanted=("i o",)),
    case("mean", lambda x: x.mean(-1), data(2, 4, marks="b 2b2o")),
    case("centred", lambda x: x - x.mean(-1, keepdims=True), data(2, 4)),
    case("variance", lambda x: x.var(-1), data(2, 3)),  # It chooses, once for all.
    # Maxima.
    case("max over features", lambda x: x.max(1), data(2, 4)),
    case("max over tokens", lambda x: x.max(0), data(3, 3), wanted=("o", "s")),
    case("min over two", lambda x: x.min((0, 1)), data(2, 3, 2), wanted=("o", "s")),
    case("max of a weight", lambda w: w.max(0), weight(2, 3, 3, marks="b i o"),
         wanted=("i o", "o i")),
    case("max pool of all", lambda x: x.max((1, 2)), data(2, 2, 2, 2)),
    # Windows.
    case("average pool", _window(lax.add, 0, (1, 2, 1)), data(2, 4, 2),
         wanted=("b o o",)),
    case("sums that overlap", _window(lax.add, 0, (1, 3, 1), (1, 1, 1), "SAME"),
         data(1, 4, 2), wanted=("b s b", "b b o")),
    case("max pool", _window(lax.max, -np.inf, (1, 2, 1)), data(1, 4, 3),
         wanted=("b b o", "b b s", "b i o")),
    case("max pool of features", _window(lax.max, -np.inf, (1, 2)), data(2, 4)),
    case("min pool", _window(lax.min, np.inf, (2, 2, 1), (1, 1, 1), "SAME"),
         data(2, 2, 2)),
    case("every other", _window(lax.max, -np.inf, (1, 1, 1), (1, 2, 1)),
         data(1, 4, 2)),
    case("average pool over space", _window(lax.add, 0, (1, 2, 1)),
         data(1, 4, 2, marks="b o o"), wanted=("b o o",), given=("b o o",)),
    case("max pool over space", _window(lax.max, -np.inf, (1, 2, 1)),
         data(1, 4, 3, marks="b o o"), wanted=("b o o", "b o b"),
         given=("b o o", "b o b", "b o s")),
    # Along an axis.
    case("cumsum", lambda x: jnp.cumsum(x, 0), data(3, 2), wanted=("o o",)),
    case("cumsum back", lambda x: lax.cumsum(x, 1, reverse=True), data(2, 3)),
    case("cumsum of a weight", lambda w: jnp.cumsum(w, 0), weight(3, 2, marks="i o")),
    case("cummax", lambda x: lax.cummax(x, 0), data(3, 3),
         wanted=("b o", "b s", "i o", "o i")),
    case("cummin of layers", lambda w: lax.cummin(w, 0),
         weight(2, 3, 3, marks="b i o"), wanted=("b i o",)),
    case("sort features", lambda x: jnp.sort(x, 1), data(2, 4, marks="b 2b2o"),
         wanted=("b 2b2o",)),
    case("sort tokens", lambda x: jnp.sort(x, 0), data(3, 3),
         wanted=("b o", "o b", "b s", "i o"), given=("i o", "b s")),
    # Softmax.
    case("softmax", _softmax(-1), data(2, 4, size=3.0), wanted=("b s", "o s", "s b")),
    case("softmax of two", _softmax(-1), data(3, 2), wanted=("b s",), given=("b b",)),
    case("softmax of heads", _softmax(-1), data(2, 3, size=3.0),
         wanted=("o s", "o m"), given=("o m", "o o")),
    case("softmax of two axes", _softmax(1, 2), data(2, 2, 2, size=3.0),
         given=("o b b",)),
    case("softmax, axis 0", _softmax(0), data(3, 2, size=3.0),
         wanted=("s b", "s o", "i o", "b s"), given=("i o", "b s", "o s")),
    case("softmax, blocks", _softmax(-1), data(2, 4, marks="b 2b2o", size=3.0)),
    case("softmax of a weight", _softmax(-1), _W, wanted=("i o",), given=("i o",)),
    case("softmax, masked",
         lambda x: jax.nn.softmax(jnp.where(np.tri(3, dtype=bool), x, -np.inf), -1),
         data(3, 3, size=3.0)),
    case("log_softmax", lambda x: jax.nn.log_softmax(x, -1), data(2, 3, size=3.0),
         wanted=("s b", "b s")),
    case("log_softmax, axis 0", lambda x: jax.nn.log_softmax(x, 0), data(3, 2)),
    # Norm layers, with their ε and with a floor.
    case("rms norm", _rms_norm, data(2, 4), wanted=("b s",)),
    case("layer norm", _layer_norm, data(2, 4)),
    case("layer norm, blocks", _layer_norm, data(2, 4, marks="b 2b2o"),
         wanted=("b 2b2o",)),
    case("rms norm, columns", lambda x: _rms_norm(x.T).T, data(4, 2),
         wanted=("i o", "o b"), given=("i o", "o i", "b s")),
    case("rms norm of a weight", _rms_norm, _W, wanted=("i o",), given=("i o",)),
    # Known linear maps.
    case("rotation",
         lambda x: jnp.concatenate([0.6 * x[:, :2] - 0.8 * x[:, 2:],
                                    0.8 * x[:, :2] + 0.6 * x[:, 2:]], 1),
         data(2, 4, marks="b 2b2o"), wanted=("b 2b2o", "i o"), given=("b 2b2o",)),
    case("differences", _differences, data(2, 2, 2), wanted=("b s", "i o")),
    case("repeats", lambda x: jnp.concatenate([x, x + x[:, ::-1]], 1), data(2, 2)),
    case("of positions",
         lambda x, t: x * jnp.cos(t)[:, None] + x[:, ::-1] * jnp.sin(t)[:, None],
         data(3, 2), fixed([0.0, 1.0, 2.0])),
]  # fmt: skip

# Windows in the Euclidean norm over positions.
OVER_SPACE = [
    case("sums that overlap over space",
         _window(lax.add, 0, (1, 3, 1), (1, 2, 1), "SAME"),
         data(1, 6, 1, marks="b o o"), wanted=("b o o", "b o b"),
         given=("b o o", "b o b")),
    case("sums over a plane", _window(lax.add, 0, (1, 2, 3), (1, 2, 1)),
         data(2, 4, 3, marks="b o o"), wanted=("b o o", "b b o", "o b o"),
         given=("b o o", "b b o", "o b o", "b o b")),
    case("sums of a dilated line",
         lambda x: lax.reduce_window(
             x, np.array(0, x.dtype), lax.add, (1, 3), (1, 2), ((0, 0), (1, 2)),
             base_dilation=(1, 3), window_dilation=(1, 2)),
         data(2, 4, marks="b o"), wanted=("b o",), given=("b o",)),
    case("max that overlaps over space",
         _window(lax.max, -np.inf, (1, 3, 1), (1, 2, 1), "SAME"),
         data(1, 5, 2, marks="b o o"), wanted=("b o o", "b o b", "b o s"),
         given=("b o o", "b o b", "b o s")),
    case("max over a plane", _window(lax.max, -np.inf, (1, 2, 2), (1, 1, 2)),
         data(2, 3, 4, marks="b o o"), wanted=("b o o", "b b o", "b o b", "o b o"),
         given=("b o o", "b b o", "b o b", "o b o")),
]  # fmt: skip


@pytest.mark.parametrize("the", CASES, ids=str)
@pytest.mark.usefixtures("x64")
def test_a_rule_is_never_exceeded(the):
    assert attacked(tuple(CASES))[the].found == []


@pytest.mark.slow
@pytest.mark.parametrize("the", OVER_SPACE, ids=str)
@pytest.mark.usefixtures("x64")
def test_a_rule_over_space_is_never_exceeded(the):
    assert attacked(tuple(OVER_SPACE), pairs=12)[the].found == []
