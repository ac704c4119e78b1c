import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from manifold_optax.experiments.harness import run_experiment
from manifold_optax.experiments.harness.cells import group_by_cell
from manifold_optax.experiments.harness.records import read_records
from manifold_optax.experiments.harness.report import format_table
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


@pytest.fixture
def experiment(config):
    return ModulewiseExperiment(config, encode_text(SOURCE, context=8))


@pytest.mark.parametrize(
    "optimizer",
    [
        "hyperball",
        pytest.param("stiefel_dgram", marks=pytest.mark.slow),
        pytest.param("spectral_sphere", marks=pytest.mark.slow),
    ],
)
def test_every_optimizer_has_a_program(experiment, optimizer):
    """Traced, not compiled: a state goes in, a state of the same shapes comes out."""
    settings = experiment.settings(optimizer, 0.02, 0)
    start = jax.eval_shape(lambda: experiment.start(settings))
    end = jax.eval_shape(lambda start: experiment.advance(settings, *start), start)
    assert end == start[1]


def test_the_table_shows_ranges_over_seeds_and_evaluations(experiment):
    def result(seed, attention, logits=(1.0, 3.0)):
        return RunResult(
            settings=experiment.settings("hyperball", 0.05, seed),
            loss=(2.0, 1.0),
            validation_loss=(3.0, 1.0),
            test_loss=(2.0, 1.5),
            largest_logit=logits,
            singular_values=(((1.0, 1.0), (0.5, 1.5)), (attention, (0.4, 2.0))),
            seconds=1.0,
        )

    def row(*results):
        lines = format_table(experiment, group_by_cell(results), {}).splitlines()
        header, _, first = (
            [x.strip() for x in line.split("|")[1:-1]] for line in lines[:3]
        )
        return dict(zip(header, first, strict=True))

    whole = row(result(0, (0.1, 2.0)), result(1, (0.2, 4.0), logits=(5.0, 1.0)))
    assert whole["σ attention"] == "0.1 to 4"
    assert whole["σ feed-forward"] == "0.4 to 2"
    assert whole["largest logit"] == "5"
    diverged = row(result(0, (None, None), logits=(1.0, None)))
    assert diverged["σ attention"] == "not finite"
    assert diverged["largest logit"] == "not finite"


@pytest.mark.slow
def test_a_run_reports_losses_singular_values_and_logits(experiment):
    report = run_experiment(experiment)
    directory = pathlib.Path(experiment.config.output_dir)
    [result] = read_records(directory / "results.jsonl", RunResult)
    ranges = np.array(list(result.singular_values), float)
    assert ranges.shape == (2, 2, 2)
    assert len(result.loss) == len(result.largest_logit) == 4
    assert len(result.validation_loss) == len(result.test_loss) == 2
    low, high = ranges[:, 0].T
    assert f"{low.min():.3g} to {high.max():.3g}" in report
    assert "σ attention" in report
    assert "σ feed-forward" in report


@pytest.mark.parametrize(
    "change",
    [{"attention": "mla"}, {"feed_forward": "moe"}, {"hidden": 4}, {"heads": 4}],
)
def test_a_model_without_rules_is_refused(config, change):
    model = dataclasses.replace(MODEL, **change)
    [(name, value)] = change.items()
    with pytest.raises(ValueError, match=f"orthogonal columns.*{name}={value!r}"):
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
        "feed-forward",
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
        "feed-forward": np.allclose(feed_forward, [DOWN, UP], atol=ROUNDING),
    }
    assert kept == {
        "attention": optimizer != "dgram_stiefel",
        "feed-forward": optimizer != "stiefel_dgram",
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
