import dataclasses

import numpy as np
import pytest

from manifold_optax.experiments.mlp.config import MlpConfig
from manifold_optax.experiments.mlp.data import hold_out, load_dataset


def test_digits_are_normalized_and_split_evenly():
    dataset = load_dataset(MlpConfig())
    assert dataset.train.images.shape == (1437, 64)
    assert dataset.test.images.shape == (360, 64)
    assert dataset.train.images.dtype == np.float32
    assert abs(float(dataset.train.images.mean())) < 1e-5
    assert float(dataset.train.images.std()) == pytest.approx(1, abs=1e-5)
    assert np.bincount(dataset.test.labels).min() >= 34


def test_digits_are_always_split_alike():
    first, second = load_dataset(MlpConfig()), load_dataset(MlpConfig())
    np.testing.assert_array_equal(first.train.images, second.train.images)
    np.testing.assert_array_equal(first.test.labels, second.test.labels)


def test_held_out_examples_leave_the_training_set(whole_dataset):
    divided = hold_out(whole_dataset, 50)
    assert divided.validation is not None
    assert len(divided.train.labels) == 200
    assert len(divided.validation.labels) == 50
    parts = np.concatenate([divided.train.images, divided.validation.images])
    np.testing.assert_array_equal(
        np.unique(parts, axis=0), np.unique(whole_dataset.train.images, axis=0)
    )


def test_configured_validation_set_is_held_out():
    dataset = load_dataset(dataclasses.replace(MlpConfig(), validation_examples=137))
    assert dataset.validation is not None
    assert len(dataset.train.labels) == 1300
    assert len(dataset.validation.labels) == 137


def test_validation_set_must_leave_training_examples(whole_dataset):
    with pytest.raises(ValueError, match="leave some of the 250 training examples"):
        hold_out(whole_dataset, 250)


def test_cifar10_needs_a_directory():
    with pytest.raises(ValueError, match="needs data_dir, got none"):
        load_dataset(MlpConfig(data="cifar10"))
