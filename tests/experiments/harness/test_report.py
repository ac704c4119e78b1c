import dataclasses

import pytest

from experiments.harness.quadratic import Quadratic, QuadraticConfig, Result, Settings
from manifold_optax.experiments.harness import best_cells, group_by_cell
from manifold_optax.experiments.harness.figures import (
    draw_metrics,
    draw_step_time,
    save_figure,
)
from manifold_optax.experiments.harness.records import run_name
from manifold_optax.experiments.harness.report import format_table
from manifold_optax.experiments.harness.timing import StepTime

EXPERIMENT = Quadratic(QuadraticConfig())


def _result(optimizer, rate, seed, distance):
    settings = Settings(optimizer, rate, seed, rounds=2, size=3)
    return Result(settings, distance=(9.0, distance), seconds=1.0)


def _rows(cells, times=None, experiment=EXPERIMENT):
    lines = format_table(experiment, cells, times or {}).splitlines()
    lines = [line for line in lines if line.startswith("|")]
    table = [[x.strip() for x in line.split("|")[1:-1]] for line in lines]
    return [dict(zip(table[0], row, strict=True)) for row in table[2:]]


def test_the_table_summarizes_the_seeds_and_ranks_the_rows():
    results = [_result("slow", 0.1, 0, 5.0)]
    results += [_result("fast", 0.2, seed, 1.0 + seed) for seed in (0, 1, 2)]
    times = {
        "fast": StepTime(wall=0.006, cpu=0.010),
        "slow": StepTime(wall=0.002, cpu=0.004),
    }
    first, second = _rows(group_by_cell(results), times)
    assert first == {
        "optimizer": "fast",
        "learning rate": "0.2",
        "seeds": "3",
        "distance": "2.00 ± 1.00",
        "wall ms/step": "6",
        "CPU ms/step": "10",
        "wall ratio": "3.00",
        "CPU ratio": "2.50",
    }
    assert second["distance"] == "5.00"
    legend = format_table(EXPERIMENT, group_by_cell(results), times).splitlines()[-1]
    assert "over those of slow" in legend
    assert "sample standard deviations" in legend


def test_an_experiment_may_keep_the_rows_in_their_order():
    class Unranked(Quadratic):
        @property
        def ranks_rows(self):
            return False

    cells = group_by_cell([_result("slow", 0.1, 0, 5.0), _result("fast", 0.1, 0, 1.0)])
    rows = _rows(cells, experiment=Unranked(QuadraticConfig()))
    assert [row["optimizer"] for row in rows] == ["slow", "fast"]
    assert "over the seeds" not in format_table(EXPERIMENT, cells, {})


def test_a_diverged_run_ranks_last_and_says_so():
    results = [
        _result("fast", 0.2, 0, 0.1),
        _result("fast", 0.2, 1, None),
        _result("fast", 0.1, 0, 8.0),
    ]
    cells = group_by_cell(results)
    [metric] = EXPERIMENT.metrics()
    assert best_cells(cells, metric)["fast"].learning_rate == 0.1
    assert _rows(cells)[1]["distance"] == "not finite"


@pytest.mark.parametrize("change", ["seed", "learning_rate", "optimizer", "size"])
def test_different_settings_have_different_names(change):
    settings = Settings("slow", 0.1, 0, rounds=2, size=3)
    other = {"optimizer": "fast", "learning_rate": 0.1000000001, "seed": 1, "size": 4}
    changed = dataclasses.replace(settings, **{change: other[change]})
    assert run_name(settings) != run_name(changed)


@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_have_plain_labels_a_grid_and_a_legend_outside(tmp_path, seeds):
    results = [
        _result(optimizer, rate, seed, rate + seed)
        for optimizer in ("slow", "fast")
        for rate in (0.001, 0.01, 0.1)
        for seed in range(seeds)
    ]
    figure = draw_metrics(EXPERIMENT, group_by_cell(results))
    save_figure(tmp_path, "figure", figure)
    [axes] = figure.axes
    labels = [tick.label1.get_text() for tick in axes.xaxis.get_major_ticks()]
    assert "0.01" in labels
    assert not any("$" in label for label in labels)
    assert axes.xaxis.get_gridlines()[0].get_visible()
    # Rows of the table and lines of the figure bear the same names.
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["slow", "fast"]
    assert axes.get_ylabel() == "distance"
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    # Each bar is a collection of line segments; one seed has no deviation.
    assert len(axes.collections) == (2 if seeds > 1 else 0)


def test_the_times_are_drawn_by_optimizer():
    figure = draw_step_time({"slow": StepTime(wall=0.001, cpu=0.002)})
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["slow"]
    assert axes.get_xlabel() == "wall ms/step"
