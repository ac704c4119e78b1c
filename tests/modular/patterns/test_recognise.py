"""Patterns in whole networks and in their gradients."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from manifold_optax.modular._computation._trace import trace
from manifold_optax.modular._patterns import recognise
from modular.patterns.evaluation import evaluate, found

TOKENS, SIZE = 6, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(TOKENS, SIZE)).astype(np.float32)
WEIGHTS = RNG.normal(size=(5, SIZE, SIZE)).astype(np.float32) / SIZE**0.5
GAINS = RNG.normal(1, 0.1, size=(2, SIZE)).astype(np.float32)


def norm(x, gain):
    return x * (lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * gain[None])


def rotary(x):
    angle = jnp.arange(TOKENS)[:, None] / 100 ** (jnp.arange(0, SIZE, 2) / SIZE)[None]
    (a, b), cos, sin = jnp.split(x, 2, -1), jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def block(x, weights, gains):
    y = norm(x, gains[0])
    q, k, v = (y @ weight for weight in weights[:3])
    scores = rotary(q) @ rotary(k).T / SIZE**0.5
    mask = jnp.tril(jnp.ones((TOKENS, TOKENS), bool))
    x = x + jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)) @ v @ weights[3]
    return x + jax.nn.gelu(norm(x, gains[1]) @ weights[4])


def loss(x, weights, gains):
    return -jax.nn.log_softmax(block(x, weights, gains))[:, 0].mean()


def test_a_transformer_block():
    patterns = Counter(pattern.name for pattern in found(block, X, WEIGHTS, GAINS))
    assert patterns == {"normalize": 2, "linear": 2, "softmax": 1}


@pytest.mark.parametrize("function", [block, jax.grad(loss)])
def test_values_do_not_change(function):
    """Nothing is taken for what it is not, in graphs that nobody wrote by hand."""
    both = jax.jit(lambda *args: (evaluate(function, *args), function(*args)))
    ours, theirs = map(np.asarray, both(X, WEIGHTS, GAINS))
    # 25 eps of sums of up to 8 terms in another order, ten layers deep.
    assert abs(ours - theirs).max() <= 3e-6 * abs(theirs).max()


def test_bodies_of_loops():
    def stack(x, gains):
        return lax.scan(lambda x, gain: (x + norm(x, gain), None), x, gains)[0]

    graph, _, _ = trace(stack, X, GAINS)
    (loop,) = (operation for operation in graph.operations() if operation.bodies)
    total = loop.bodies[0].outputs[0].operation
    assert total is not None
    product = recognise(total.operands[1])
    assert product is not None
    assert product.name == "mul"
    layer = product.operands[0].operation
    assert layer is not None
    assert layer.name == "normalize"
    assert layer.operands == (total.operands[0],)


def test_what_has_no_operation():
    graph, _, _ = trace(lambda x: x, X)
    assert recognise(graph.inputs[0]) is None
