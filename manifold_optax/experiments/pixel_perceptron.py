"""The published perceptron with two optimizers more, and the same one on pixels."""

import dataclasses
from typing import Any, get_args, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32

import manifold_optax as mo
from manifold_optax.experiments.harness import require_at_least
from manifold_optax.experiments.mlp import train
from manifold_optax.experiments.mlp.config import DataName, MlpConfig
from manifold_optax.experiments.mlp.data import Dataset
from manifold_optax.experiments.mlp.model import MLP
from manifold_optax.experiments.mlp.optimizers import Recipe

OptimizerName: TypeAlias = Literal[
    "adamw", "muon", "muon_ball", "manifold_muon", "modular"
]
OPTIMIZER_NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName)


# The pixels of a channel have one mean and one size. Every channel of both data sets
# holds a black pixel and a white one.
_CHANNELS = {"cifar10": 3, "digits": 1}

HALF = 0.5
"""Pixels go from 0 to 1. The network on pixels reads them less one half: then the
farthest input is as near as it can be."""


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What is learned: the perceptron of the published experiment.

    Attributes:
        data: Data set.
        data_dir: Directory of the CIFAR-10 binary files; those that are missing are
            downloaded into it.
        epochs: Passes over the training set.
        batch_size: Examples per step.
        hidden: Widths of the hidden layers.
        weight_decay: Decoupled weight decay of AdamW.
        validation_examples: Training examples held out to choose learning rates.
    """

    data: DataName = "cifar10"
    data_dir: str | None = None
    epochs: int = 3
    batch_size: int = 1024
    hidden: tuple[int, ...] = (128, 64)
    weight_decay: float = 0.1
    validation_examples: int = 5000

    def __post_init__(self) -> None:
        require_at_least("task.validation_examples", self.validation_examples, 1)
        self.perceptron()

    def perceptron(self) -> MlpConfig:
        """Returns the same settings as the `mlp` experiment has them, checked."""
        return MlpConfig(**dataclasses.asdict(self))


DEFAULT_TASK = TaskConfig()


@dataclasses.dataclass(frozen=True)
class Problem(train.Problem):
    """The problem of the `mlp` experiment, with two optimizers more."""

    def recipe(self, optimizer: str) -> Recipe:
        """Returns the recipe of an optimizer."""
        match optimizer:
            case "muon_ball":
                return _muon_in_ball()
            case "modular":
                return _modular(self)
            case _:
                return super().recipe(optimizer)


def make_problem(task: TaskConfig, dataset: Dataset) -> Problem:
    """Returns the problem that a configuration poses on a data set."""
    plain = train.make_problem(task.perceptron(), dataset)
    fields = dataclasses.fields(plain)
    return Problem(**{field.name: getattr(plain, field.name) for field in fields})


class Shades(NamedTuple):
    """What the data set made of the pixels: normalized = middle + contrast · pixel.

    Attributes:
        middle: Normalized number of a pixel of one half.
        contrast: Difference of a white and a black pixel.
    """

    middle: Float[np.ndarray, " features"]
    contrast: Float[np.ndarray, " features"]


def shades(task: TaskConfig, dataset: Dataset) -> Shades:
    """Reads off the training set what the normalization was, channel by channel."""
    images = np.asarray(dataset.train.images)
    channels = _CHANNELS[task.data]
    by_channel = images.reshape(len(images), channels, -1)
    low, high = by_channel.min((0, 2)), by_channel.max((0, 2))
    repeat = lambda numbers: np.repeat(numbers, images.shape[1] // channels)
    return Shades(repeat((low + high) / 2), repeat(high - low))


def to_pixels(
    images: Float[np.ndarray, "n features"], shade: Shades
) -> Float32[Array, "n features"]:
    """Returns the pixels of normalized images, less one half: in [-1/2, 1/2]."""
    pixels = (images - shade.middle) / shade.contrast
    return jnp.asarray(np.clip(pixels, -HALF, HALF), jnp.float32)


def on_pixels(params: Any, shade: Shades) -> dict[str, Any]:
    """Returns the parameters of the same network as a function of pixels.

    The normalization becomes part of the first layer, so that distances are those of
    pixels. The map is linear in the first kernel.

    Args:
        params: Parameters of the perceptron.
        shade: The normalization.

    Returns:
        Parameters of `apply_to_pixels`.
    """
    first, *others = jax.tree.leaves(params)
    return {
        "bias": jnp.asarray(shade.middle, first.dtype) @ first,
        "kernels": [jnp.asarray(shade.contrast, first.dtype)[:, None] * first, *others],
    }


def apply_to_pixels(
    params: dict[str, Any], pixels: Float[Array, "n features"]
) -> Float[Array, "n classes"]:
    """Returns the logits of images, given as pixels less one half."""
    first, *others = params["kernels"]
    hidden = pixels @ first + params["bias"][None, :]
    for kernel in others:
        hidden = jax.nn.relu(hidden) @ kernel
    return hidden


def _muon_in_ball() -> Recipe:
    """Muon whose singular values are clipped to 1 after each step, and at the start."""
    ball = mo.Ball(mo.Spectral(), 1.0)
    return Recipe(
        lambda rate: optax.chain(
            mo.muon(rate, momentum=0.95, nesterov=True), mo.retract(ball)
        ),
        project=lambda params: mo.project(params, ball),
        residuals=lambda params, _: jax.tree.map(ball.residual, params),
    )


def _modular(problem: train.Problem) -> Recipe:
    """Hidden matrices on the Stiefel manifold of the RMS norm, and a free readout."""
    sizes = problem.layer_sizes
    abstract = nnx.eval_shape(lambda: MLP(sizes, rngs=nnx.Rngs(0)))
    module = mo.modular.read(
        problem.logits,
        nnx.to_pure_dict(nnx.state(abstract)),
        jax.ShapeDtypeStruct((1, sizes[0]), jnp.float32),
        geometry={
            "matrix": (mo.Stiefel("rms"), mo.RmsToRms()),
            "readout": (mo.Euclidean(), mo.RmsToRms()),
        },
    )
    return Recipe(
        lambda rate: mo.modular_optimizer(module, rate),
        project=lambda params: mo.modular.project_parameters(module, params),
    )
