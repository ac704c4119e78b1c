"""Rules that move entries: attacked on shapes with heads, blocks and uneven cuts."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from modular.rule_attacks import attacked
from modular.rule_cases import case, data, fixed, weight

_W = weight(4, 6, marks="i o")

CASES = [
    # Axes in another order, in other shapes, of size 1, repeated.
    case("transpose", lambda x: x.transpose(1, 0, 2), data(2, 3, 2)),
    case("transpose weight", lambda w: w.T, _W),
    case("heads apart", lambda x: x.reshape(2, 3, 2), data(2, 6, marks="b 3b2o")),
    case("heads joined", lambda x: x.reshape(2, 6), data(2, 3, 2),
         wanted=("b 3b2o",)),
    case("reshape cut", lambda x: x.reshape(3, 4), data(2, 6, marks="b 2b3o")),
    case("reshape weight", lambda w: w.reshape(2, 2, 6), _W),
    case("squeeze", lambda x: lax.squeeze(x, (1,)), data(2, 1, 3)),
    case("expand", lambda x: lax.expand_dims(x, (1,)), data(2, 3)),
    case("broadcast", lambda x: jnp.broadcast_to(x[:, None], (2, 3, 2)), data(2, 2)),
    case("broadcast ones", lambda x: jnp.broadcast_to(x, (2, 4)), data(2, 1)),
    case("broadcast weight", lambda w: jnp.broadcast_to(w[None], (2, 4, 6)), _W),
    case("grouped queries", lambda x: jnp.repeat(x, 2, axis=1), data(2, 2, 3)),
    case("rev", lambda x: x[:, ::-1], data(2, 6, marks="b 3b2o")),
    case("cast", lambda x: x.astype(jnp.float32).astype(x.dtype), data(2, 3)),
    case("tile", lambda x: jnp.tile(x, (2, 3)), data(2, 4, marks="b 2b2o"),
         wanted=("4b o", "o s", "i o")),
    case("unstack", lambda x: jnp.unstack(x, axis=1)[1], data(2, 3, 2)),
    case("unstack all", lambda x: sum(jnp.unstack(x)), weight(2, 3, 2, marks="b i o")),
    case("name", lambda x: checkpoint_name(x, "x"), data(2, 3)),
    *[
        case(name, lambda x: 1.0 * x, data(2, 4, marks="b 2b2o"), operation=(name, {}))
        for name in (
            "copy", "copy_p", "stop_gradient", "reduce_precision", "device_put", "real",
            "sharding_constraint", "layout_constraint", "pvary", "pcast", "mesh_cast",
            "reshard",
        )
    ],
    case("expand_dims", lambda x: x[:, None], data(2, 3),
         operation=("expand_dims", {})),
    case("shard", lambda x: x[2:4], data(4, 3), operation=("shard", {})),
    case("shard of features", lambda x: x[:, 4:8], data(2, 12, marks="b 6b2o"),
         operation=("shard", {}), wanted=("b 2b2o",)),
    case("joined_shards", lambda x: jnp.tile(x, (1, 2)), data(2, 2),
         operation=("joined_shards", {"reps": (1, 2)})),
    case("precision", lambda x: lax.reduce_precision(x, 11, 52), data(2, 3)),
    # Slices.
    case("slice", lambda x: x[1:3], data(4, 3)),
    case("slice in a head", lambda x: x[:, 1:5], data(2, 6, marks="b 3b2o")),
    case("slice of heads", lambda x: x[:, 2:6], data(2, 6, marks="b 3b2o"),
         wanted=("b 2b2o",)),
    case("strided", lambda x: x[:, ::2], data(2, 6, marks="b 3b2o")),
    case("slice weight", lambda w: w[1:3, 2:6], _W),
    case("dynamic_slice", lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 4)),
         data(4, 6, marks="b 3b2o"), fixed(1)),
    case("dynamic weight", lambda w, i: lax.dynamic_slice(w, (0, i), (4, 4)), _W,
         fixed(1)),
    case("split", lambda x: lax.split(x, (2, 4), 1)[1], data(2, 6, marks="b 3b2o"),
         wanted=("b 2b2o",)),
    case("split all", lambda x: sum(lax.split(x, (2, 2, 2), 1)), data(2, 6)),
    case("split uneven", lambda x: lax.split(x, (1, 4, 1), 1)[1],
         data(2, 6, marks="b 3b2o")),
    case("split weight", lambda w: lax.split(w, (2, 4), 1)[1], _W),
    # Arrays side by side, and with a border.
    case("concatenate", lambda x, y: jnp.concatenate([x, y], 1), data(2, 2),
         data(2, 4)),
    case("concatenate in a block", lambda x, y: jnp.concatenate([x, y], 1),
         data(2, 3), data(2, 1), wanted=("b 2b2o", "b 2o2b")),
    case("concatenate rows", lambda x, y: jnp.concatenate([x, y], 0),
         data(2, 3), data(1, 3), wanted=("s b", "i o", "o i")),
    case("concatenate weights", lambda x, y: jnp.concatenate([x, y], 1),
         weight(4, 2, marks="i o"), weight(4, 6, marks="i o"),
         wanted=("i o", "i 4b2o")),
    case("stack", lambda x, y: jnp.stack([x, y]), data(2, 3), data(2, 3, marks="o o")),
    case("pad", lambda x: jnp.pad(x, ((1, 0), (0, 2))), data(2, 4, marks="b 2b2o"),
         wanted=("b 3b2o",)),
    case("pad with a number", lambda x: lax.pad(x, jnp.ones((), x.dtype) * 0.5,
                                                ((0, 1, 0), (1, 1, 0))), data(2, 2),
         wanted=("s b", "i o")),
    case("pad inside", lambda x: lax.pad(x, jnp.zeros((), x.dtype),
                                         ((0, 0, 1), (0, 1, 1))), data(2, 3)),
    case("pad negative", lambda x: lax.pad(x, jnp.zeros((), x.dtype),
                                           ((0, 0, 0), (-1, -1, 0))),
         data(2, 6, marks="b 3b2o"), wanted=("b 2b2o",)),
    case("pad shift", lambda x: lax.pad(x, jnp.zeros((), x.dtype),
                                        ((0, 0, 0), (-1, 1, 0))),
         data(2, 6, marks="b 3b2o"), wanted=("b 3b2o",), given=("b 3b2o",)),
    case("pad with data", lambda x, p: lax.pad(x, p, ((0, 0, 0), (1, 2, 0))),
         data(2, 3), data()),
    case("roll", lambda x: jnp.roll(x, 1, 1), data(2, 6, marks="b 3b2o"),
         wanted=("b 3b2o",)),
    # Looked up.
    case("embedding", lambda w, i: w[i], weight(5, 4), fixed([[0, 3, 3], [4, 0, 1]])),
    case("embedding heads", lambda w, i: w[i], weight(5, 4, marks="b 2b2o"),
         fixed([0, 3, 3]), wanted=("b 2b2o", "o o", "o i")),
    case("embedding operator", lambda w, i: w[i], weight(3, 4, marks="i o"),
         fixed([0, 2, 2, 0]), wanted=("i o",)),
    case("take columns", lambda x, i: jnp.take(x, i, axis=1), data(2, 4),
         fixed([1, 1, 3])),
    case("take along", lambda x, i: jnp.take_along_axis(x, i, 1), data(3, 4),
         fixed([[0], [2], [2]])),
    case("take along rows", lambda x, i: jnp.take_along_axis(x, i, 0), data(3, 2),
         fixed([[0, 2], [2, 2], [1, 0]])),
    case("gather pairs", lambda x, i: x[i, i], data(3, 3), fixed([0, 2, 0])),
    case("gather windows",
         lambda x, i: jax.vmap(lambda k: lax.dynamic_slice(x, (k, 0), (2, 4)))(i),
         data(4, 4, marks="b 2b2o"), fixed([0, 1, 2])),
    case("gather batched",
         lambda x, i: jax.vmap(lambda a, k: a[k])(x, i), data(2, 3, 2), fixed([0, 2])),
]  # fmt: skip


@pytest.mark.parametrize("the", CASES, ids=str)
@pytest.mark.usefixtures("x64")
def test_a_rule_is_never_exceeded(the):
    assert attacked(tuple(CASES))[the].found == []


@pytest.mark.usefixtures("x64")
def test_the_bounds_are_nearly_attained():
    """These rules lose nothing in some pair of norms."""
    closest = {x.name: y.closest["gain"] for x, y in attacked(tuple(CASES)).items()}
    # Below 1, as a search of a few steps may miss the largest change.
    assert {name for name, gain in closest.items() if gain < 0.9} == set()
