"""A small run by the harness, what counts as a pass, and that no task is idle."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from manifold_optax.experiments.failures import Config, FailuresExperiment
from manifold_optax.experiments.failures.experiment import (
    LearningRates,
    Result,
    Settings,
)
from manifold_optax.experiments.failures.optimizers import (
    applies,
    build,
    OptimizerName,
)
from manifold_optax.experiments.failures.problems import Moment
from manifold_optax.experiments.failures.report import draw_passes, format_passes
from manifold_optax.experiments.failures.tasks import TASKS
from manifold_optax.experiments.failures.train import draw, train
from manifold_optax.experiments.harness import Cell, run_experiment

SEEDS = np.arange(10, dtype=np.uint32)


def _result(left, optimizer: OptimizerName = "muon", task="easy", seed=0):
    return Result(Settings(optimizer, 0.1, seed, 300, task), left, 0.0)


def test_a_small_run_counts_the_seeds_that_pass(tmp_path):
    config = Config(
        optimizers=("adamw",),
        learning_rates=LearningRates(adamw=(0.001, 0.1)),
        seeds=(0, 1),
        final_seeds=(2, 3),
        tasks=("easy",),
        steps=150,
        output_dir=str(tmp_path),
    )
    report = run_experiment(FailuresExperiment(config))
    # Entries are 0.35 away: 150 steps of 0.001, falling, do not get there.
    rows = [line for line in report.splitlines() if line.startswith("| adamw")]
    cells = [[entry.strip() for entry in row.split("|")[1:-1]] for row in rows]
    grid = [(row[1], row[-1]) for row in cells]
    assert grid == [("0.001", "0 of 2"), ("0.1", "2 of 2"), ("0.1", "2 of 2")]
    assert "| tasks passed | 1 of 1 |" in report
    assert (tmp_path / "passes.png").exists()


@pytest.mark.parametrize(
    ("left", "decades"),
    # The threshold of the task is 0.01.
    [(0.01, 0.0), (0.1, 1.0), (0.0, -6.0), (1e9, 6.0), (None, 6.0)],
)
def test_decades_above_the_threshold(left, decades):
    # Rounding of a quotient and a logarithm in float64.
    assert _result(left).decades == pytest.approx(decades, abs=1e-12)


def test_the_table_of_passes():
    cells = [
        Cell("muon", 0.1, tuple(_result(x) for x in (0.001, 0.002, 0.5)), "easy"),
        Cell(
            "adamw",
            0.1,
            tuple(_result(x, "adamw", "noise") for x in (0.1, 0.2, None)),
            "noise",
        ),
        Cell(
            "muon",
            0.1,
            tuple(_result(x, "muon", "noise") for x in (0.1, 0.2, 0.2)),
            "noise",
        ),
    ]
    lines = format_passes(cells, ("adamw", "muon"))
    assert "| easy         | -      | 2      |" in lines[3]
    assert "| noise        | 2      | **3**  |" in lines[3]
    assert "| tasks passed | 0 of 1 | 1 of 2 |" in lines[3]
    shown: Any = draw_passes(cells, ("adamw", "muon")).axes[0].images[0].get_array()
    shown = shown.filled(np.nan)
    np.testing.assert_allclose(shown, [[np.nan, 2 / 3], [2 / 3, 1]])


def test_optimizers_take_what_they_can_reach():
    taken = {
        own: {name for name, task in TASKS.items() if applies(own, name, task)}
        for own in ("adamw", "hyperball", "spel", "muon_clip")
    }
    assert taken["adamw"] == set(TASKS)
    assert taken["muon_clip"] == {"attention logits"}
    assert taken["hyperball"] - taken["spel"] == {"small scale-free weights"}
    assert "saddle" not in taken["spel"] < taken["hyperball"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("hard",)}, "some of"),
        ({"tasks": ()}, "some of"),
        ({"steps": 0}, "steps"),
        ({"tasks": ("saddle",), "optimizers": ("spel",)}, "takes the task"),
    ],
)
def test_settings_that_make_no_run(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Config(), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_no_task_is_passed_at_the_start_or_without_a_step(name):
    task = TASKS[name]
    params, data = draw(SEEDS, task=name)
    start = jax.vmap(task.measure)(params, data)
    # At least twice the threshold: nobody passes by chance.
    assert (start > 2 * task.threshold).all()
    # With steps far too small nothing changes but rounding: bfloat16 holds 3 digits.
    idle = train(
        jnp.full(10, 1e-9), SEEDS, params, data, task=name, optimizer="muon", steps=3
    )
    if name != "dead neurons":  # Its readout has AdamW at a fixed rate.
        np.testing.assert_allclose(idle, start, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("guarded", [True, False])
def test_a_poisoned_batch_ends_a_run_without_its_guard(guarded):
    task = dataclasses.replace(TASKS["poisoned batch"], guarded=guarded)
    params: Any
    params, data = task.draw(jax.random.key(0))
    tx = build("muon", task, jnp.float32(0.1), 300)
    state = tx.init(params)
    for step in (29, 30, 31, 32):
        now = Moment(jnp.int32(step), jax.random.key(1))
        gradients, _ = jax.grad(task.loss, has_aux=True)(params, data, now)
        # Without the guard, the parameters are lost after the first of the two.
        poisoned = step in (30, 31) or (step == 32 and not guarded)
        assert jnp.isnan(gradients["w"]).all() == poisoned
        updates, state = jax.jit(tx.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert jnp.isfinite(params["w"]).all() == guarded
