import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from manifold_optax.experiments.data import hold_out
from manifold_optax.experiments.models import MLP
from manifold_optax.experiments.optimizers import recipe
from manifold_optax.experiments.train import advance, make_problem, Splits, start_run


def _states(config, dataset, optimizer, *, learning_rate):
    """Trains one run; returns its inputs and its state after each epoch."""
    problem, chosen = make_problem(config, dataset), recipe(optimizer, config)
    splits = Splits(dataset.train, dataset.validation, dataset.test)
    inputs, state = start_run(problem, chosen, learning_rate=learning_rate, seed=0)
    states = [state]
    program = jax.jit(advance(problem, chosen))
    for _ in range(config.epochs):
        states.append(program(inputs, splits, states[-1]))
    return inputs, states


def test_model_has_no_biases_and_starts_uniform():
    layers = MLP((400, 30, 5), rngs=nnx.Rngs(0)).layers
    kernel = layers[0].kernel[...]
    assert [layer.kernel.shape for layer in layers] == [(400, 30), (30, 5)]
    assert all(layer.bias is None for layer in layers)
    assert float(jnp.abs(kernel).max()) == pytest.approx(1 / 20, rel=1e-3)
    assert float(kernel.std()) == pytest.approx(1 / 20 / np.sqrt(3), rel=0.02)


def test_epochs_equal_a_plain_loop_over_uneven_batches(config, dataset):
    """Oracle: the same shuffles, real batches of 60, 60, 60, 60 and 16 examples."""
    inputs, states = _states(config, dataset, "adamw", learning_rate=0.01)
    images, labels = dataset.train
    transform = optax.adamw(
        lambda step: 0.01 * (1 - step / 20), weight_decay=config.weight_decay
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
        order = jax.random.permutation(jax.random.fold_in(inputs.key, epoch), 256)
        for batch in np.split(np.asarray(order), range(60, 256, 60)):
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


def test_each_epoch_is_recorded_and_evaluated(config, dataset):
    _, states = _states(config, hold_out(dataset, 50), "adamw", learning_rate=0.01)
    for epoch, state in enumerate(states):
        steps = epoch * 4  # 206 examples in batches of 60
        assert int(state.epoch) == epoch
        assert np.isfinite(state.history.loss).sum() == steps
        for accuracy in (
            state.history.train_accuracy,
            state.history.validation_accuracy,
            state.history.test_accuracy,
        ):
            assert np.isfinite(accuracy).sum() == epoch
    assert np.isnan(states[-1].history.residual).all()


def test_twenty_steps_lower_the_loss_on_the_stiefel_manifold(config, dataset):
    _, states = _states(config, dataset, "manifold_muon", learning_rate=0.1)
    loss = states[-1].history.loss
    assert loss.shape == (20,)
    assert float(loss[-5:].mean()) < 0.8 * float(loss[:5].mean())
    assert float(states[-1].history.residual.max()) < 1e-5


@pytest.mark.parametrize(
    "optimizer",
    ["hyperspherical", pytest.param("hyperspherical_kept", marks=pytest.mark.slow)],
)
def test_spheres_keep_their_norms(config, dataset, optimizer):
    config = dataclasses.replace(config, epochs=1)
    _, states = _states(config, dataset, optimizer, learning_rate=0.1)
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
    assert float(states[-1].history.loss[-1]) < float(states[-1].history.loss[0])
