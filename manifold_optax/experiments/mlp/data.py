"""Data sets as arrays in memory: scikit-learn's digits and CIFAR-10."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import sklearn.datasets
import sklearn.model_selection
from jaxtyping import Float32, Int32

from manifold_optax.experiments.mlp import cifar10
from manifold_optax.experiments.mlp.config import MlpConfig

_SPLIT_SEED = 0
"""Seed of the splits: one and the same for every run, so that runs compare."""

_DIGITS_TEST_FRACTION = 0.2


class Examples(NamedTuple):
    """Flattened images and their labels."""

    images: Float32[np.ndarray | jax.Array, "examples features"]
    labels: Int32[np.ndarray | jax.Array, " examples"]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification data set, normalized and held in memory.

    Attributes:
        train: Examples to fit.
        test: Examples to report.
        classes: Number of classes; labels lie in `[0, classes)`.
        validation: Examples to choose settings by, taken from the training set.
    """

    train: Examples
    test: Examples
    classes: int
    validation: Examples | None = None


def load_dataset(config: MlpConfig) -> Dataset:
    """Loads the data set that a configuration names.

    Args:
        config: Names the data set, its directory and the size of the validation set.

    Returns:
        The data set, with a validation set if one is asked for.

    Raises:
        ValueError: if the directory of CIFAR-10 is not given, a file of it was
            altered, or the validation set leaves nothing to train on.
        FileNotFoundError: if files of CIFAR-10 are missing and cannot be downloaded.
    """
    match config.data:
        case "digits":
            dataset = _load_digits()
        case "cifar10":
            if config.data_dir is None:
                raise ValueError(
                    "data 'cifar10' needs data_dir, got none; give the directory that "
                    "holds data_batch_1.bin, or one to download the files into."
                )
            dataset = _load_cifar10(config.data_dir)
    if config.validation_examples:
        return hold_out(dataset, config.validation_examples)
    return dataset


def hold_out(dataset: Dataset, count: int) -> Dataset:
    """Moves training examples to the validation set.

    The choice is random but always the same.

    Args:
        dataset: A data set without a validation set.
        count: Number of examples to move, in [1, training examples).

    Returns:
        The data set with both parts.

    Raises:
        ValueError: if `count` leaves nothing to train on.
    """
    images, labels = dataset.train
    if not 0 < count < len(labels):
        raise ValueError(
            f"validation_examples must be at least 1 and leave some of the "
            f"{len(labels)} training examples, got {count}."
        )
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    return dataclasses.replace(
        dataset,
        train=Examples(images[kept], labels[kept]),
        validation=Examples(images[held], labels[held]),
    )


def _load_digits() -> Dataset:
    """1,797 images of 8 x 8, split 1,437 to 360 with equal class frequencies."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    parts = sklearn.model_selection.train_test_split(
        images,
        labels,
        test_size=_DIGITS_TEST_FRACTION,
        stratify=labels,
        random_state=_SPLIT_SEED,
    )
    train_images, test_images, train_labels, test_labels = map(np.asarray, parts)
    mean, deviation = train_images.mean(), train_images.std()

    def examples(images: np.ndarray, labels: np.ndarray) -> Examples:
        normalized = ((images - mean) / deviation).astype(np.float32)
        return Examples(normalized, labels.astype(np.int32))

    return Dataset(
        train=examples(train_images, train_labels),
        test=examples(test_images, test_labels),
        classes=10,
    )


def _load_cifar10(directory: str) -> Dataset:
    train, test = cifar10.load(directory)
    return Dataset(
        train=Examples(cifar10.normalize(train.pixels), train.labels),
        test=Examples(cifar10.normalize(test.pixels), test.labels),
        classes=cifar10.CLASSES,
    )
