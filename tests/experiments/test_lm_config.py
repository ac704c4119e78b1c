import dataclasses
import math
import pathlib

import pytest

from manifold_optax.experiments import __main__ as command_line
from manifold_optax.experiments.config_file import apply_overrides, read_overrides
from manifold_optax.experiments.lm.config import (
    LearningRates,
    LmConfig,
    ModelConfig,
    TrainingConfig,
)
from manifold_optax.experiments.lm.report import format_table
from manifold_optax.experiments.lm.results import (
    best_cells,
    group_by_cell,
    RunResult,
    RunSettings,
)

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
ONE_LAYER = ModelConfig(layers=1, heads=2)


def _result(optimizer, rate, seed, *, validation, test=1.0, logits=(5.0, 50.0)):
    return RunResult(
        settings=RunSettings(
            digest="0",
            optimizer=optimizer,
            learning_rate=rate,
            seed=seed,
            model=ONE_LAYER,
            training=TrainingConfig(steps=2, evaluate_every=1, warmup_steps=0),
            sample_characters=0,
            temperature=1.0,
        ),
        loss=(2.0, 1.0),
        validation_loss=(3.0, validation),
        test_loss=(2.0, test),
        max_logits=tuple(((x, 1.0),) for x in logits),
        imbalance=(),
        sample="",
        seconds=1.0,
    )


def _rows(cells):
    lines = format_table(cells).splitlines()
    table = [[x.strip() for x in line.split("|")[1:-1]] for line in lines[:-2]]
    return [dict(zip(table[0], row, strict=True)) for row in table[2:]]


def test_table_summarizes_the_seeds_and_ranks_by_validation_text():
    results = [_result("adamw", 0.1, 0, validation=1.5, test=0.1)]
    results += [
        _result(
            "muon", 0.2, seed, validation=1.0 + seed / 10, logits=(99.0, 101.0 + seed)
        )
        for seed in (0, 1, 2)
    ]
    first, second = _rows(group_by_cell(results))
    assert first == {
        "optimizer": "muon",
        "learning rate": "0.2",
        "validation loss": "1.1000 ± 0.1000",
        "test loss": "1.0000 ± 0.0000",
        "largest logit": "103",
        "steps above": "3 of 6",
        "seeds": "3",
    }
    assert second["test loss"] == "0.1000"


def test_a_diverged_run_ranks_last_and_says_so():
    results = [
        _result("muon", 0.2, 0, validation=None, test=None, logits=(5.0, None)),
        _result("muon", 0.1, 0, validation=1.0),
    ]
    cells = group_by_cell(results)
    assert best_cells(cells)["muon"].learning_rate == 0.1
    assert cells[0].validation_loss == math.inf
    last = _rows(cells)[1]
    assert last["validation loss"] == last["largest logit"] == "not finite"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("lm*.toml")), ids=lambda p: p.name)
def test_published_configurations_are_valid(path):
    config = apply_overrides(LmConfig(), read_overrides(path))
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


@pytest.mark.parametrize("changes", [{"seed": 1}, {"temperature": 0.5}])
def test_different_settings_have_different_names(changes):
    settings = _result("muon", 0.1, 0, validation=1.0).settings
    assert dataclasses.replace(settings, **changes).name != settings.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lm", "--text", "absent.txt"], "absent.txt"),
        (["lm", "--training.steps", "0"], "steps must be at least 1, got 0"),
        (["lm", "--data", "digits"], "Unrecognized options"),
        (["lm", "--config", "absent.toml"], "absent.toml"),
    ],
)
def test_wrong_usage_is_explained(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(command_line, "run_lm", None)
    with pytest.raises(SystemExit) as raised:
        command_line.main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
