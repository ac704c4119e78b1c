import numpy as np
import pytest

from manifold_optax.experiments.config import LearningRates, MlpConfig
from manifold_optax.experiments.data import Dataset, Examples


def _linearly_separable(generator, count):
    images = 3 * generator.standard_normal((count, 16)).astype(np.float32)
    labels = np.argmax(images[:, :4], axis=1).astype(np.int32)
    return Examples(images, labels)


@pytest.fixture
def dataset():
    generator = np.random.default_rng(0)
    return Dataset(
        train=_linearly_separable(generator, 256),
        test=_linearly_separable(generator, 64),
        classes=4,
    )


@pytest.fixture
def config(tmp_path):
    """20 steps: 4 epochs of 5, the last of which has 16 examples."""
    return MlpConfig(
        optimizers=("adamw", "manifold_muon"),
        learning_rates=LearningRates(adamw=(0.01,), hyperspherical=(0.1,)),
        seeds=(0,),
        epochs=4,
        batch_size=60,
        hidden=(8, 16),
        checkpoint_every=1,
        timing_rounds=1,
        output_dir=str(tmp_path / "output"),
    )
