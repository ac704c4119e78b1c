import dataclasses
import pathlib

import pytest

from manifold_optax.experiments.harness.config_file import read_overrides
from manifold_optax.experiments.harness.typed import replace_typed
from manifold_optax.experiments.mlp.config import (
    default_config,
    LearningRates,
    MlpConfig,
)

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("mlp_*.toml")), ids=lambda p: p.stem
)
def test_every_shipped_file_is_accepted(path):
    table = read_overrides(path)
    config = replace_typed(default_config(table["data"]), table)
    assert config.data == table["data"]


def test_digits_file_mirrors_the_defaults():
    table = read_overrides(CONFIGS / "mlp_digits.toml")
    assert replace_typed(MlpConfig(), table) == default_config("digits")


def test_cifar10_file_has_the_published_settings():
    table = read_overrides(CONFIGS / "mlp_cifar10.toml")
    config = replace_typed(MlpConfig(), table)
    assert config == default_config("cifar10")
    assert (config.epochs, config.batch_size, config.hidden) == (3, 1024, (128, 64))
    assert config.seeds == (42, 43, 44)
    assert config.learning_rates.adamw == (0.003,)
    assert config.learning_rates.manifold_muon == (0.1,)


def test_overrides_reach_tables_and_keep_the_rest():
    config = replace_typed(
        MlpConfig(), {"epochs": 7, "learning_rates": {"muon": [1, 0.5]}}
    )
    assert config.epochs == 7
    assert config.learning_rates == LearningRates(muon=(1.0, 0.5))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"epoch": 3},
            r"setting: 'epoch'\. Did you mean 'epochs'\? Known: optimizers, ",
        ),
        (
            {"learning_rates": {"mun": [0.1]}},
            r"'learning_rates\.mun'\. Did you mean 'learning_rates\.muon'\?",
        ),
        ({"data": "cifar"}, r"Unknown value of data: 'cifar'\. Did you mean 'cifar10'"),
        ({"optimizers": ["adam"]}, r"of optimizers: 'adam'\. Did you mean 'adamw'\?"),
        ({"optimizers": "adamw"}, r"optimizers must be a list, got 'adamw'"),
        ({"epochs": 2.0}, r"epochs must be a int, got 2\.0 of type float"),
        ({"epochs": True}, r"epochs must be a int, got True of type bool"),
        ({"weight_decay": 10**400}, r"weight_decay must be a float, got 1000"),
        ({"weight_decay": "0.1"}, r"weight_decay must be a float, got '0\.1'"),
        ({"learning_rates": 0.1}, r"learning_rates must be a table, got 0\.1"),
        ({"data_dir": 3}, r"data_dir must be a str, got 3"),
    ],
)
def test_wrong_overrides_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        replace_typed(MlpConfig(), overrides)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 10**30}, f"epochs must be at most 1000000000, got {10**30}"),
        ({"epochs": 10**400}, "epochs must be at most 1000000000, got 1000"),
        ({"hidden": (10**30,)}, "hidden must be at most 1000000000"),
        ({"weight_decay": float("inf")}, "weight_decay must be at most"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"hidden": (128, 0)}, "hidden must be at least 1, got 0"),
        ({"seeds": (1, 1)}, r"seeds must not repeat a value, got \(1, 1\)"),
        ({"seeds": ()}, "seeds must name at least one value"),
        ({"seeds": (-1,)}, r"seeds must be in \[0, 2\*\*32\), got -1"),
        ({"optimizers": ()}, "optimizers must name at least one value"),
        (
            {"final_seeds": (45,)},
            "final_seeds need rates .* a validation set, got validation_examples=0",
        ),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
        (
            {"learning_rates": LearningRates(adamw=())},
            "learning_rates.adamw must name at least one value",
        ),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MlpConfig(), **changes)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf")])
def test_learning_rates_are_positive_and_finite(rate):
    with pytest.raises(ValueError, match=r"learning_rates\.muon must be positive"):
        LearningRates(muon=(rate,))


def test_broken_toml_names_the_file(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("epochs = = 3")
    with pytest.raises(ValueError, match=r"broken\.toml is not valid TOML"):
        read_overrides(path)
