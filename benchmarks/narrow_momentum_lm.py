"""Final loss of the language model with Muon's momentum in four, three, two, one bytes.

    .venv/bin/python benchmarks/narrow_momentum_lm.py --text FILE \
        --table docs/performance.md

prints, and writes where told, a Markdown table: validation loss by seed and dtype, and
its mean relative to that of float32. The model and the training are the defaults of the
`lm` experiment, at the best rate of Muon there, with `--steps` steps. A seed draws
weights and batches; it is the same for all dtypes. `FILE` is any text; tiny Shakespeare
in `docs/performance.md`.
"""

import argparse
import dataclasses
import pathlib
import statistics

import jax
import numpy as np
import optax
from document import print_all, write_chapter
from stepping import head, row

import manifold_optax as mo
from manifold_optax.experiments.lm.config import (
    LearningRates,
    LmConfig,
    TrainingConfig,
)
from manifold_optax.experiments.lm.experiment import LmExperiment
from manifold_optax.experiments.lm.optimizers import model_roles
from manifold_optax.experiments.lm.train import learning_rate_schedule, Problem

CHAPTER = "Loss with momentum in fewer bytes"

TEXT = """\
Validation loss in nats per character at the end of the `lm` experiment with Muon, by
the seed that draws weights and batches; {steps} steps. FILE is tiny Shakespeare
(1,115,394 characters, A. Karpathy, char-rnn)."""

DTYPES = {
    "float32": None,
    "bfloat16+int8": "bfloat16+int8",
    "bfloat16": "bfloat16",
    "int8": "int8",
}
SEEDS = (43, 44, 45)
"""The fresh seeds of `configs/lm_shakespeare.toml`."""

DECAY, SECOND_DECAY = 0.95, 0.95
"""Those of the experiment, of Muon and of AdamW beside it."""


class NarrowProblem(Problem):
    """The problem of the experiment, whose optimizers are named by a dtype."""

    def optimizer(
        self, name: str, peak: jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """Returns Muon as in the experiment, with its momentum in the dtype `name`."""
        rate = learning_rate_schedule(self.training, peak)
        roles = model_roles(self.model, per_head=False)
        decay = self.training.weight_decay
        muon = mo.muon(
            rate,
            momentum=mo.Average(DECAY, DTYPES[name]),
            nesterov=False,
            weight_decay=decay,
            scale="rms",
            axes=roles,
        )
        adamw = optax.adamw(rate, b2=SECOND_DECAY, weight_decay=decay)
        return mo.hybrid(muon, others=adamw, labels=roles)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", help="a text file in UTF-8")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--table", type=pathlib.Path, help="Markdown file to write to")
    arguments = parser.parse_args()
    every = arguments.steps // 2
    training = TrainingConfig(
        steps=arguments.steps,
        warmup_steps=arguments.steps // 10,
        evaluate_every=every,
    )
    config = LmConfig(text=arguments.text, training=training, sample_characters=0)
    experiment = LmExperiment.prepare(config)
    known = {
        field.name: getattr(experiment.problem, field.name)
        for field in dataclasses.fields(Problem)
    }
    experiment.problem = NarrowProblem(**known)
    losses = {name: final_losses(experiment, name) for name in DTYPES}
    lines = [f"jax {jax.__version__}, optax {optax.__version__}, CPU. Printed by"]
    command = ".venv/bin/python benchmarks/narrow_momentum_lm.py --text FILE"
    lines += [f"\n```\n{command}\n```\n", TEXT.format(steps=arguments.steps), ""]
    lines += head("momentum", *(f"seed {seed}" for seed in SEEDS), "mean, relative")
    whole = statistics.mean(losses["float32"])
    for name, found in losses.items():
        share = f"{statistics.mean(found) / whole - 1:+.2%}"
        lines.append(row((f"`{name}`", *(f"{x:.4f}" for x in found), share)))
    print_all(lines)
    if arguments.table is not None:
        write_chapter(arguments.table, "Performance", CHAPTER, lines)


def final_losses(experiment: LmExperiment, name: str) -> list[float]:
    """Validation losses at the end, by seed."""
    rate = LearningRates().muon[0]
    found = []
    for seed in SEEDS:
        settings = experiment.settings(name, rate, seed)
        inputs, state = experiment.start(settings)
        for _ in range(experiment.config.training.rounds):
            state = experiment.advance(settings, inputs, state)
        found.append(float(np.asarray(state.history.validation_loss)[-1]))
    return found


if __name__ == "__main__":
    main()
