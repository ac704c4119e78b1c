"""The networks: what passes through them, and the scan over their layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.experiments.transfer.networks import Network


def _inputs(network):
    random = np.random.default_rng(0)
    if network.family == "transformer":
        return jnp.asarray(random.integers(0, network.inputs, (4, 6)), jnp.int32)
    return jnp.asarray(random.standard_normal((32, network.inputs)), jnp.float32)


def _unrolled(network, params, x):
    """The perceptrons as a user would write them."""
    x = x @ params["first"]
    for weight in params["inner"]:
        result = np.maximum(x, 0) @ weight
        match network.family:
            case "residual":
                result = x + result
            case "mean":
                result = x - x / network.depth + result / network.depth
        x = result
    return np.maximum(x, 0) @ params["last"]


@pytest.mark.parametrize("family", ["plain", "residual", "mean"])
def test_layers_are_applied_one_after_another(family):
    network = Network(family, width=24, depth=3, inputs=10, outputs=4)
    params = network.draw(3)
    x = _inputs(network)
    wanted = _unrolled(network, params, np.asarray(x, np.float64))
    # float32 against float64 through five products of at most 24 terms: about 1e-6 of
    # the largest entry, 3.
    np.testing.assert_allclose(network.apply(params, x), wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["plain", "residual", "mean", "transformer"])
@pytest.mark.parametrize("depth", [1, 4, 16])
@pytest.mark.parametrize("width", [32, 128])
def test_the_output_keeps_its_size(family, depth, width):
    network = Network(family, width, depth, inputs=40, outputs=10)
    logits = network.apply(network.draw(0), _inputs(network))
    # A ReLU takes half of the square, the residual sum adds at most a factor e, the
    # mean leaves 1/e of it or more: between 1/5 and 2, at any width and depth.
    assert 0.2 < float(jnp.sqrt(jnp.mean(logits**2))) < 2


@pytest.mark.slow
def test_the_transformer_is_causal():
    network = Network("transformer", width=32, depth=2, inputs=9, outputs=9)
    params, tokens = network.draw(0), _inputs(network) % 9
    changed = tokens.at[:, 4].set((tokens[:, 4] + 1) % 9)
    before, after = jax.jit(network.apply)(
        params, jnp.stack([tokens, changed]).reshape(8, 6)
    ).reshape(2, 4, 6, 9)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert not np.allclose(before[:, 4:], after[:, 4:])


def test_the_number_of_matrices_is_that_of_the_stacks():
    network = Network("transformer", width=32, depth=3, inputs=9, outputs=9)
    assert network.matrices == 2 + 3 * 6
    assert Network("plain", width=8, depth=5, inputs=3, outputs=2).matrices == 7
