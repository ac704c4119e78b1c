"""Conditions, final seeds and batches: which runs are made, and what is reported."""

import dataclasses
import json
import pathlib

import pytest

from experiments.harness.quadratic import (
    Batched,
    Conditional,
    LearningRates,
    Quadratic,
    QuadraticConfig,
    Result,
)
from manifold_optax.experiments.harness import Origin, report, run_experiment
from manifold_optax.experiments.harness.figures import Picture
from manifold_optax.experiments.harness.records import read_records, run_name


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Writes empty files: drawing takes longer than all runs."""

    def save(output, name, figure):
        (output / f"{name}.png").touch()
        return Picture(name, b"", 1.0, "")

    monkeypatch.setattr(report, "save_figure", save)
    monkeypatch.setattr(report, "draw_metrics", lambda experiment, cells: None)


@pytest.fixture
def config(tmp_path):
    return QuadraticConfig(
        learning_rates=LearningRates(slow=(0.1, 0.2, 0.3), fast=(0.1, 0.5)),
        seeds=(0,),
        output_dir=str(tmp_path / "output"),
        # More rounds than there are, so that nothing is written.
        checkpoint_every=9,
        rounds=2,
    )


def _records(config):
    return read_records(pathlib.Path(config.output_dir) / "results.jsonl", Result)


def _keys(records):
    return [
        (one.settings.optimizer, one.settings.learning_rate, one.settings.seed)
        for one in records
    ]


def test_the_best_rates_run_again_with_fresh_seeds(config):
    final = dataclasses.replace(config, final_seeds=(1, 2))
    written = run_experiment(Quadratic(final))
    assert _keys(_records(config))[5:] == [
        ("slow", 0.3, 1),
        ("slow", 0.3, 2),
        ("fast", 0.5, 1),
        ("fast", 0.5, 2),
    ]
    tuning, fresh, differences = (part.splitlines() for part in written.split("\n## "))
    assert sum(line.startswith("|") for line in tuning) == 2 + 5
    assert sum(line.startswith("|") for line in fresh) == 2 + 2
    assert "Unequal tuning budgets: slow 3 rates and 3 runs; fast 2 rates" in written
    assert "the learning rate of slow, 0.3, is the largest that was tried" in written
    # Two steps at twice the rate 0.5 reach the point itself: a distance of 0.
    assert "| fast - slow " in differences[4]
    assert differences[4].endswith("|")


def test_final_runs_are_resumed_and_do_not_choose_the_rate(config):
    run_experiment(Quadratic(config))
    resumed = dataclasses.replace(config, final_seeds=(1, 2), resume=True)
    first = run_experiment(Quadratic(resumed))
    page = pathlib.Path(config.output_dir) / "report.html"
    whole = page.read_bytes()
    page.unlink()
    assert len(_records(config)) == 9

    class Done(Quadratic):
        def start(self, settings):
            raise AssertionError(f"{settings} is finished.")

    assert run_experiment(Done(resumed)) == first
    assert page.read_bytes() == whole.replace(b"Quadratic", b"Done")


def test_one_final_seed_compares_nothing(config):
    # A path whose bytes are not UTF-8, as the command line hands it over.
    origin = Origin("quadratic", "tiny", "python --output-dir \udcff")
    final = dataclasses.replace(config, final_seeds=(1,))
    written = run_experiment(Quadratic(final), origin)
    page = pathlib.Path(config.output_dir) / "report.html"
    assert "--output-dir \\udcff" in page.read_text(encoding="utf-8")
    assert "No comparison is made: it needs at least 2 final seeds, got 1" in written


@pytest.mark.parametrize(
    ("final_seeds", "message"),
    [
        ((1, 0), r"final_seeds must be fresh, got \[0\], which seeds holds too"),
        ((1, 1), r"final_seeds must not repeat a value"),
        ((-1,), r"final_seeds must be in \[0, 2\*\*32\), got -1"),
    ],
)
def test_wrong_final_seeds_are_explained(config, final_seeds, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, final_seeds=final_seeds)


def test_the_whole_grid_runs_in_every_condition(config):
    final = dataclasses.replace(config, final_seeds=(1, 2))
    written = run_experiment(Conditional(final))
    settings = [one.settings for one in _records(config)]
    assert [s.condition for s in settings] == (
        5 * ["size=3"] + 7 * ["size=4"] + 4 * ["size=3"] + 4 * ["size=4"]
    )
    # The rates of the second condition are its own, and so is the best of them.
    rates = [s.learning_rate for s in settings[12:]]
    assert rates == [0.3, 0.3, 0.5, 0.5, 0.4, 0.4, 0.5, 0.5]
    rows = [line for line in written.splitlines() if line.startswith("|")]
    assert rows[0].split("|")[1].strip() == "condition"
    assert [row.split("|")[1].strip() for row in rows[2:14]] == (
        5 * ["size=3"] + 7 * ["size=4"]
    )
    names = {path.name for path in pathlib.Path(config.output_dir).glob("*.png")}
    assert names == {"learning_rates-size=3.png", "learning_rates-size=4.png"}


def test_a_record_of_a_version_without_conditions_is_read(config):
    run_experiment(Quadratic(config))
    path = pathlib.Path(config.output_dir) / "results.jsonl"
    known = _records(config)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for line in lines:
        del line["settings"]["condition"]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert _records(config) == known


def test_a_condition_is_part_of_the_name_of_a_run(config):
    plain = Quadratic(config).settings("slow", 0.1, 0)
    other = dataclasses.replace(plain, condition="wide: a/b")
    # The name that the run had in versions without conditions.
    small = dataclasses.replace(plain, rounds=2, size=3)
    assert run_name(small) == "slow-lr0.1-seed0-3abbdf15"
    assert run_name(other).startswith("wide_a_b-slow-lr0.1-seed0-")


def test_all_runs_of_an_optimizer_are_one_batch(config):
    final = dataclasses.replace(config, seeds=(3, 4), final_seeds=(5,))
    experiment = Batched(final)
    run_experiment(experiment)
    slow, fast, *finals = experiment.batches
    assert slow == [(rate, seed) for rate in (0.1, 0.2, 0.3) for seed in (3, 4)]
    assert fast == [(rate, seed) for rate in (0.1, 0.5) for seed in (3, 4)]
    assert finals == [[(0.1, 5)], [(0.1, 5)]]
    more = dataclasses.replace(final, seeds=(3, 4, 6), resume=True)
    experiment = Batched(more)
    run_experiment(experiment)
    assert experiment.batches == [
        [(0.1, 6), (0.2, 6), (0.3, 6)],
        [(0.1, 6), (0.5, 6)],
    ]


def test_a_batch_with_other_results_is_refused(config):
    class Short(Batched):
        def run_many(self, settings_list):
            return super().run_many(settings_list)[1:]

    with pytest.raises(ValueError, match="got 5 results for 6 runs of slow"):
        run_experiment(Short(dataclasses.replace(config, seeds=(0, 1))))
