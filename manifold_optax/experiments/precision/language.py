"""The language model with two optimizers more, and as a function of its tokens."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32

import manifold_optax as mo
from manifold_optax.experiments.lm import train
from manifold_optax.experiments.lm.model import apply_model
from manifold_optax.experiments.lm.optimizers import model_roles
from manifold_optax.experiments.lm.text import Text
from manifold_optax.experiments.precision.config import LanguageConfig

# Peak rate of AdamW for what is not a hidden matrix, beside manifold Muon: the best one
# of AdamW in configs/lm_shakespeare.toml.
_OTHERS_RATE = 0.008

_BALL = mo.Ball(mo.Spectral(), 1.0)

_SECOND_DECAY = 0.95
"""Decay of the squares in AdamW, as the `lm` experiment has it."""


@dataclasses.dataclass(frozen=True)
class Problem(train.Problem):
    """The problem of the `lm` experiment, with two optimizers more."""

    @property
    def roles(self) -> mo.Roles:
        """What each parameter is."""
        return model_roles(self.model, per_head=False)

    def constraint(self, name: str) -> mo.geometry.Manifold | None:
        """Returns the constraint of the hidden matrices; None if there is none."""
        match name:
            case "muon_ball":
                return _BALL
            case "manifold_muon":
                return mo.Stiefel()
            case _:
                return None

    def optimizer(
        self, name: str, peak: Float32[Array, ""]
    ) -> optax.GradientTransformationExtraArgs:
        """Returns an optimizer with the schedule of the training."""
        schedule = functools.partial(train.learning_rate_schedule, self.training)
        match name:
            case "muon_ball":
                hidden = optax.chain(
                    mo.muon(schedule(peak), scale="rms", axes=self.roles),
                    mo.retract(_BALL, axes=self.roles),
                )
                others = schedule(peak)
            case "manifold_muon":
                hidden = mo.manifold_muon(schedule(peak), axes=self.roles)
                others = schedule(_OTHERS_RATE)
            case _:
                return super().optimizer(name, peak)
        decay = self.training.weight_decay
        adamw = optax.adamw(others, b2=_SECOND_DECAY, weight_decay=decay)
        return mo.hybrid(hidden, others=adamw, labels=self.roles)

    def initial_params(self, name: str, seed: int) -> Any:
        """Draws the parameters, with the hidden matrices on their set."""
        params, constraint = super().initial_params(name, seed), self.constraint(name)
        if constraint is None:
            return params
        return mo.project(params, constraint, axes=self.roles.only("matrix"))

    def logits(self, params: Any, tokens: Any) -> Array:
        """Applies the model."""
        return apply_model(self.graph, params, tokens)[0]


def make_problem(config: LanguageConfig, text: Text) -> Problem:
    """Returns the problem that a configuration poses on a text."""
    plain = train.make_problem(config.plain(), text)
    fields = dataclasses.fields(plain)
    return Problem(**{field.name: getattr(plain, field.name) for field in fields})


@functools.partial(jax.jit, static_argnums=0)
def losses(problem: Problem, params: Any, parts: Any) -> Float32[Array, " 2"]:
    """Returns the losses on the validation and the test part."""
    return train.evaluate(problem, params, parts)


def sequences(problem: Problem, tokens: Any, count: int) -> Array:
    """Returns evenly spaced sequences of a text, without the character after each."""
    size = problem.training.context
    starts = jnp.linspace(0, len(tokens) - size, count).astype(jnp.int32)
    return jnp.asarray(tokens)[starts[:, None] + jnp.arange(size)[None, :]]
