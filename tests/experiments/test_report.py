import pytest

from manifold_optax.experiments.report import format_table
from manifold_optax.experiments.results import (
    best_cells,
    group_by_cell,
    RunResult,
    RunSettings,
)
from manifold_optax.experiments.timing import StepTime


def _result(optimizer, rate, seed, test, train=0.9, validation=None):
    return RunResult(
        settings=RunSettings(
            data="digits",
            optimizer=optimizer,
            learning_rate=rate,
            seed=seed,
            epochs=1,
            batch_size=1,
            hidden=(1,),
            weight_decay=0.1,
            validation_examples=0,
        ),
        loss=(1.0,),
        residual=1e-7 * (seed + 1) if optimizer == "manifold_muon" else None,
        train_accuracy=(0.0, train),
        validation_accuracy=None if validation is None else (0.0, validation),
        test_accuracy=(0.0, test),
        singular_values=((2.0 + seed, 0.5), (1.0,)),
        seconds=1.0,
    )


def _cells_of(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]


def test_table_summarizes_the_seeds():
    results = [
        _result("manifold_muon", 0.1, seed, 0.5 + seed / 10) for seed in (0, 1, 2)
    ]
    results.append(_result("adamw", 0.01, 0, 0.4))
    times = {
        "manifold_muon": StepTime(wall=0.006, cpu=0.010),
        "adamw": StepTime(wall=0.002, cpu=0.004),
    }
    lines = format_table(group_by_cell(results), times).splitlines()
    header, _, first, second = _cells_of(lines[:4])
    assert dict(zip(header, first, strict=True)) == {
        "optimizer": "manifold_muon",
        "learning rate": "0.1",
        "test %": "60.00 ± 10.00",
        "train %": "90.00 ± 0.00",
        "seeds": "3",
        "singular values by layer": "0.5-4 / 1-1",
        "residual": "3.0e-07",
        "wall ms/step": "6",
        "CPU ms/step": "10",
        "wall ratio": "3.00",
        "CPU ratio": "2.50",
    }
    assert second[2:4] == ["40.00", "90.00"]


def test_table_without_times_or_baseline():
    cells = group_by_cell([_result("muon", 0.1, 0, 0.5)])
    assert "ms/step" not in format_table(cells, {})
    timed = format_table(cells, {"muon": StepTime(wall=1.0, cpu=1.0)})
    assert "wall ms/step" in timed
    assert "wall ratio" not in timed


def test_the_test_set_has_no_say_in_the_best_rate():
    by_training = [
        _result("muon", 0.1, 0, test=0.9, train=0.5),
        _result("muon", 0.2, 0, test=0.1, train=0.6),
    ]
    by_validation = [
        _result("muon", 0.1, 0, test=0.1, train=0.5, validation=0.8),
        _result("muon", 0.2, 0, test=0.9, train=0.6, validation=0.7),
    ]
    assert best_cells(group_by_cell(by_training))["muon"].learning_rate == 0.2
    assert best_cells(group_by_cell(by_validation))["muon"].learning_rate == 0.1


@pytest.mark.parametrize("change", ["seed", "learning_rate", "optimizer"])
def test_different_settings_have_different_names(change):
    values = {"optimizer": "muon", "learning_rate": 0.1, "seed": 0}
    other = {"optimizer": "adamw", "learning_rate": 0.1000000001, "seed": 1}
    names = {
        _result(v["optimizer"], v["learning_rate"], v["seed"], 0.5).settings.name
        for v in (values, {**values, change: other[change]})
    }
    assert len(names) == 2
