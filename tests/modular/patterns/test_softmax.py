"""Softmax and log-softmax in several spellings."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from modular.patterns.evaluation import evaluate, found

# Square, so that sums over a wrong axis would fit.
X = np.random.default_rng(0).normal(0, 2, (6, 6, 6)).astype(np.float32)
MASK = jnp.tril(jnp.ones((1, 6, 6), bool))


def top(x):
    return x.max(-1, keepdims=True)


def shared(exponential, axis=-1):
    return exponential / exponential.sum(axis, keepdims=True)


def reciprocal(x):
    exponential = jnp.exp(x - lax.stop_gradient(top(x)))
    return exponential * (1 / exponential.sum(-1))[..., None]


def narrow(x):
    exponential = jnp.exp(x)
    return exponential.astype(jnp.bfloat16) / exponential.sum(-1, keepdims=True).astype(
        jnp.bfloat16
    )


SOFTMAX = {
    "jax": (jax.nn.softmax, (2,)),
    "other axis": (lambda x: jax.nn.softmax(x, 1), (1,)),
    "two axes": (lambda x: jax.nn.softmax(x, (0, 1)), (0, 1)),
    "vmap": (jax.vmap(jax.vmap(jax.nn.softmax)), (2,)),
    "by hand": (lambda x: shared(jnp.exp(x - top(x))), (2,)),
    "not shifted": (lambda x: shared(jnp.exp(x)), (2,)),
    "written twice": (lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True), (2,)),
    "all entries": (lambda x: (lambda e: e / e.sum())(jnp.exp(x)), (0, 1, 2)),
    "reciprocal": (reciprocal, (2,)),
    "casts": (lambda x: jax.nn.softmax(x).astype(jnp.bfloat16), (2,)),
    "narrow": (narrow, (2,)),
    "powers of 2": (lambda x: shared(jnp.exp2(x - top(x))), (2,)),
    "where": (lambda x: jax.nn.softmax(x, where=MASK), (2,)),
    "masked after": (lambda x: shared(jnp.where(MASK, jnp.exp(x - top(x)), 0)), (2,)),
    "masked before": (lambda x: jax.nn.softmax(jnp.where(MASK, x, -1e30)), (2,)),
    "of the log": (lambda x: jnp.exp(jax.nn.log_softmax(x, 1)), (1,)),
}

LOG_SOFTMAX = {
    "log": (jax.nn.log_softmax, (2,)),
    "logsumexp": (lambda x: x - jax.nn.logsumexp(x, 1, keepdims=True), (1,)),
    "log by hand": (
        lambda x: x - top(x) - jnp.log(jnp.exp(x - top(x)).sum(-1, keepdims=True)),
        (2,),
    ),
}

NOT_X = {"powers of 2", "where", "masked after", "masked before"}
"""Where the operand is an operation of x."""


@pytest.mark.parametrize("name", [*SOFTMAX, *LOG_SOFTMAX])
def test_spellings(name):
    function, axes = (SOFTMAX | LOG_SOFTMAX)[name]
    (pattern,) = found(function, X)
    assert pattern.name == ("softmax" if name in SOFTMAX else "log_softmax")
    assert pattern.params == {"axes": axes}
    assert (pattern.operands[0].operation is None) == (name not in NOT_X)


@pytest.fixture(scope="module")
def values():
    """The values of all spellings, ours and theirs, in one compilation."""
    functions = {name: f for name, (f, _) in (SOFTMAX | LOG_SOFTMAX).items()}
    return jax.jit(lambda x: {k: (evaluate(f, x), f(x)) for k, f in functions.items()})(
        X
    )


@pytest.mark.parametrize("name", [*SOFTMAX, *LOG_SOFTMAX])
def test_value(name, values):
    ours, theirs = values[name]
    # Logarithms reach -12: 4 eps of that. bfloat16 rounds once, `narrow` three times.
    tolerance = 3 * 2**-8 if ours.dtype == jnp.bfloat16 else 6e-6
    theirs, ours = np.asarray(theirs, np.float32), np.asarray(ours, np.float32)
    assert abs(ours - theirs).max() <= tolerance


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (lambda e: e / e.sum(1)[:, :, None])(jnp.exp(x)),
        lambda x: (lambda e: e / e.sum(1)[:, None, :].mT)(jnp.exp(x)),
        lambda x: jnp.exp(x) / jnp.exp(2 * x).sum(-1, keepdims=True),
        lambda x: jnp.exp(x) / (jnp.exp(x).sum(-1, keepdims=True) - 1),
        lambda x: shared(jax.nn.relu(x) + 1),
        lambda x: x * jax.nn.sigmoid(x),
        lambda x: 1 / (1 + jnp.exp(-x)),
        lambda x: x - jax.nn.logsumexp(2 * x, -1, keepdims=True),
        lambda x: x - jax.nn.logsumexp(x, 1)[..., None],
    ],
    ids=itertools.count(),
)
def test_look_alikes(function):
    assert not found(function, X)


def test_a_mask_that_hides_nothing_from_the_numerator():
    """Entries outside the sum may exceed it: this is no softmax."""

    def unsafe(x):
        exponential = jnp.exp(x)
        return exponential / jnp.where(MASK, exponential, 0).sum(-1, keepdims=True)

    assert not found(unsafe, X)
