"""The two trainings of `soak.py`: the digits perceptron and a small language model.

Everything is a function of the number of the step, batches and faults included, so that
a run that was killed anywhere goes on as if nothing had happened.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import manifold_optax as mo
from manifold_optax.experiments.lm.config import ModelConfig
from manifold_optax.experiments.lm.model import (
    abstract_model,
    initial_params as language_params,
    next_character_loss,
)
from manifold_optax.experiments.lm.optimizers import model_roles
from manifold_optax.experiments.lm.text import encode_text, standard_library
from manifold_optax.experiments.mlp.config import MlpConfig
from manifold_optax.experiments.mlp.data import load_dataset
from manifold_optax.experiments.mlp.model import MLP
from manifold_optax.sharding import Placement

NAN_SHARE = 0.01
"""Share of the steps whose gradient has a NaN: some in every hundred steps."""

# In a row; above it `apply_if_finite` lets NaNs through. With a share of 1 % a tenth of
# it has a probability of 1e-20 per step.
MOST_SKIPPED = 100

BATCH = 16
"""Examples a step: divisible by eight devices."""

# Steps over which the rate has fallen to 1/√2 of its first value: a rate that does not
# depend on the length of the run, because a run may be stopped by the clock.
_SLOWER_AFTER = 500

_DIGITS_SIZES = (64, 32, 32, 10)
_CONTEXT = 16
_CHARACTERS = 50_000
_LANGUAGE = ModelConfig(layers=1, width=16, heads=2, head_size=8, hidden=32)
# Frobenius norm of each matrix: that of 16 × 16 entries of 1/4, the usual first ones.
_RADIUS = 4.0


@dataclasses.dataclass(frozen=True)
class Task:
    """A training.

    Attributes:
        first_params: The parameters before the first step.
        optimizer: Placement → the optimizer.
        loss: (parameters, batch) → its mean loss.
        batch: Key → a batch.
        last: The batch on which the trained parameters are judged.
        residual: Parameters → largest relative distance of a matrix from its manifold.
        bound: What `residual` must not exceed.
    """

    first_params: Any
    optimizer: Callable[[Placement | None], optax.GradientTransformation]
    loss: Callable[[Any, Any], jax.Array]
    batch: Callable[[jax.Array], Any]
    last: Any
    residual: Callable[[Any], jax.Array]
    bound: float


def learning_rate(peak: float) -> optax.Schedule:
    """Returns `peak / √(1 + step / 500)`."""
    return lambda step: peak / jnp.sqrt(1 + step / _SLOWER_AFTER)


def digits() -> Task:
    """Returns the perceptron on scikit-learn's digits, on the Stiefel manifold."""
    data = load_dataset(MlpConfig(data="digits"))
    model = MLP(_DIGITS_SIZES, rngs=nnx.Rngs(0))
    graph, manifold = nnx.graphdef(model), mo.Stiefel()
    images, labels = map(jnp.asarray, data.train)

    def optimizer(
        placement: mo.sharding.Placement | None,
    ) -> optax.GradientTransformation:
        # Momentum is what one NaN would poison for ever.
        rate = learning_rate(0.05)
        return mo.manifold_muon(rate, momentum=0.9, placement=placement)

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = nnx.merge(graph, params)(batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def batch(key: jax.Array) -> Any:
        chosen = jax.random.randint(key, (BATCH,), 0, len(labels))
        return images[chosen], labels[chosen]

    return Task(
        first_params=mo.project(nnx.to_pure_dict(nnx.state(model)), manifold),
        optimizer=optimizer,
        loss=loss,
        batch=batch,
        last=(images, labels),
        residual=lambda params: _largest(mo.diagnostics.residual(params, manifold)),
        # The polar retraction lands within some float32 units (6e-8) of the manifold.
        bound=1e-5,
    )


def language() -> Task:
    """Returns the language model of one block; its matrices keep their norms."""
    text = encode_text(standard_library(_CHARACTERS), context=_CONTEXT)
    graph, _ = abstract_model(_LANGUAGE, len(text.characters))
    manifold, roles = mo.Sphere(_RADIUS), model_roles(_LANGUAGE, per_head=False)
    tokens, held_out = jnp.asarray(text.parts.train), jnp.asarray(text.parts.test)

    def optimizer(
        placement: mo.sharding.Placement | None,
    ) -> optax.GradientTransformation:
        rate = learning_rate(0.02)
        matrices = mo.hyperball(
            rate, manifold=manifold, axes=roles, placement=placement
        )
        return mo.hybrid(matrices, others=optax.adamw(rate), labels=roles)

    def cut(tokens: jax.Array, starts: jax.Array) -> jax.Array:
        return tokens[starts[:, None] + jnp.arange(_CONTEXT + 1)[None]]

    def batch(key: jax.Array) -> Any:
        last = len(tokens) - _CONTEXT - 1
        return cut(tokens, jax.random.randint(key, (BATCH,), 0, last))

    first = language_params(_LANGUAGE, len(text.characters), seed=0)
    starts = np.linspace(0, len(held_out) - _CONTEXT - 1, 128).astype(np.int32)
    return Task(
        first_params=mo.project(first, manifold, axes=roles),
        optimizer=optimizer,
        loss=lambda params, batch: next_character_loss(graph, params, batch)[0],
        batch=batch,
        last=cut(held_out, jnp.asarray(starts)),
        residual=lambda params: _largest(
            mo.diagnostics.residual(params, manifold, axes=roles)
        ),
        # Dividing by the norm lands within some float32 units (6e-8) of the sphere.
        bound=1e-5,
    )


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "language": language}


def is_poisoned(seed: int, step: Any) -> jax.Array:
    """Returns whether the gradient of a step gets a NaN."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.bernoulli(key, NAN_SHARE)


def count_poisoned(seed: int, steps: int) -> int:
    """Returns how many of the first steps get a NaN."""
    counted = jax.jit(jax.vmap(functools.partial(is_poisoned, seed)))
    return int(counted(jnp.arange(steps)).sum())


def poison(seed: int, step: jax.Array, gradient: Any) -> Any:
    """Puts a NaN into one entry of one leaf, both by chance, if it is the step's turn.

    Args:
        seed: Of the faults.
        step: Number of the step.
        gradient: Tree of arrays.

    Returns:
        The gradient, poisoned or as it was.
    """
    leaves, structure = jax.tree.flatten(gradient)
    key = jax.random.fold_in(jax.random.key(seed), step)
    which, where = jax.random.split(jax.random.fold_in(key, 1))
    turn = jax.random.randint(which, (), 0, len(leaves))

    def entered(number: int, leaf: jax.Array) -> jax.Array:
        hit = is_poisoned(seed, step) & (turn == number)
        entry = jax.random.randint(where, (), 0, leaf.size)
        # Elementwise, so that it does not move what lies on several devices.
        at = jnp.arange(leaf.size).reshape(leaf.shape) == entry
        return jnp.where(hit & at, jnp.nan, leaf)

    return structure.unflatten([entered(n, leaf) for n, leaf in enumerate(leaves)])


def _largest(residuals: Any) -> jax.Array:
    return jnp.max(jnp.stack([jnp.max(leaf) for leaf in jax.tree.leaves(residuals)]))
