"""A small sweep by the command, what it makes once, and its data."""

import dataclasses
import json

import numpy as np
import pytest

from manifold_optax.experiments.harness import run_experiment
from manifold_optax.experiments.harness.runs import grid
from manifold_optax.experiments.transfer import (
    experiment as experiment_module,
    TransferExperiment,
)
from manifold_optax.experiments.transfer.config import Config, LearningRates
from manifold_optax.experiments.transfer.data import Data, read_data
from manifold_optax.experiments.transfer.train import Examples, schedule

TEXT = 60 * "the cat sat on the mat, and the rat ate the cake.\n"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def _config(text, **changes):
    small = Config(
        text=text,
        optimizers=("adamw",),
        learning_rates=LearningRates(adamw=(0.002, 0.004, 0.008, 0.016)),
        seeds=(1, 2),
        sizes=(1, 2),
        other_size=16,
        steps=20,
        batch_size=4,
        context=8,
        validation_examples=8,
    )
    return dataclasses.replace(small, **changes)


def _images(count=64):
    """Images whose class is the sign of their first entry."""
    random = np.random.default_rng(0)
    inputs = random.standard_normal((count, 12)).astype(np.float32)
    examples = Examples(inputs, (inputs[:, 0] > 0).astype(np.int32))
    return Data(examples, examples, 12, 2, "")


@pytest.fixture
def images(monkeypatch):
    """Makes perceptrons learn from these, which no file holds."""
    data = _images(400)
    monkeypatch.setattr(experiment_module, "read_data", lambda *_: data)


def test_a_sweep_learns_and_reports_every_cell(images, tmp_path):
    rates = LearningRates(adamw=(0.001, 0.002, 0.004, 0.008))
    config = _config(
        None,
        families=("plain",),
        learning_rates=rates,
        output_dir=str(tmp_path / "runs"),
    )
    report = run_experiment(TransferExperiment(config))
    lines = (tmp_path / "runs/results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert len(results) == 2 * 4 * 2
    losses = {
        rate: [
            result["validation_loss"]
            for result in results
            if result["settings"]["learning_rate"] == rate
        ]
        for rate in rates.adamw
    }
    # The largest rate learns most in 20 steps, of a loss of about 1 at the start.
    assert max(losses[0.008]) < min(losses[0.001]) < 1.5
    assert "| plain width=16 depth=2 | adamw     | 0.008" in report
    assert "## Shift of the best rate with the depth" in report
    assert "| plain width=16 depth=1 | adamw     | -10 … -7 | " in report
    assert "-7.0* / -7.0*" in report  # The best rate is the last of the grid.
    assert (tmp_path / "runs/shifts.png").exists()


@pytest.mark.slow
def test_the_transformer_learns(text, tmp_path):
    config = _config(text, output_dir=str(tmp_path / "runs"))
    run_experiment(TransferExperiment(config))
    lines = (tmp_path / "runs/results.jsonl").read_text().splitlines()
    losses = [json.loads(line)["validation_loss"] for line in lines]
    # A uniform guess among 18 characters has the loss log 18 = 2.9.
    assert len(losses) == 16
    assert min(losses) < 2.7


@pytest.mark.slow
def test_what_takes_the_same_steps_runs_once(images, monkeypatch):
    names = ("muon_none", "muon_width", "nominal", "derived", "measured")
    config = _config(None, optimizers=names, families=("plain",), steps=4)
    experiment = TransferExperiment(config)
    trained, train = [], experiment_module.train

    def listening(*arrays, **static):
        trained.append(name)
        return train(*arrays, **static)

    monkeypatch.setattr(experiment_module, "train", listening)
    losses = {}
    for name in names:
        own = [s for s in grid(experiment) if (s.optimizer, s.depth) == (name, 2)]
        results = experiment.run_many(own)
        assert [result.settings for result in results] == own
        losses[name] = [result.validation_loss for result in results]
    # Width 16 of 12 inputs: the first matrix widens, so that "none" and "width" differ.
    assert trained == ["muon_none", "muon_width", "nominal", "measured"]
    assert losses["nominal"] == losses["derived"]
    assert losses["muon_none"] != losses["muon_width"]


@pytest.mark.slow
def test_rates_of_budgets_are_lengths_of_the_longest_step(text):
    rates = LearningRates(nominal=(0.25, 0.5))
    config = _config(text, optimizers=("nominal",), learning_rates=rates)
    experiment = TransferExperiment(config)
    # The largest share is 1/8 at depth 1: 8 matrices, and a sensitivity of 1.
    assert experiment.conditions[0] == "transformer width=16 depth=1"
    found = experiment.learning_rates_of("nominal", experiment.conditions[0])
    assert found == [2.0, 4.0]


def test_no_example_comes_twice(text):
    experiment = TransferExperiment(_config(text))
    settings = grid(experiment)[0]
    order = _images(100).order(settings)
    assert order.shape == (20, 4)
    assert len(set(order.ravel())) == 80


def test_sequences_predict_the_next_character(text):
    data = read_data("transformer", _config(text))
    inputs, labels = data.train
    np.testing.assert_array_equal(inputs[:, 1:], labels[:, :-1])
    np.testing.assert_array_equal(inputs[1:, 0], labels[:-1, -1])
    assert len(data.validation.labels) == 8


def test_the_rate_rises_and_falls():
    heights = np.asarray(schedule(20))
    # Two steps of warm-up, the second at the peak; then 18/19, …, 1/19 of it.
    assert heights[[0, 1, 2, -1]] == pytest.approx([0.5, 1, 18 / 19, 1 / 19], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (2, 1)}, "increase"),
        ({"sizes": (2,)}, "two sizes"),
        ({"other_size": 20}, "multiples"),
        ({"steps": 0}, "steps"),
    ],
)
def test_settings_that_make_no_sweep(text, changes, message):
    with pytest.raises(ValueError, match=message):
        _config(text, **changes)


def test_rates_must_double():
    with pytest.raises(ValueError, match="must double"):
        LearningRates(adamw=(0.1, 0.3))


def test_too_little_data(text):
    with pytest.raises(ValueError, match="there are"):
        TransferExperiment(_config(text, steps=1000))
    with pytest.raises(ValueError, match="data_dir"):
        TransferExperiment(_config(text, families=("plain",)))
