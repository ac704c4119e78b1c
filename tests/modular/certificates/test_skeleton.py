"""Bounds of layers taken together: never below the truth, never above the product."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from manifold_optax import modular
from modular.certificates.ascent import attacked_ratios, pair_readers
from modular.certificates.domains import Ball, Tokens
from modular.certificates.drawn_networks import declared_network

# Bounds are computed in float32 of some tens of rounded numbers.
ROUNDING = 2e-6

# A strict bound of a spectral norm is up to 8^(1/128) - 1 = 1.7 % above it for Gram
# matrices of 8 × 8, and the allowance for rounding is below 0.1 %.
STRICT = 1.02


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.float32(rng.normal(size=s) / np.sqrt(s[-2])) for s in shapes]


def product_bound(certificate, params):
    """The bound without layers taken together."""
    return float(certificate._evaluation(params).value(certificate._inputs))


def chain(params, x):
    for weights in params:
        x = x @ weights
    return x


def mlp(params, x):
    for weights in params[:-1]:
        x = jax.nn.relu(x @ weights)
    return x @ params[-1]


def residual(params, x):
    for up, down in zip(params[::2], params[1::2], strict=True):
        x = x + jax.nn.gelu(x @ up) @ down
    return x


def signed(params, x):
    """Steps whose slopes are in [-1, 1], all 2, and in [2, 3]."""
    x = jnp.abs(x @ params[0])
    x = (2 * x - 1) @ params[1]
    return (2 * x + jnp.tanh(x)) @ params[2]


def pooled(params, x):
    """Convolutions, a maximum, a mean, and a softmax."""
    conv = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.silu(conv(x, params[0]))
    x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    x = jax.nn.relu(conv(x, params[1]))
    return jax.nn.softmax(jnp.mean(x, (1, 2)) @ params[2]) @ params[3]


SQUARE = ((8, 8), (8, 8), (8, 8))
NETWORKS = {
    "relu": (mlp, SQUARE, (1, 8)),
    "residual": (residual, ((8, 12), (12, 8), (8, 12), (12, 8)), (1, 8)),
    "residual at positions": (residual, ((8, 6), (6, 8)), (1, 3, 8)),
    "signed": (signed, SQUARE, (1, 8)),
    "pooled": (pooled, ((3, 3, 2, 4), (3, 3, 4, 4), (4, 5), (5, 4)), (1, 4, 4, 2)),
}


def test_a_linear_network_has_the_norm_of_its_product():
    params = drawn(*SQUARE)
    like = jax.ShapeDtypeStruct((1, 8), np.float32)
    certificate = modular.certificate(chain, params, like)
    found = float(jax.jit(certificate.lipschitz)(params))
    product = np.linalg.multi_dot([np.float64(x) for x in params])
    norm = np.linalg.norm(product, 2)
    assert norm * (1 - ROUNDING) <= found <= STRICT * norm


@pytest.mark.slow
def test_pairs_of_a_linear_network_are_distances_of_columns():
    params = drawn(*SQUARE)
    like = jax.ShapeDtypeStruct((1, 8), np.float32)
    pairs = np.asarray(modular.certificate(chain, params, like).pairs(params))
    columns = np.linalg.multi_dot([np.float64(x) for x in params]).T
    true = np.linalg.norm(columns[:, None] - columns[None], axis=-1)
    assert (pairs >= true * (1 - ROUNDING)).all()
    # The allowance is relative to the product of the norms, here 5 times the distances.
    np.testing.assert_allclose(pairs, true, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_no_attack_and_no_product_is_beyond_the_bound(name, seed):
    forward, shapes, shape = NETWORKS[name]
    params = drawn(*shapes, seed=seed)
    domain = Ball(jax.ShapeDtypeStruct(shape, np.float32), 8.0)
    certificate = modular.certificate(forward, params, domain.declared())
    found = float(jax.jit(certificate.lipschitz)(params))
    assert found == pytest.approx(float(certificate.lipschitz(params)), rel=1e-5)
    (ratio,) = attacked_ratios(forward, params, domain, starts=24, steps=150)
    assert ratio <= found * (1 + ROUNDING)
    # Together layers say more in all of these.
    assert found < product_bound(certificate, params)
    if len(shape) != 2:
        return
    readers, index = pair_readers(8)
    ratios = attacked_ratios(forward, params, domain, readers, starts=6, steps=60)
    pairs = np.asarray(certificate.pairs(params))
    bounds = np.asarray([pairs[i, j] for i, j in index])
    assert (ratios <= bounds * (1 + ROUNDING)).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_random_networks_of_one_example(seed):
    drawn_network = declared_network(seed)
    network, domain = drawn_network.network, drawn_network.domain
    like = jax.ShapeDtypeStruct((1, *domain.like.shape[1:]), np.float32)
    domain = dataclasses.replace(domain, like=like)  # pyright: ignore[reportArgumentType]
    certificate = modular.certificate(
        network.forward, network.params, domain.declared()
    )
    found = float(jax.jit(certificate.lipschitz)(network.params))
    before = product_bound(certificate, network.params)
    assert found <= before or np.isnan(before)
    (ratio,) = attacked_ratios(
        network.forward, network.params, domain, starts=8, steps=60
    )
    assert ratio <= found * (1 + ROUNDING), drawn_network.description


@pytest.mark.slow
def test_attention_on_tokens():
    def forward(params, x):
        query, key, value = (x @ weights for weights in params[:3])
        logits = jnp.einsum("nqd,nkd->nqk", query, key) / 8
        return x + jax.nn.softmax(logits) @ value @ params[3]

    params = drawn(*[(8, 8)] * 4)
    domain = Tokens(jax.ShapeDtypeStruct((1, 3, 8), np.float32), 1.0)
    certificate = modular.certificate(forward, params, domain.declared())
    found = float(certificate.lipschitz(params))
    assert found <= product_bound(certificate, params)
    (ratio,) = attacked_ratios(forward, params, domain, starts=24, steps=150)
    assert ratio <= found * (1 + ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_have_no_bound(bad):
    like = jax.ShapeDtypeStruct((1, 8), np.float32)
    for layer in range(3):
        params = drawn(*SQUARE)
        params[layer] = params[layer].at[1, 2].set(bad)
        params[layer - 1] = jnp.zeros_like(params[layer - 1])
        certificate = modular.certificate(mlp, params, like)
        assert certificate.lipschitz(params) == np.inf
        pairs = np.asarray(certificate.pairs(params))
        assert (pairs[~np.eye(8, dtype=bool)] == np.inf).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12])
def test_large_and_small_layers_may_cancel(size):
    like = jax.ShapeDtypeStruct((1, 8), np.float32)
    params = drawn(*SQUARE)
    certificate = modular.certificate(mlp, params, like)
    before = float(certificate.lipschitz(params))
    params[0], params[1] = size * params[0], params[1] / size
    # Norms allow for their rounding by up to 1e-4 of them, by the size of the entries.
    assert certificate.lipschitz(params) >= before * (1 - 3e-4)


@pytest.mark.slow
def test_bfloat16_is_computed_in_float32():
    params = [x.astype(jnp.bfloat16) for x in drawn(*SQUARE)]
    like = jax.ShapeDtypeStruct((1, 8), jnp.bfloat16)
    found = float(modular.certificate(chain, params, like).lipschitz(params))
    product = np.linalg.multi_dot([np.float64(x) for x in params])
    norm = np.linalg.norm(product, 2)
    assert norm * (1 - ROUNDING) <= found <= STRICT * norm


@pytest.mark.slow
def test_the_explanation_says_so():
    params = drawn(*SQUARE)
    like = jax.ShapeDtypeStruct((1, 8), np.float32)
    certificate = modular.certificate(mlp, params, like)
    last = certificate.explain(params).splitlines()[-1]
    assert last.startswith("layers taken together: at most ")
    assert float(last.split()[-1]) == pytest.approx(
        float(certificate.lipschitz(params)), rel=1e-4
    )
