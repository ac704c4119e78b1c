import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.experiments.adversary import Effort
from manifold_optax.experiments.harness import Metric, run_experiment
from manifold_optax.experiments.harness.cells import group_by_cell
from manifold_optax.experiments.harness.records import read_records
from manifold_optax.experiments.input_sets import InBox
from manifold_optax.experiments.mlp.data import Dataset, Examples
from manifold_optax.experiments.pixel_perceptron import (
    apply_to_pixels,
    on_pixels,
    Shades,
    shades,
    TaskConfig,
    to_pixels,
)
from manifold_optax.experiments.robust_accuracy import (
    attack_standing,
    robustness_curves,
)
from manifold_optax.experiments.robustness import (
    report,
    RobustnessConfig,
    RobustnessExperiment,
)
from manifold_optax.experiments.robustness.config import AttackConfig, LearningRates
from manifold_optax.experiments.robustness.results import RunResult, RunSettings

ATTACK = AttackConfig(examples=4, radii=(0.1, 0.5), steps=2, restarts=2)
TASK = TaskConfig(
    data="digits", epochs=1, batch_size=64, hidden=(12,), validation_examples=1000
)
CLEAN: Metric[RunResult] = Metric(
    "validation %", lambda run: 100 * run.validation_accuracy
)


def result(optimizer: Any = "adamw", rate=0.1, seed=42, **numbers: Any) -> RunResult:
    settings = RunSettings(optimizer, rate, seed, TASK, ATTACK)
    defaults = {
        "loss": (1.0,),
        "validation_accuracy": 0.5,
        "test_accuracy": 0.5,
        "certified": (0.5, 0.5, 0.25),
        "attacked": (0.5, 0.5, 0.5),
        "violations": 0,
        "lipschitz": 1.0,
        "steepest": 0.9,
        "seconds": 1.0,
    }
    return RunResult(settings=settings, **(defaults | numbers))


def test_shares_are_counted_and_a_refuted_certificate_is_seen():
    radii = np.array([0.2, 0.6, 0.0, 0.3])
    standing = np.array(
        [[True, True, False, True], [True, True, False, True], [False] * 4]
    )
    curves = robustness_curves(radii, standing, (0.1, 0.5))
    assert curves.certified == (0.75, 0.75, 0.25)
    assert curves.attacked == (0.75, 0.75, 0.0)
    # The second image is proved up to 0.6 and was changed within 0.5.
    assert curves.violations == 1
    standing[2, 1] = True
    assert robustness_curves(radii, standing, (0.1, 0.5)).violations == 0


def test_equal_accuracy_takes_the_nearest_rate_of_each():
    cells = group_by_cell(
        [
            result("adamw", 0.1, validation_accuracy=0.4),
            result("adamw", 0.2, validation_accuracy=0.45),
            result("muon", 0.1, validation_accuracy=0.6),
            result("muon", 0.2, validation_accuracy=0.47),
            result("muon", 0.3, validation_accuracy=0.2),
        ]
    )
    matched = report.matched_cells(cells, CLEAN)
    assert [(c.optimizer, c.learning_rate) for c in matched] == [
        ("adamw", 0.2),
        ("muon", 0.2),
    ]


def test_the_report_says_whether_a_certificate_is_wrong():
    cells = group_by_cell([result(), result("muon")])
    lines = "\n".join(report.at_equal_accuracy(cells, cells))
    # Two networks with 2 and 1 certified decisions of 4 at the two radii.
    assert "0 of 6 certified decisions" in lines
    cells = group_by_cell([result(violations=3)])
    assert "A CERTIFICATE IS WRONG: 3" in "\n".join(report.at_best_rates(cells, ATTACK))


def test_pairs_that_differ_by_no_more_than_seeds_are_named():
    runs = [
        result(name, seed=seed, certified=(0.5, share + 0.01 * seed, 0.0))
        for name, share in (("adamw", 0.1), ("muon", 0.11), ("modular", 0.8))
        for seed in (0, 1, 2)
    ]
    text = "\n".join(report.at_best_rates(group_by_cell(runs), ATTACK))
    assert "Certified at 0.1: 2 of 3 pairs differ" in text
    assert "No difference beyond the seeds: adamw and muon." in text


def test_the_network_on_pixels_is_the_network_on_normalized_images(rng):
    shade = Shades(middle=rng.standard_normal(6), contrast=rng.uniform(1, 3, 6))
    kernels = [rng.standard_normal((6, 5)), rng.standard_normal((5, 3))]
    pixels = rng.uniform(-0.5, 0.5, (4, 6))
    normalized = shade.middle + shade.contrast * pixels
    expected = np.maximum(normalized @ kernels[0], 0) @ kernels[1]
    params = {"layers": [jnp.asarray(kernel, jnp.float32) for kernel in kernels]}
    found = apply_to_pixels(on_pixels(params, shade), jnp.asarray(pixels, jnp.float32))
    # Products of 6 and 5 terms of float32 numbers of about 3.
    np.testing.assert_allclose(found, expected, atol=1e-4)
    back = to_pixels(normalized.astype(np.float32), shade)
    np.testing.assert_allclose(back, pixels, atol=1e-6)


def test_shades_are_read_off_the_training_set():
    pixels = np.array([[0.0, 1.0, 0.0, 1.0, 0.25, 1.0], [1.0, 0.5, 1, 0, 1, 0]])
    means, sizes = np.repeat([0.4, 0.5, 0.6], 2), np.repeat([0.2, 0.3, 0.5], 2)
    images = ((pixels - means) / sizes).astype(np.float32)
    examples = Examples(images, np.zeros(2, np.int32))
    shade = shades(TaskConfig(), Dataset(train=examples, test=examples, classes=2))
    np.testing.assert_allclose(shade.contrast, 1 / sizes, rtol=1e-6)
    # Differences of float32 numbers of about 3.
    np.testing.assert_allclose(shade.middle, (0.5 - means) / sizes, atol=1e-6)


def linear(params, x):
    return x @ params["readout"]


@pytest.mark.slow  # It compiles the attack: 3 s.
def test_what_was_changed_once_stays_changed(rng):
    params = {"readout": jnp.asarray(rng.standard_normal((8, 3)), jnp.float32)}
    x = jnp.asarray(rng.uniform(-0.5, 0.5, (40, 8)), jnp.float32)
    labels = rng.integers(0, 3, 40).astype(np.int32)
    standing = attack_standing(
        linear,
        params,
        (x, labels),
        (0.05, 0.2, 5.0),
        jax.random.key(0),
        effort=Effort(10, 2),
        box=InBox(-0.5, 0.5),
    )
    np.testing.assert_array_equal(standing[0], linear(params, x).argmax(-1) == labels)
    assert (standing[1:] <= standing[:-1]).all()
    assert standing.sum(1)[0] > standing.sum(1)[2] > 0


def small(output, **changes):
    config = RobustnessConfig(
        optimizers=("adamw",),
        learning_rates=LearningRates(adamw=(0.01,), muon_ball=(0.1,), modular=(0.2,)),
        seeds=(0,),
        final_seeds=(),
        output_dir=str(output),
        task=TASK,
        attack=dataclasses.replace(ATTACK, examples=100),
    )
    return dataclasses.replace(config, **changes)


def check(output, config):
    """Runs an experiment; no certificate may be refuted."""
    text = run_experiment(RobustnessExperiment.prepare(config))
    results = read_records(output / "results.jsonl", RunResult)
    for run in results:
        assert run.violations == 0
        assert run.steepest is not None
        assert run.lipschitz is not None
        assert run.steepest <= run.lipschitz
        assert all(c <= a for c, a in zip(run.certified, run.attacked, strict=True))
        assert run.attacked[0] > 0.2
    assert "No certificate was refuted" in text
    return text


@pytest.mark.slow  # 8 s, of which 6 compile.
def test_no_certificate_is_refuted(tmp_path):
    check(tmp_path, small(tmp_path))
    assert (tmp_path / "robustness.png").exists()
    assert (tmp_path / "frontier.png").exists()


@pytest.mark.slow
def test_with_every_optimizer_and_fresh_seeds(tmp_path):
    defaults = RobustnessConfig()
    config = small(
        tmp_path,
        optimizers=defaults.optimizers,
        learning_rates=LearningRates(
            adamw=(0.01,),
            muon=(0.03,),
            muon_ball=(0.1,),
            manifold_muon=(0.1,),
            modular=(0.4,),
        ),
        final_seeds=(1, 2),
        task=dataclasses.replace(TASK, validation_examples=200, epochs=2),
        attack=AttackConfig(examples=100, radii=(0.1, 0.5, 2.0), steps=20, restarts=4),
    )
    text = check(tmp_path, config)
    assert "pairs differ" in text


def test_settings_out_of_range_are_errors():
    with pytest.raises(ValueError, match=r"attack.radii must rise, got \(0.5, 0.1\)"):
        AttackConfig(radii=(0.5, 0.1))
    with pytest.raises(ValueError, match=r"attack.examples must be at least 1, got 0"):
        AttackConfig(examples=0)
    with pytest.raises(ValueError, match="validation_examples must be at least 1"):
        TaskConfig(validation_examples=0)
