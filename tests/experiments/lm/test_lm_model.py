import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from experiments.lm.small import SMALL
from manifold_optax.experiments.lm.config import TrainingConfig
from manifold_optax.experiments.lm.layers import rotate
from manifold_optax.experiments.lm.model import (
    abstract_model,
    apply_model,
    initial_params,
)
from manifold_optax.experiments.lm.optimizers import (
    attention_specs,
    model_roles,
)
from manifold_optax.experiments.lm.train import learning_rate_schedule
from manifold_optax.matrices._view import views_of

KINDS = [("mha", "gelu"), ("gqa", "gated"), ("mla", "moe")]
VOCABULARY = 11


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def model(request):
    """A compiled model of each kind: its configuration, parameters and function."""
    attention, feed_forward = request.param
    config = dataclasses.replace(SMALL, attention=attention, feed_forward=feed_forward)
    graph, _ = abstract_model(config, VOCABULARY)
    params = initial_params(config, VOCABULARY, seed=0)
    apply = jax.jit(lambda params, tokens: apply_model(graph, params, tokens))
    return config, params, apply


@pytest.fixture
def tokens(rng):
    return jnp.asarray(rng.integers(VOCABULARY, size=(2, 9)), jnp.int32)


def test_no_logit_depends_on_a_later_character(model, tokens):
    _, params, apply = model
    logits, _ = apply(params, tokens)
    changed, _ = apply(params, tokens.at[:, 5].add(1) % VOCABULARY)
    np.testing.assert_array_equal(logits[:, :5], changed[:, :5])
    assert np.all(np.any(logits[:, 5:] != changed[:, 5:], axis=-1))


def test_every_layer_tells_its_statistics(model, tokens):
    config, params, apply = model
    _, statistics = apply(params, tokens)
    assert list(statistics.max_logits) == ["blocks/0/attention"]
    assert statistics.max_logits["blocks/0/attention"].shape == (4,)
    if config.feed_forward != "moe":
        assert statistics.expert_load == {}
        return
    load = statistics.expert_load["blocks/0/feed_forward"]
    # 18 tokens go to two experts each.
    assert float(load.sum()) == 36
    assert float(load.max()) <= 18


def test_a_clip_bounds_the_logits_and_keeps_the_innocent_heads(model, tokens):
    config, params, apply = model
    loud = jax.tree_util.tree_map_with_path(
        lambda path, x: 8 * x if "query" in jax.tree_util.keystr(path) else x, params
    )
    _, before = apply(loud, tokens)
    largest = before.max_logits["blocks/0/attention"]
    # Two heads above, two below.
    threshold = float(jnp.median(largest))
    clipped = mo.apply_qk_clip(
        loud, before.max_logits, attention_specs(config), threshold=threshold
    )
    _, after = apply(clipped, tokens)
    # The activations that enter this only layer are the same; 1e-6 relative is the
    # rounding of a few products in float32, ten times that is allowed.
    np.testing.assert_allclose(
        after.max_logits["blocks/0/attention"],
        jnp.minimum(largest, threshold),
        rtol=1e-5,
    )


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(("attention", "feed_forward"), KINDS)
def test_every_kernel_but_embedding_and_head_goes_to_muon(
    attention, feed_forward, per_head
):
    config = dataclasses.replace(SMALL, attention=attention, feed_forward=feed_forward)
    _, shapes = abstract_model(config, VOCABULARY)
    labels = model_roles(config, per_head=per_head)(shapes)
    for path, label in jax.tree_util.tree_leaves_with_path(labels):
        name = jax.tree_util.keystr(path)
        is_other = any(part in name for part in ("embed", "head", "norm", "bias"))
        assert (label != "matrix") == is_other, name


@pytest.mark.parametrize(
    ("attention", "together", "apart"),
    [
        ("mha", ((16, 16), ()), ((16, 4), (4,))),
        ("mla", ((16, 16), ()), ((16, 4), (4,))),
    ],
)
def test_heads_are_one_matrix_or_several(attention, together, apart):
    config = dataclasses.replace(SMALL, attention=attention)
    _, shapes = abstract_model(config, VOCABULARY)
    leaf = shapes["blocks"][0]["attention"]["query"]["kernel"]
    for per_head, expected in ((False, together), (True, apart)):
        roles = model_roles(config, per_head=per_head)
        axes = roles.axes_of("blocks/0/attention/query/kernel", leaf.shape)
        assert axes is not None
        # The first block of a split, the content, is as wide as a head of the others.
        view = views_of(leaf, "kernel", axes)[0]
        assert ((view.fan_in, view.fan_out), view.batch_shape) == expected


def test_products_of_rotated_vectors_depend_on_the_distance_alone(rng):
    query, key = (jnp.asarray(rng.standard_normal((1, 1, 1, 6))) for _ in range(2))
    rotated = [rotate(jnp.repeat(x, 7, axis=1))[0, :, 0] for x in (query, key)]
    products = np.asarray(rotated[0] @ rotated[1].T)
    for distance in range(-6, 7):
        diagonal = np.diagonal(products, distance)
        # Products of six numbers of about 1, in float32.
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    assert np.std(products[0]) > 0.01


def test_rotation_is_that_of_complex_numbers(rng):
    vectors = rng.standard_normal((2, 5, 3, 8))
    turned = vectors[..., :4] + 1j * vectors[..., 4:]
    angles = np.arange(5)[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    turned = turned * np.exp(1j * angles)[None, :, None]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    # float32 against float64; angles up to 4, entries up to 4.
    np.testing.assert_allclose(rotate(jnp.asarray(vectors)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        (
            "cosine",
            [0.5, 1.0, 1.0, np.cos(np.pi / 8) ** 2, 0.5, np.sin(np.pi / 8) ** 2],
        ),
    ],
)
def test_learning_rate_rises_then_falls_to_zero(decay, expected):
    training = TrainingConfig(steps=6, evaluate_every=3, warmup_steps=2, decay=decay)
    rate = learning_rate_schedule(training, 3.0)
    rates = [np.asarray(rate(count)) for count in range(7)]
    # Rounding of float32.
    np.testing.assert_allclose(rates, [*(3 * np.array(expected)), 0.0], atol=1e-6)


def test_a_run_without_warmup_starts_at_the_peak():
    training = TrainingConfig(steps=6, evaluate_every=3, warmup_steps=0)
    assert np.asarray(learning_rate_schedule(training, 3.0)(0)) == 3.0
