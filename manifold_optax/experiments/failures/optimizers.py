"""The optimizers of the tasks, with one learning rate each."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32

import manifold_optax as mo
from manifold_optax.experiments.failures.networks import HEADS
from manifold_optax.experiments.failures.tasks import Task

OptimizerName: TypeAlias = Literal[
    "adamw",
    "optax_muon",
    "muon",
    "muon_rms",
    "normuon",
    "scion",
    "muon_clip",
    "hyperspherical",
    "hyperball",
    "spel",
    "manifold_muon",
]

_OTHERS_RATE = 0.01
"""Peak rate of AdamW for biases and readouts beside another optimizer of matrices.

That of the pages of Optax for AdamW is 0.001 to 0.01; the larger suits 300 steps.
"""

_THRESHOLD = 10.0
"""Largest logit that QK-clip leaves: twice that of the task's teacher.

Teacher: logits of standard deviation 1, whose largest of some thousand is 4 to 5.
"""

_PRESETS: dict[str, Callable[[optax.Schedule], optax.GradientTransformation]] = {
    "adamw": lambda rate: optax.adamw(rate, weight_decay=0.0),
    "optax_muon": lambda rate: optax.contrib.muon(rate, weight_decay=0.0),
    "muon": mo.muon,
    "muon_rms": lambda rate: mo.muon(rate, scale="rms"),
    "normuon": mo.normuon,
    "scion": mo.scion,
    "muon_clip": lambda rate: mo.muon_clip(
        rate,
        {
            "": mo.Attention(
                HEADS,
                query=mo.HeadPart("query", axis=-1),
                key=mo.HeadPart("key", axis=-1),
            )
        },
        threshold=_THRESHOLD,
        weight_decay=None,
        roles=mo.roles(default="matrix"),
    ),
    "hyperspherical": lambda rate: mo.hyperspherical_descent(
        rate, manifold=mo.Sphere("kept")
    ),
    "hyperball": lambda rate: mo.hyperball(rate, manifold=mo.Sphere("kept")),
    "spel": mo.spel,
    "manifold_muon": mo.manifold_muon,
}

_MANIFOLDS = {
    "hyperspherical": "sphere",
    "hyperball": "sphere",
    "spel": "stiefel",
    "manifold_muon": "stiefel",
}


def applies(optimizer: str, name: str, task: Task) -> bool:
    """Returns whether an optimizer can reach what a task asks for.

    An optimizer on a manifold takes the tasks whose matrices may live there, and
    MuonClip that with attention.
    """
    if optimizer == "muon_clip":
        return name == "attention logits"
    return optimizer not in _MANIFOLDS or _MANIFOLDS[optimizer] in task.manifolds


def build(
    optimizer: OptimizerName, task: Task, rate: Float32[Array, ""], steps: int
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer whose rate falls from its peak to zero as a cosine.

    Vectors have AdamW: at the same rate for "adamw", at a fixed peak beside others.

    Args:
        optimizer: Its name.
        task: What it is for.
        rate: Peak learning rate; it may be traced.
        steps: Number of steps.
    """

    def falling(peak: Any) -> optax.Schedule:
        return lambda count: peak * 0.5 * (1 + jnp.cos(jnp.pi * count / steps))

    matrices = _PRESETS[optimizer](falling(rate))
    if optimizer not in ("adamw", "muon_clip"):
        others = optax.adamw(falling(_OTHERS_RATE), weight_decay=0.0)
        matrices = optax.partition({"matrix": matrices, "other": others}, _labels)
    if task.guarded:
        matrices = optax.apply_if_finite(matrices, max_consecutive_errors=5)
    return optax.with_extra_args_support(matrices)


def _labels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim == 2 else "other", params)
