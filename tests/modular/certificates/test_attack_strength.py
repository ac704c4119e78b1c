"""The attacks find what is known: an attack that misses much would refute nothing."""

import itertools
import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from modular.certificates.ascent import (
    attacked_changes,
    attacked_margins,
    attacked_ratios,
    pair_readers,
)
from modular.certificates.domains import Ball, EntryBox, Everything, Tokens
from modular.certificates.drawn_networks import WeightDraw
from modular.certificates.steepest import steep_pairs

# What an attack may miss of a constant that is known.
MISSED = 0.01

# Rounding of float64 in the ratio of the shortest pairs: 1e-16 / 1e-5, times 100.
ROUNDING = 1e-9

LIKE = jax.ShapeDtypeStruct((2, 6), np.float32)
DOMAINS = (
    Everything(LIKE),
    EntryBox(LIKE, 0.0, 1.0),
    Tokens(LIKE, 0.5),
    Ball(LIKE, 2.0, 0.3),
)


def weights_of(kind, widths=(6, 8, 5, 4), seed=0):
    draw = WeightDraw(np.random.default_rng(seed), 1.0, False, 0.0, ("tanh",), kind)
    shapes = itertools.pairwise(widths)
    # As float32, which the attack takes as they are.
    return [np.float32(draw.matrix(*shape)) for shape in shapes]


def chain(params, x, activation=lambda x: x):
    for weights in params[:-1]:
        x = activation(x @ weights)
    return x @ params[-1]


def product(weights):
    return np.linalg.multi_dot([np.asarray(w, np.float64) for w in weights])


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: type(domain).__name__)
@pytest.mark.parametrize("kind", ["orthogonal", "gaussian"])
def test_the_ratio_of_a_linear_chain(kind, domain):
    weights = weights_of(kind)
    known = np.linalg.norm(product(weights), 2)
    (found,) = attacked_ratios(chain, weights, domain)
    assert (1 - MISSED) * known <= found <= (1 + ROUNDING) * known


@pytest.mark.slow
def test_the_ratio_of_an_orthogonal_network_with_tanh():
    weights = weights_of("orthogonal", widths=(6, 6, 6, 6))
    deep = lambda params, x: chain(params, x, jnp.tanh)
    # Attained at 0, where all slopes are 1, which is inside this ball.
    (found,) = attacked_ratios(deep, weights, Ball(LIKE, 1.0, 0.1))
    assert 1 - MISSED <= found <= 1 + 1e-6  # orthogonal to rounding of float32


@pytest.mark.slow
def test_the_ratio_of_an_orthogonal_network_with_relu_and_few_layers():
    weights = weights_of("orthogonal", widths=(6, 12, 4))
    deep = lambda params, x: chain(params, x, jax.nn.relu)
    jacobians = [
        np.linalg.norm(weights[0] * (weights[0].T @ x > 0) @ weights[1], 2)
        for x in np.random.default_rng(1).normal(size=(20_000, 6))
    ]
    (found,) = attacked_ratios(deep, weights, Everything(LIKE), starts=64)
    assert found >= (1 - MISSED) * max(jacobians)
    assert found <= 1 + 1e-6


@pytest.mark.slow
def test_a_population_finds_what_the_ascent_misses():
    """The slope of a Jacobian of ReLUs is 0: the ascent does not see where it grows."""
    weights = weights_of("orthogonal", widths=(8,) * 7)
    deep = lambda params, x: chain(params, x, jax.nn.relu)
    domain = Ball(jax.ShapeDtypeStruct((1, 8), np.float32), 1.0)
    steep = steep_pairs(deep, weights, domain, points=256, trials=400, count=8)
    (found,) = attacked_ratios(deep, weights, domain, further=steep)
    (without,) = attacked_ratios(deep, weights, domain)
    assert found <= 1 + 1e-6  # orthogonal to rounding of float32
    # Half of what the two networks of depth 6 and width 16 gain, 1.4 times as much.
    assert found >= 1.2 * without


@pytest.mark.slow
def test_the_ratio_of_every_pair_of_outputs():
    weights = weights_of("gaussian")
    readers, pairs = pair_readers(4)
    found = attacked_ratios(chain, weights, DOMAINS[1], readers)
    matrix = product(weights)
    for (i, j), ratio in zip(pairs, found, strict=True):
        known = np.linalg.norm(matrix[:, i] - matrix[:, j])
        assert (1 - MISSED) * known <= ratio <= (1 + ROUNDING) * known


@pytest.mark.slow
def test_the_largest_position_counts():
    mixing = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)

    def forward(params, x):
        return jnp.einsum("nte,st->nse", x, params)

    like = jax.ShapeDtypeStruct((2, 5, 4), np.float32)
    (found,) = attacked_ratios(forward, mixing, Tokens(like, 1.0), starts=32)
    known = np.linalg.norm(mixing, axis=1).max()
    assert (1 - MISSED) * known <= found <= (1 + 1e-6) * known


def test_the_change_of_a_linear_chain_by_a_step():
    weights, other = weights_of("gaussian"), weights_of("gaussian", seed=1)
    steps = [[size * w for w in other] for size in (1e-3, 0.1, 1.0)]
    found = attacked_changes(chain, weights, steps, Ball(LIKE, 2.0))
    for update, change in zip(steps, found, strict=True):
        after = [np.float64(w) + u for w, u in zip(weights, update, strict=True)]
        known = 2 * np.linalg.norm(product(after) - product(weights), 2)
        # A step of 1e-3 is a difference of large numbers: 1e-16 / 1e-3, times 1000.
        assert (1 - MISSED) * known <= change <= (1 + 1e-10) * known


def test_the_change_in_a_box():
    weights, other = weights_of("gaussian"), weights_of("gaussian", seed=1)
    found = attacked_changes(chain, weights, [other], EntryBox(LIKE, -1.0, 1.0))
    after = [np.float64(w) + u for w, u in zip(weights, other, strict=True)]
    moved = product(after) - product(weights)
    signs = 1 - 2 * ((np.arange(2**6)[:, None] >> np.arange(6)) & 1)
    known = np.linalg.norm(signs @ moved, axis=1).max()
    assert (1 - MISSED) * known <= found[0] <= (1 + ROUNDING) * known


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_the_decision_of_a_linear_classifier(factor):
    matrix = product(weights_of("gaussian"))
    x = np.random.default_rng(2).normal(size=(5, 6))
    logits = x @ matrix
    labels = logits.argmax(axis=1)
    distances = np.full(len(x), math.inf)
    for index, label in enumerate(labels):
        for other in set(range(4)) - {label}:
            apart = np.linalg.norm(matrix[:, label] - matrix[:, other])
            margin = logits[index, label] - logits[index, other]
            distances[index] = min(distances[index], margin / apart)
    found = attacked_margins(
        lambda params, x: x @ params, matrix, x, labels, factor * distances
    )
    assert ((found < 0) == (factor > 1)).all()
