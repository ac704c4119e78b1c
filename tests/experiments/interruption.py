"""A run that ends behind its first checkpoint, as if its process had been killed."""

import pytest

from manifold_optax.experiments.harness import run_experiment
from manifold_optax.experiments.harness.checkpoint import Checkpoints


class Interrupted(Exception):
    """Stands for a killed process."""


def run_to_first_checkpoint(experiment, monkeypatch):
    save = Checkpoints.save

    def save_and_stop(self, state):
        save(self, state)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(Interrupted):
            run_experiment(experiment)
