import pathlib

import pytest

from manifold_optax.experiments.harness.config_file import read_overrides
from manifold_optax.experiments.harness.typed import replace_typed
from manifold_optax.experiments.lm.config import (
    LearningRates,
    LmConfig,
    ModelConfig,
    TrainingConfig,
)

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("lm*.toml")), ids=lambda p: p.name)
def test_published_configurations_are_valid(path):
    config = replace_typed(LmConfig(), read_overrides(path))
    assert config.output_dir == f"runs/{path.stem}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(layers=0), "model.layers must be at least 1, got 0"),
        (lambda: ModelConfig(head_size=3), "model.head_size must be even"),
        (lambda: ModelConfig(attention="mla", rope_size=3), "model.rope_size must be"),
        (
            lambda: ModelConfig(attention="gqa", key_heads=3),
            "model.key_heads must divide model.heads, 4, got 3",
        ),
        (lambda: ModelConfig(chosen_experts=5), "at most model.experts, 4, got 5"),
        (lambda: TrainingConfig(steps=0), "steps must be at least 1, got 0"),
        (
            lambda: TrainingConfig(evaluate_every=7),
            "must divide training.steps, 600, got 7",
        ),
        (
            lambda: TrainingConfig(warmup_steps=600),
            "must be less than training.steps, 600",
        ),
        (lambda: TrainingConfig(steps=10**9), "steps must be at most 100000000"),
        (lambda: ModelConfig(width=10**30), "model.width must be at most 1000000000"),
        (lambda: TrainingConfig(balance=2.0), "balance must be at most 1, got 2.0"),
        (lambda: TrainingConfig(threshold=0.0), "training.threshold must be positive"),
        (lambda: LmConfig(temperature=0.0), "temperature must be positive"),
        (lambda: LmConfig(seeds=(1, 1)), "seeds must not repeat a value"),
        (lambda: LearningRates(muon=(0.0,)), "learning_rates.muon must be positive"),
    ],
)
def test_wrong_settings_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()
