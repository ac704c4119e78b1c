import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np
import pytest

from manifold_optax.experiments.harness import run_experiment
from manifold_optax.experiments.harness.records import read_records
from manifold_optax.experiments.mlp.config import LearningRates, MlpConfig
from manifold_optax.experiments.mlp.data import Dataset, Examples, hold_out
from manifold_optax.experiments.mlp.experiment import MlpExperiment
from manifold_optax.experiments.mlp.results import RunResult


class Trained(NamedTuple):
    """A finished experiment: its files, its report, and its results in order."""

    output: pathlib.Path
    report: str
    results: list[RunResult]


def _linearly_separable(generator, count):
    images = 3 * generator.standard_normal((count, 16)).astype(np.float32)
    labels = np.argmax(images[:, :4], axis=1).astype(np.int32)
    return Examples(images, labels)


@pytest.fixture(scope="session")
def whole_dataset():
    """Without a validation set."""
    generator = np.random.default_rng(0)
    return Dataset(
        train=_linearly_separable(generator, 250),
        test=_linearly_separable(generator, 64),
        classes=4,
    )


@pytest.fixture(scope="session")
def dataset(whole_dataset):
    return hold_out(whole_dataset, 50)


@pytest.fixture(scope="session")
def config():
    """16 steps: 4 epochs of 4, the last of which has 20 examples.

    All matrices are 16 x 4, so that manifold Muon compiles its solver once.
    """
    return MlpConfig(
        optimizers=("adamw", "manifold_muon"),
        learning_rates=LearningRates(adamw=(1e-6, 0.01, 1e30), manifold_muon=(0.2,)),
        seeds=(0,),
        epochs=4,
        batch_size=60,
        hidden=(4, 16),
        validation_examples=50,
        checkpoint_every=1,
        timing_rounds=0,
    )


@pytest.fixture(scope="session")
def trained(config, dataset, tmp_path_factory):
    """The experiment above, run once for all tests."""
    output = tmp_path_factory.mktemp("mlp") / "output"
    config = dataclasses.replace(config, output_dir=str(output))
    report = run_experiment(MlpExperiment(config, dataset))
    return Trained(output, report, read_records(output / "results.jsonl", RunResult))
