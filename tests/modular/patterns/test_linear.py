"""Rotary positions and other constant maps of one value."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from manifold_optax.modular._patterns import recognise
from modular.patterns.evaluation import found, only_output

BATCH, TOKENS, HEADS, SIZE = 2, 5, 3, 8
X = (
    np.random.default_rng(0)
    .normal(size=(BATCH, TOKENS, HEADS, SIZE))
    .astype(np.float32)
)
W = np.random.default_rng(1).normal(size=(SIZE, SIZE)).astype(np.float32)


def angles(tokens=TOKENS, size=SIZE):
    frequencies = 1 / 10000 ** (jnp.arange(0, size, 2) / size)
    return (jnp.arange(tokens)[:, None] * frequencies[None])[None, :, None]


def tables(x):
    angle = angles(x.shape[1], x.shape[-1])
    return jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)


def halves(x):
    (a, b), (cos, sin) = jnp.split(x, 2, -1), tables(x)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def rotate_half(x):
    angle = jnp.concatenate([angles(), angles()], -1)
    turned = jnp.concatenate([-x[..., SIZE // 2 :], x[..., : SIZE // 2]], -1)
    return x * jnp.cos(angle) + turned * jnp.sin(angle)


def strides(x):
    cos, sin = tables(x)
    a, b = x[..., ::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def pairs(x):
    cos, sin = tables(x)
    a, b = jnp.unstack(x.reshape(*x.shape[:-1], -1, 2), axis=-1)
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def repeated(x):
    cos, sin = (jnp.repeat(table, 2, -1) for table in tables(x))
    turned = jnp.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    return x * cos + turned * sin


def by_matrix(x):
    cos, sin = (jnp.repeat(table, 2, -1) for table in tables(x))
    turn = np.kron(np.eye(SIZE // 2), [[0, 1], [-1, 0]]).astype(np.float32)
    return x * cos + x.dot(turn) * sin


def complex_numbers(x):
    y = x.reshape(*x.shape[:-1], -1, 2)
    z = lax.complex(y[..., 0], y[..., 1]) * jnp.exp(1j * angles())
    return jnp.stack([z.real, z.imag], -1).reshape(x.shape)


def partial(x):
    return jnp.concatenate([halves(x[..., :4]), x[..., 4:]], -1)


def shifted(x):
    return x - jnp.pad(x, [(0, 0)] * 3 + [(1, 0)])[..., :-1]


def signs(x):
    return jnp.where((jnp.arange(SIZE) % 2 == 0)[None, None, None], x, -x)


ROTATIONS = {
    "halves": halves,
    "rotate_half": rotate_half,
    "strides": strides,
    "pairs": pairs,
    "repeated": repeated,
    "by matrix": by_matrix,
    "complex numbers": complex_numbers,
    "partial": partial,
}

MAPS = ROTATIONS | {
    "centred": lambda x: x - x.mean(-1, keepdims=True),
    "copies": lambda x: 0.5 * x + 0.25 * x,
    "roll": lambda x: jnp.roll(x, 3, -1),
    "twice": lambda x: x + x,
    "known matrix": lambda x: x + x.dot(W),
    "shifted": shifted,
    "sums": lambda x: jnp.cumsum(x, -1),
    "sums from behind": lambda x: lax.cumsum(x, 3, reverse=True) + x,
    "signs": signs,
}


@pytest.mark.parametrize("name", MAPS)
def test_norm(name):
    (pattern,) = found(MAPS[name], X)
    (root,) = pattern.operands
    assert pattern.name == "linear"
    assert pattern.params["axes"] == (len(root.shape) - 1,)
    # Tables in float32: cos² + sin² is off by up to 2^-24 on either side.
    assert pattern.params["norm"] == pytest.approx(largest(MAPS[name]), rel=2**-22)
    if name in ROTATIONS:
        assert pattern.params["norm"] == pytest.approx(1, rel=2**-22)


def largest(function):
    """The largest norm over tokens, of the matrix of the map at one head."""

    def at(x):
        return function(jnp.broadcast_to(x[None, :, None], (1, TOKENS, HEADS, SIZE)))[
            0, :, 0
        ]

    basis = jnp.broadcast_to(jnp.eye(SIZE)[:, None], (SIZE, TOKENS, SIZE))
    matrices = np.asarray(jax.jit(jax.vmap(at))(basis), np.float64)
    return np.linalg.norm(matrices.swapaxes(0, 1), 2, (-2, -1)).max()


def test_casts():
    def narrow(x):
        return halves(x.astype(jnp.float32)).astype(jnp.bfloat16)

    (pattern,) = found(narrow, X)
    assert pattern.params["norm"] == pytest.approx(1, rel=2**-22)


def test_vector():
    (pattern,) = found(lambda x: x - x.mean(), X[0, 0, 0])
    assert pattern.params["axes"] == (0,)
    # The eigenvalue of a Gram matrix in float64.
    assert pattern.params["norm"] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(1, keepdims=True),
        lambda x: jnp.roll(x, 1, 1) + x,
        lambda x: x + jnp.sin(x),
        lambda x: (2 * x[..., ::-1]).reshape(BATCH, TOKENS, -1),
        lambda x: x + 1,
        lambda x: jnp.cumsum(x, 1),
        lambda x: jnp.where(x > 0, x, -x),
        lambda x: x * x + x,
    ],
    ids=itertools.count(),
)
def test_look_alikes(function):
    assert not found(function, X)


def test_parameters_are_no_constants():
    assert not found(lambda x, w: x + x.dot(w), X, W)
    assert not found(lambda x, angle: x * jnp.cos(angle) + x, X, X)


def by_positions(x, places, shift=0.0):
    """As Gemma and others write it: positions are an input."""
    timescale = 10000 ** (jnp.arange(0, SIZE, 2) / SIZE)
    angle = places[..., None, None] / timescale[None, None, None]
    a, b = jnp.split(x, 2, -1)
    cos, sin = jnp.cos(angle + shift), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def repeated_by_positions(x, places):
    frequencies = 1 / 10000 ** (jnp.arange(0, SIZE, 2) / SIZE)
    angle = jnp.einsum("bt,d->btd", places.astype(jnp.float32), frequencies)
    angle = jnp.concatenate([angle, angle], -1)[:, :, None]
    turned = jnp.concatenate([-x[..., SIZE // 2 :], x[..., : SIZE // 2]], -1)
    return x * jnp.cos(angle) + turned * jnp.sin(angle)


PLACES = np.broadcast_to(np.arange(TOKENS), (BATCH, TOKENS))


@pytest.mark.parametrize("function", [by_positions, repeated_by_positions])
def test_positions_may_be_inputs(function):
    (pattern,) = found(function, X, PLACES)
    assert pattern.name == "linear"
    # Angles in float32 have a cosine and a sine of their own, rounded once.
    assert pattern.params["norm"] == pytest.approx(1, rel=2**-22)


def two_angles(x, p, q):
    cos, sin = jnp.cos(p)[..., None, None], jnp.sin(q)[..., None, None]
    return x * cos + x[..., ::-1] * sin


def test_positions_that_change_the_norm():
    assert not found(lambda x, places: by_positions(x, places, shift=0.1), X, PLACES)
    assert not found(lambda x, p: x + x * jnp.cos(p)[..., None, None], X, PLACES)
    assert not found(two_angles, X, PLACES, PLACES)
    assert not found(lambda x, p: x + jnp.cos(p)[..., None, None] + x, X, PLACES)
    # A position that depends on the value makes the map a step function of it.
    assert not found(lambda x: by_positions(x, jnp.argmax(x[..., 0], -1)), X)


def test_nearest_root():
    """A rotation of a sum is a map of the sum: what is below has its own reading."""

    def function(x):
        return halves(x + jnp.tanh(x))

    (pattern,) = found(function, X)
    (root,) = pattern.operands
    assert root.operation is not None
    assert root.operation.name == "add"


def test_long_sequences_are_cheap():
    """8,192 positions of 128 entries: as matrices they would be 134 million numbers."""
    shape = jax.ShapeDtypeStruct((4, 8192, 32, 128), jnp.float32)
    graph, output = only_output(halves, shape)
    start = time.process_time()
    pattern = recognise(output)
    assert pattern is not None
    assert pattern.operands == graph.inputs
    # 0.26 s when measured beside other work.
    assert time.process_time() - start < 2


def test_deep_sums_are_cheap():
    """No sum of a residual stream walks back through all of it."""

    def stream(x, w):
        for _ in range(300):
            x = x + x.dot(w)
        return x

    graph, _ = only_output(stream, X, W)
    start = time.process_time()
    assert not [op for op in graph.operations() if recognise(op.results[0])]
    # 20 ms when measured beside other work; a walk through all would take seconds.
    assert time.process_time() - start < 1
