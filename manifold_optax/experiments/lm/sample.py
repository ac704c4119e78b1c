"""Text sampled from a model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Key

from manifold_optax.experiments.lm.model import apply_model
from manifold_optax.experiments.lm.train import Problem


@functools.partial(jax.jit, static_argnums=(0, 1))
def sample_tokens(
    problem: Problem,
    length: int,
    params: Any,
    key: Key[Array, ""],
    first: jax.typing.ArrayLike,
    temperature: jax.typing.ArrayLike,
) -> Int32[Array, " length"]:
    """Samples characters one after the other.

    The model sees the last `context` characters and computes them again for each new
    one. That is simple, and a character costs what a sequence of training costs.

    Args:
        problem: The problem that the model was trained on.
        length: How many characters to sample.
        params: Parameters of the model.
        key: Decides what is drawn.
        first: Number of the character before the text.
        temperature: Divides the logits, > 0.

    Returns:
        The numbers of the characters.
    """
    context = problem.training.context

    def step(
        carried: tuple[Int32[Array, " context"], Int32[Array, ""]], key: Key[Array, ""]
    ) -> tuple[tuple[Int32[Array, " context"], Int32[Array, ""]], Int32[Array, ""]]:
        window, filled = carried
        logits, _ = apply_model(problem.graph, params, window[None])
        # Attention is causal: what stands after the filled part is not seen.
        scores = logits[0, filled - 1] / temperature
        drawn = jax.random.categorical(key, scores).astype(jnp.int32)
        window = jnp.where(filled == context, jnp.roll(window, -1), window)
        filled = jnp.minimum(filled + 1, context)
        return (window.at[filled - 1].set(drawn), filled), drawn

    window = jnp.full(context, first, jnp.int32)
    start = (window, jnp.ones((), jnp.int32))
    return jax.lax.scan(step, start, jax.random.split(key, length))[1]
