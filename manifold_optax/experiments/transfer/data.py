"""Small images, or characters, as examples to learn from once."""

import dataclasses

import numpy as np
from jaxtyping import Int32

from manifold_optax.experiments.lm.text import load_text
from manifold_optax.experiments.mlp import cifar10
from manifold_optax.experiments.transfer.config import Config
from manifold_optax.experiments.transfer.networks import FamilyName
from manifold_optax.experiments.transfer.records import Settings
from manifold_optax.experiments.transfer.train import Examples

_POOL = 4
"""Side of the squares of pixels whose mean is one: 32 x 32 become 8 x 8."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Examples of one kind.

    Attributes:
        train: Examples to train on.
        validation: Examples that are held out.
        inputs: Entries of an example, or number of characters.
        outputs: Number of classes, or of characters.
        digest: Identifies a text; empty for images.
    """

    train: Examples
    validation: Examples
    inputs: int
    outputs: int
    digest: str

    def order(self, settings: Settings) -> Int32[np.ndarray, "steps batch"]:
        """Returns the examples of each step of a run; none comes twice."""
        shape = settings.steps, settings.batch_size
        random = np.random.default_rng(settings.seed)
        order = random.permutation(len(self.train.labels))[: shape[0] * shape[1]]
        return order.reshape(shape).astype(np.int32)


def read_data(family: FamilyName, config: Config) -> Data:
    """Reads the examples of a kind of network.

    The images are the training images of CIFAR-10, averaged to 8 × 8 pixels and scaled
    to mean square 1; the last ones are held out. Sequences of characters do not
    overlap; those held out are evenly spaced in the validation part of the text.

    Args:
        family: The kind of network.
        config: The settings.

    Returns:
        The data.

    Raises:
        ValueError: if it is not given, or too short for the steps.
        OSError: if it cannot be read.
    """
    data = _characters(config) if family == "transformer" else _images(config)
    needed, have = config.steps * config.batch_size, len(data.train.labels)
    if needed > have:
        raise ValueError(
            f"{config.steps} steps of {config.batch_size} examples need {needed}, and "
            f"there are {have}; take fewer steps or smaller batches."
        )
    return data


def _images(config: Config) -> Data:
    if config.data_dir is None:
        raise ValueError(
            "Perceptrons need data_dir, got none; give the directory that holds "
            "data_batch_1.bin, or one to download the files into."
        )
    records, _ = cifar10.load(config.data_dir)
    images = cifar10.normalize(records.pixels).reshape(-1, 3, 8, _POOL, 8, _POOL)
    pooled = images.mean(axis=(3, 5)).reshape(len(images), -1)
    pooled /= np.sqrt(np.mean(pooled**2))
    start = max(0, len(pooled) - config.validation_examples)
    train = Examples(pooled[:start], records.labels[:start])
    held_out = Examples(pooled[start:], records.labels[start:])
    return Data(train, held_out, pooled.shape[1], cifar10.CLASSES, "")


def _characters(config: Config) -> Data:
    text = load_text(config.text, context=config.context)
    train = _sequences(np.asarray(text.parts.train), config.context)
    held_out = _sequences(np.asarray(text.parts.validation), config.context)
    count = min(config.validation_examples, len(held_out.labels))
    chosen = np.linspace(0, len(held_out.labels) - 1, count).astype(int)
    held_out = Examples(held_out.inputs[chosen], held_out.labels[chosen])
    size = len(text.characters)
    return Data(train, held_out, size, size, text.digest)


def _sequences(tokens: np.ndarray, context: int) -> Examples:
    count = (len(tokens) - 1) // context
    places = np.arange(count)[:, None] * context + np.arange(context)
    return Examples(tokens[places], tokens[places + 1])
