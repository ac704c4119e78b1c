import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from manifold_optax.experiments.mlp.config import OPTIMIZER_NAMES
from manifold_optax.experiments.mlp.experiment import MlpExperiment
from manifold_optax.experiments.mlp.model import MLP


def _states(config, dataset, optimizer, *, learning_rate):
    """Trains one run; returns its inputs and its state after each epoch."""
    experiment = MlpExperiment(config, dataset)
    settings = experiment.settings(optimizer, learning_rate, 0)
    inputs, state = experiment.start(settings)
    states = [state]
    for _ in range(config.epochs):
        states.append(experiment.advance(settings, inputs, states[-1]))
    return inputs, states


@pytest.fixture(scope="module")
def adamw(config, dataset):
    return _states(config, dataset, "adamw", learning_rate=0.01)


def test_model_has_no_biases_and_starts_uniform():
    layers = MLP((400, 30, 5), rngs=nnx.Rngs(0)).layers
    kernel = layers[0].kernel[...]
    assert [layer.kernel.shape for layer in layers] == [(400, 30), (30, 5)]
    assert all(layer.bias is None for layer in layers)
    assert float(jnp.abs(kernel).max()) == pytest.approx(1 / 20, rel=1e-3)
    assert float(kernel.std()) == pytest.approx(1 / 20 / np.sqrt(3), rel=0.02)


@pytest.mark.slow
def test_epochs_equal_a_plain_loop_over_uneven_batches(adamw, config, dataset):
    """Oracle: the same shuffles, real batches of 60, 60, 60 and 20 examples."""
    inputs, states = adamw
    images, labels = dataset.train
    transform = optax.adamw(
        lambda step: 0.01 * (1 - step / 16), weight_decay=config.weight_decay
    )

    @jax.jit
    def step(params, opt_state, images, labels):
        def loss(params):
            hidden = images
            for kernel in params[:-1]:
                hidden = jnp.maximum(hidden @ kernel, 0)
            scores = jax.nn.log_softmax(hidden @ params[-1])
            return -jnp.mean(scores[jnp.arange(len(labels)), labels])

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = transform.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params = jax.tree.leaves(states[0].trainable.params)
    opt_state, losses = transform.init(params), []
    for epoch in range(config.epochs):
        key = jax.random.fold_in(inputs.shared.key, epoch)
        order = jax.random.permutation(key, 200)
        for batch in np.split(np.asarray(order), range(60, 200, 60)):
            params, opt_state, loss = step(
                params, opt_state, images[batch], labels[batch]
            )
            losses.append(float(loss))
    np.testing.assert_allclose(states[-1].history.loss, losses, rtol=1e-4)
    # Adam divides by small second moments, which magnifies rounding: 3e-6 seen.
    for kernel, expected in zip(
        jax.tree.leaves(states[-1].trainable.params), params, strict=True
    ):
        np.testing.assert_allclose(kernel, expected, atol=1e-4)


def test_each_epoch_is_recorded_and_evaluated(adamw):
    _, states = adamw
    for epoch, state in enumerate(states):
        assert int(state.round) == epoch
        assert np.isfinite(state.history.loss).sum() == 4 * epoch
        for accuracy in (
            state.history.train_accuracy,
            state.history.validation_accuracy,
            state.history.test_accuracy,
        ):
            assert np.isfinite(accuracy).sum() == epoch
    assert np.isnan(states[-1].history.residual).all()


@pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
def test_every_optimizer_has_a_program(config, whole_dataset, optimizer):
    """Traced, not compiled: a state goes in, a state of the same shapes comes out."""
    config = dataclasses.replace(config, validation_examples=0)
    experiment = MlpExperiment(config, whole_dataset)
    settings = experiment.settings(optimizer, 0.1, 0)
    start = jax.eval_shape(lambda: experiment.start(settings))
    end = jax.eval_shape(lambda start: experiment.advance(settings, *start), start)
    assert end == start[1]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["hyperspherical", "hyperspherical_kept"])
def test_spheres_keep_their_norms(config, dataset, optimizer):
    config = dataclasses.replace(config, epochs=1)
    _, states = _states(config, dataset, optimizer, learning_rate=0.1)
    # Rounding of float32.
    assert float(states[-1].history.residual.max()) < 1e-5
    for start, end in zip(
        jax.tree.leaves(states[0].trainable.params),
        jax.tree.leaves(states[-1].trainable.params),
        strict=True,
    ):
        expected = 1.0 if optimizer == "hyperspherical" else jnp.linalg.norm(start)
        assert float(jnp.linalg.norm(end)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_muon_moves_every_matrix(config, dataset):
    config = dataclasses.replace(config, epochs=1)
    _, states = _states(config, dataset, "muon", learning_rate=0.05)
    for start, end in zip(
        jax.tree.leaves(states[0].trainable.params),
        jax.tree.leaves(states[-1].trainable.params),
        strict=True,
    ):
        assert float(jnp.linalg.norm(end - start, 2)) > 0.05
    losses = np.asarray(states[-1].history.loss)
    assert losses[-1] < losses[0]
