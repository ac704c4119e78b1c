import contextlib
import dataclasses
import functools
import html
import io
import json
import pathlib
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.interruption import run_to_first_checkpoint
from experiments.lm.small import SMALL
from manifold_optax.experiments import __main__ as program
from manifold_optax.experiments.harness import run_experiment
from manifold_optax.experiments.harness.cells import group_by_cell
from manifold_optax.experiments.harness.records import read_records
from manifold_optax.experiments.harness.report import format_table
from manifold_optax.experiments.harness.typed import replace_typed
from manifold_optax.experiments.lm.config import LearningRates, LmConfig
from manifold_optax.experiments.lm.experiment import LmExperiment
from manifold_optax.experiments.lm.model import apply_model, initial_params
from manifold_optax.experiments.lm.results import RunResult
from manifold_optax.experiments.lm.sample import sample_tokens
from manifold_optax.experiments.lm.text import encode_text
from manifold_optax.experiments.lm.train import make_problem

# Its next character follows from the last two, so that a few steps learn something.
SOURCE = 40 * "the cat sat on the mat, and the rat ate the cake.\n"
MODEL = dataclasses.replace(SMALL, attention="gqa")
# A large learning rate and a low threshold.
STRESS = """
text = "{text}"
optimizers = ["muon_clip"]
seeds = [1]
sample_characters = 30
output_dir = "{output}"

[model]
attention = "mha"
feed_forward = "gelu"
layers = 1
width = 16
heads = 4
head_size = 4
hidden = 16

[training]
steps = 10
batch_size = 8
context = 16
warmup_steps = 0
evaluate_every = 5
evaluation_batches = 1
threshold = 4.0
per_head = true

[learning_rates]
muon_clip = [0.5]
"""


@pytest.fixture
def config(tmp_path):
    """MuonClip with the model and training of `stress`, at a modest rate.

    The rate is an input of the compiled program, so that runs share that of `stress`.
    """
    table = STRESS.format(text="unused", output=tmp_path / "output")
    return dataclasses.replace(
        replace_typed(LmConfig(), tomllib.loads(table)),
        optimizers=("muon_clip",),
        learning_rates=LearningRates(muon_clip=(0.05,)),
        checkpoint_every=1,
    )


@pytest.fixture(scope="module")
def text():
    return encode_text(SOURCE, context=16)


@pytest.fixture(scope="module")
def stress(tmp_path_factory):
    """The command line, run with a large rate and a low threshold: output, stdout."""
    directory = tmp_path_factory.mktemp("stress")
    output, path = directory / "output", directory / "own.toml"
    source = directory / "source.txt"
    source.write_text(SOURCE)
    path.write_text(STRESS.format(text=source, output=output))
    written = io.StringIO()
    options = ["lm", "--config", str(path)]
    with contextlib.redirect_stdout(written):
        program.main([*options, "--learning-rates.muon-clip", "0.5", "0.05"])
    return output, written.getvalue()


def _numbers(directory):
    """All results but the wall time."""
    results = read_records(pathlib.Path(directory) / "results.jsonl", RunResult)
    return [dataclasses.replace(result, seconds=0.0) for result in results]


THRESHOLD = 4.0


@pytest.mark.slow
def test_the_clip_holds_the_heads(stress):
    clipped, _ = _numbers(stress[0])
    # The statistic is that of the weights before the step, so what it sees next has
    # grown by one step, of 0.2 · 0.5 · √16 in the spectral norm, where the kernels have
    # 1 to 3. The largest of four seeds is 2.6 times the threshold.
    assert max(clipped.largest_logits) < 3 * THRESHOLD
    assert clipped.steps_above_threshold > 0
    assert np.isfinite(clipped.largest_logits).all()


@pytest.mark.slow
def test_muon_lets_the_heads_grow(stress, config, text):
    rates = LearningRates(muon=(0.5,))
    config = dataclasses.replace(config, optimizers=("muon",), learning_rates=rates)
    run_experiment(LmExperiment(config, text))
    [muon] = _numbers(config.output_dir)
    assert max(muon.largest_logits) > 5 * THRESHOLD
    assert muon.largest_logits[0] == _numbers(stress[0])[0].largest_logits[0]


def test_a_run_writes_table_sample_results_events_figures_and_checkpoints(stress):
    output, written = stress
    report = (output / "report.md").read_text(encoding="utf-8")
    assert written == f"{report}\nWritten to {output}.\n"
    header, _, *rows = report.splitlines()[:4]
    titles = [title.strip() for title in header.split("|")[1:-1]]
    assert titles == [
        "optimizer",
        "learning rate",
        "seeds",
        "validation loss",
        "test loss",
        "largest logit",
        "steps above",
    ]
    assert [row.split("|")[2].strip() for row in rows] == ["0.05", "0.5"]
    assert "Sampled after muon_clip, learning rate 0.05:\n\n    " in report
    page = (output / "report.html").read_text(encoding="utf-8")
    sample = report.partition("learning rate 0.05:\n\n    ")[2].splitlines()[0]
    assert f"<code>{sample}\n" in html.unescape(page)
    assert {path.name for path in output.glob("*.png")} == {
        "curves.png",
        "learning_rates.png",
    }
    lines = (output / "results.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[0])
    assert np.shape(row["max_logits"]) == (10, 1, 4)
    assert len(row["loss"]) == 10
    assert len(row["validation_loss"]) == 2
    assert len(row["sample"]) == 30
    assert len(list((output / "checkpoints").iterdir())) == 2
    assert len(list((output / "tensorboard").glob("*/events.out.*"))) == 2


@pytest.mark.promise(
    "State and checkpoints",
    "A resumed experiment ends as an uninterrupted one",
    on="mlp, lm",
)
def test_an_interrupted_run_learns_the_same_as_a_whole_one(
    stress, config, text, monkeypatch
):
    *_, whole = _numbers(stress[0])
    run_to_first_checkpoint(LmExperiment(config, text), monkeypatch)
    run_experiment(LmExperiment(dataclasses.replace(config, resume=True), text))
    assert _numbers(config.output_dir) == [whole]
    loss = np.array(whole.loss, float)
    assert loss[-1] < 0.8 * loss[0]
    assert len(set(whole.validation_loss)) == 2


@pytest.mark.parametrize(
    ("attention", "feed_forward", "optimizer"),
    [
        ("mha", "gelu", "muon"),
        ("mla", "moe", "muon_clip"),
        pytest.param("mha", "gated", "muon_clip", marks=pytest.mark.slow),
        pytest.param("gqa", "moe", "adamw", marks=pytest.mark.slow),
        pytest.param("mla", "gated", "muon", marks=pytest.mark.slow),
    ],
)
def test_every_kind_has_a_program(config, text, attention, feed_forward, optimizer):
    """Traced, not compiled: a state goes in, a state of the same shapes comes out."""
    model = dataclasses.replace(MODEL, attention=attention, feed_forward=feed_forward)
    experiment = LmExperiment(dataclasses.replace(config, model=model), text)
    settings = experiment.settings(optimizer, 0.02, 0)
    start = jax.eval_shape(lambda: experiment.start(settings))
    end = jax.eval_shape(lambda start: experiment.advance(settings, *start), start)
    assert end == start[1]


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["mha", "gqa", "mla"])
@pytest.mark.parametrize("feed_forward", ["gelu", "gated", "moe"])
def test_every_kind_learns(config, text, attention, feed_forward):
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(
            MODEL, attention=attention, feed_forward=feed_forward
        ),
        training=dataclasses.replace(config.training, threshold=100.0),
    )
    run_experiment(LmExperiment(config, text))
    [result] = _numbers(config.output_dir)
    start, end = np.array([result.loss[0], result.validation_loss[-1]], float)
    assert end < 0.9 * start
    assert len(result.imbalance) == (10 if feed_forward == "moe" else 0)
    # At most all tokens go to one of four experts and as many to another: 4 / 2 - 1.
    imbalance = np.array(result.imbalance, float)
    assert ((imbalance >= 0) & (imbalance <= 1)).all()


@pytest.mark.slow
def test_a_cold_sample_is_the_likeliest_text_within_the_context(config, text):
    training = dataclasses.replace(config.training, context=4)
    config = dataclasses.replace(config, model=MODEL, training=training)
    problem = make_problem(config, text)
    params = initial_params(MODEL, problem.vocabulary, seed=0)
    apply = jax.jit(functools.partial(apply_model, problem.graph))
    expected = [3]
    for _ in range(10):
        logits, _ = apply(params, jnp.asarray([expected[-4:]], jnp.int32))
        expected.append(int(logits[0, -1].argmax()))
    sample = sample_tokens(problem, 10, params, jax.random.key(0), 3, 1e-6)
    assert sample.tolist() == expected[1:]


@pytest.mark.slow
def test_muon_is_muon_clip_where_nothing_is_clipped(config, text):
    """The experiment builds Muon beside the preset: they must not drift apart."""
    quiet = dataclasses.replace(config.training, threshold=1e6)
    rates = LearningRates(muon=(0.05,), muon_clip=(0.05,))
    config = dataclasses.replace(
        config, optimizers=("muon", "muon_clip"), learning_rates=rates, training=quiet
    )
    run_experiment(LmExperiment(config, text))
    muon, clipped = _numbers(config.output_dir)
    assert muon.loss == clipped.loss
    assert muon.max_logits == clipped.max_logits


def test_the_table_counts_logits_and_steps_over_all_seeds(config, text):
    experiment = LmExperiment(config, text)

    def result(seed, *, logits, imbalance=()):
        return RunResult(
            settings=experiment.settings("muon_clip", 0.1, seed),
            loss=(2.0, 1.0),
            validation_loss=(3.0, 1.0),
            test_loss=(2.0, 1.5),
            max_logits=tuple(((x, 1.0),) for x in logits),
            imbalance=imbalance,
            sample="",
            seconds=1.0,
        )

    def row(*results):
        lines = format_table(experiment, group_by_cell(results), {}).splitlines()
        header, _, first = (
            [x.strip() for x in line.split("|")[1:-1]] for line in lines[:3]
        )
        return dict(zip(header, first, strict=True))

    # The threshold is 4.
    whole = row(result(0, logits=(3.0, 5.0)), result(1, logits=(4.5, 6.0)))
    assert whole["largest logit"] == "6"
    assert whole["steps above"] == "3 of 4"
    diverged = row(result(0, logits=(3.0, None), imbalance=(0.5, None)))
    assert diverged["largest logit"] == diverged["imbalance"] == "not finite"
    assert diverged["steps above"] == "1 of 2"
    assert row(result(0, logits=(1.0,), imbalance=(0.5,)))["imbalance"] == "0.5000"
