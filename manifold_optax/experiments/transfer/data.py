"""Small images and characters, as examples of one kind."""

import numpy as np

from manifold_optax.experiments.lm.text import load_text
from manifold_optax.experiments.mlp import cifar10
from manifold_optax.experiments.transfer.train import Examples

_POOL = 4
"""Side of the squares whose mean is one pixel: 32 x 32 becomes 8 x 8."""


def small_images(directory: str, validation: int) -> tuple[Examples, Examples]:
    """Reads CIFAR-10 as images of 8 × 8 pixels, 192 numbers of mean square 1.

    Args:
        directory: Holds the binary files; those that are missing are downloaded.
        validation: Number of training images to hold out, the last ones.

    Returns:
        Examples to train on, and those held out.
    """
    records, _ = cifar10.load(directory)
    images = cifar10.normalize(records.pixels).reshape(-1, 3, 8, _POOL, 8, _POOL)
    pooled = images.mean(axis=(3, 5)).reshape(len(images), -1)
    pooled /= np.sqrt(np.mean(pooled**2))
    return _split(Examples(pooled, records.labels), validation)


def characters(
    path: str | None, context: int, validation: int
) -> tuple[Examples, Examples, int]:
    """Cuts a text into sequences that do not overlap.

    Args:
        path: A file in UTF-8; None: the sources of Python's standard library.
        context: Characters that each sequence predicts.
        validation: Number of sequences of the validation part, evenly spaced.

    Returns:
        Examples to train on, those of the validation part, and the number of
        characters of the vocabulary.
    """
    text = load_text(path, context=context)
    train = _sequences(text.parts.train, context)
    held_out = _sequences(text.parts.validation, context)
    chosen = np.linspace(0, len(held_out.labels) - 1, validation).astype(int)
    held_out = Examples(held_out.inputs[chosen], held_out.labels[chosen])
    return train, held_out, len(text.characters)


def _sequences(tokens: np.ndarray, context: int) -> Examples:
    count = (len(tokens) - 1) // context
    rows = np.arange(count)[:, None] * context + np.arange(context)
    return Examples(tokens[rows], tokens[rows + 1])


def _split(examples: Examples, last: int) -> tuple[Examples, Examples]:
    inputs, labels = examples
    return Examples(inputs[:-last], labels[:-last]), Examples(
        inputs[-last:], labels[-last:]
    )
