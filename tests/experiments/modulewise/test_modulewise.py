import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from manifold_optax.experiments.harness import run_experiment
from manifold_optax.experiments.harness.records import read_records
from manifold_optax.experiments.lm.config import ModelConfig, TrainingConfig
from manifold_optax.experiments.lm.model import initial_params
from manifold_optax.experiments.lm.text import encode_text
from manifold_optax.experiments.modulewise.config import (
    LearningRates,
    ModulewiseConfig,
)
from manifold_optax.experiments.modulewise.experiment import (
    ModulewiseExperiment,
    RunResult,
)
from manifold_optax.experiments.modulewise.optimizers import (
    build_optimizer,
    model_roles,
    singular_ranges,
    start_orthogonal,
)

SOURCE = 40 * "the cat sat on the mat, and the rat ate the cake.\n"
MODEL = ModelConfig(
    feed_forward="gelu", layers=1, width=8, heads=2, head_size=4, hidden=16
)
TRAINING = TrainingConfig(
    steps=4,
    batch_size=2,
    context=8,
    warmup_steps=0,
    evaluate_every=2,
    evaluation_batches=1,
)
# √(16 / 8), the size of a point of the Stiefel manifold of scale "rms", and 1 over it.
UP, DOWN = 2**0.5, 2**-0.5
# Singular values in float32 after 4 retractions, each accurate to about 1e-6.
ROUNDING = 2e-5


@pytest.fixture
def config(tmp_path):
    return ModulewiseConfig(
        optimizers=("hyperball",),
        learning_rates=LearningRates(hyperball=(0.05,)),
        seeds=(1,),
        model=MODEL,
        training=TRAINING,
        output_dir=str(tmp_path),
    )


def test_a_run_reports_losses_singular_values_and_logits(config):
    experiment = ModulewiseExperiment(config, encode_text(SOURCE, context=8))
    report = run_experiment(experiment)
    [result] = read_records(pathlib.Path(config.output_dir, "results.jsonl"), RunResult)
    assert np.shape(result.singular_values) == (2, 2, 2)
    assert len(result.loss) == len(result.largest_logit) == 4
    assert len(result.validation_loss) == len(result.test_loss) == 2
    low, high = np.array(result.singular_values, float)[:, 0].T
    assert f"{low.min():.3g} to {high.max():.3g}" in report
    assert "σ attention" in report
    assert "σ feed-forward" in report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "mla"}, "attention 'mha'"),
        ({"feed_forward": "moe"}, "feed_forward 'gelu'"),
        ({"hidden": 4}, "model.hidden ≥ model.width"),
        ({"heads": 4}, "got 4 · 4, 8 and 16"),
    ],
)
def test_a_model_without_rules_is_refused(config, change, message):
    model = dataclasses.replace(MODEL, **change)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, model=model)


@pytest.fixture(scope="module")
def start():
    return start_orthogonal(initial_params(MODEL, 20, seed=0))


def _matrices(params):
    """Attention matrices `[8, 8]`, then `up` and `down`, each `[fan_in, fan_out]`."""
    block = params["blocks"][0] if 0 in params["blocks"] else params["blocks"]["0"]
    attention = [leaf.reshape(8, 8) for leaf in jax.tree.leaves(block["attention"])]
    layer = block["feed_forward"]
    return attention, layer["up"]["kernel"], layer["down"]["kernel"]


@pytest.fixture(scope="module")
def trained(start):
    """(optimizer, rate) → parameters after 4 steps along random gradients."""

    def train(optimizer, rate=0.1):
        tx = build_optimizer(optimizer, rate, 0.01, 0.1)

        @jax.jit
        def step(params, state, key):
            keys = jax.random.split(key, len(jax.tree.leaves(params)))
            keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
            gradient = jax.tree.map(
                lambda key, leaf: jax.random.normal(key, leaf.shape), keys, params
            )
            updates, state = tx.update(gradient, state, params)
            return jax.tree.map(jnp.add, params, updates), state

        params, state = start, tx.init(start)
        for number in range(4):
            params, state = step(params, state, jax.random.key(number))
        return params

    return train


@pytest.mark.slow
def test_the_start_is_orthogonal_with_unit_rms_norms(start):
    attention, feed_forward = np.asarray(singular_ranges(start))
    np.testing.assert_allclose(attention, 1, atol=ROUNDING)
    np.testing.assert_allclose(feed_forward, [DOWN, UP], atol=ROUNDING)
    assert set(jax.tree.leaves(model_roles()(start))) == {
        "attention",
        "feed_forward",
        "embedding",
        "readout",
        "vector",
    }


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["stiefel", "stiefel_dgram", "dgram_stiefel"])
def test_a_stiefel_group_keeps_all_singular_values(trained, optimizer):
    attention, feed_forward = np.asarray(singular_ranges(trained(optimizer)))
    kept = {
        "attention": np.allclose(attention, 1, atol=ROUNDING),
        "feed_forward": np.allclose(feed_forward, [DOWN, UP], atol=ROUNDING),
    }
    assert kept == {
        "attention": optimizer != "dgram_stiefel",
        "feed_forward": optimizer != "stiefel_dgram",
    }


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["dgram", "stiefel_dgram", "dgram_stiefel"])
def test_a_dgram_group_has_orthogonal_columns(trained, optimizer):
    attention, up, down = _matrices(trained(optimizer))
    # The kernels are [fan_in, fan_out]: the columns of the map are the rows of `up`.
    tall = [up.T, down] if optimizer != "dgram_stiefel" else []
    tall += [w.T for w in attention] if optimizer != "stiefel_dgram" else []
    # Alternating projections from a step of 0.1 leave cosines of about 1e-6.
    assert all(mo.DiagonalGram().residual(w) < 1e-4 for w in tall)


@pytest.mark.slow
def test_a_spectral_sphere_keeps_the_largest_singular_value(trained):
    attention, up, down = _matrices(trained("spectral_sphere"))
    largest = [jnp.linalg.norm(w, 2) for w in [*attention, up, down]]
    np.testing.assert_allclose(largest, [1] * 4 + [UP, DOWN], atol=ROUNDING)
    assert singular_ranges(trained("spectral_sphere"))[0, 0] < 0.99


@pytest.mark.slow
def test_a_hyperball_keeps_the_frobenius_norm(trained):
    attention, up, down = _matrices(trained("hyperball"))
    norms = [jnp.linalg.norm(w) for w in [*attention, up, down]]
    # Eight singular values of 1, √2 and 1/√2.
    expected = 8**0.5 * np.array([1] * 4 + [UP, DOWN])
    np.testing.assert_allclose(norms, expected, atol=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "stiefel", "dgram", "hyperball"])
def test_the_first_step_has_the_same_size_for_every_rule(start, optimizer):
    tx = build_optimizer(optimizer, 0.01, 0.01, 0.0)
    gradient = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), start
    )
    updates, _ = jax.jit(tx.update)(gradient, tx.init(start), start)
    attention, up, down = _matrices(updates)
    sizes = [jnp.linalg.norm(w, 2) for w in [*attention, up, down]]
    expected = 0.01 * np.array([1] * 4 + [UP, DOWN])
    # Muon's polynomial has singular values of 0.7 to 1.2, also within hyperball, where
    # the Frobenius norm is then set to 1: the largest of eight becomes up to 1.4.
    np.testing.assert_allclose(sizes, expected, rtol=0.4)
