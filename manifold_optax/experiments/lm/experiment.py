"""The `lm` experiment, as the harness runs it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from matplotlib.figure import Figure

from manifold_optax.experiments.harness import (
    Cell,
    Curves,
    Experiment,
    finite,
    format_spread,
    Metric,
    RunInputs,
    RunState,
)
from manifold_optax.experiments.lm.config import LmConfig, OptimizerName
from manifold_optax.experiments.lm.figures import draw_curves
from manifold_optax.experiments.lm.results import loss_metrics, RunResult, RunSettings
from manifold_optax.experiments.lm.sample import sample_tokens
from manifold_optax.experiments.lm.text import load_text, Text
from manifold_optax.experiments.lm.train import (
    advance,
    make_problem,
    start_run,
)

# No step has this number, so that the sample's key is none of theirs.
_SAMPLE_KEY = 2**31 - 1


class LmExperiment(Experiment[LmConfig, RunSettings, RunResult]):
    """One language model on one text; a round is `training.evaluate_every` steps.

    Args:
        config: The settings.
        text: The text they name.
    """

    result_type = RunResult

    def __init__(self, config: LmConfig, text: Text):
        super().__init__(
            config,
            rounds=config.training.rounds,
            steps_per_round=config.training.evaluate_every,
        )
        self.text = text
        self.problem = make_problem(config, text)
        self.parts = jax.device_put(text.parts)

    @classmethod
    def prepare(cls, config: LmConfig) -> "LmExperiment":
        """Makes the experiment that a configuration describes, with its text."""
        return cls(config, load_text(config.text, context=config.training.context))

    def settings(
        self, optimizer: str, learning_rate: float, seed: int, condition: str = ""
    ) -> RunSettings:
        """Returns everything that decides the numbers of one run."""
        return RunSettings(
            digest=self.text.digest,
            optimizer=cast("OptimizerName", optimizer),
            learning_rate=learning_rate,
            seed=seed,
            model=self.config.model,
            training=self.config.training,
            sample_characters=self.config.sample_characters,
            temperature=self.config.temperature,
            condition=condition,
        )

    def start(self, settings: RunSettings) -> tuple[RunInputs, RunState]:
        """Draws the initial weights of a run."""
        return start_run(self.problem, settings)

    def advance(
        self, settings: RunSettings, inputs: RunInputs, state: RunState
    ) -> RunState:
        """Trains up to the next evaluation and evaluates."""
        return advance(self.problem, settings.optimizer, inputs, self.parts, state)

    def finish(
        self, settings: RunSettings, state: RunState, seconds: float
    ) -> RunResult:
        """Returns what a finished run measured, and a sample."""
        history = state.history
        has_experts = settings.model.feed_forward == "moe"
        return RunResult(
            settings=settings,
            loss=finite(history.steps.loss),
            validation_loss=finite(history.validation_loss),
            test_loss=finite(history.test_loss),
            max_logits=tuple(
                tuple(finite(layer) for layer in step)
                for step in np.asarray(history.steps.max_logits)
            ),
            imbalance=finite(history.steps.imbalance) if has_experts else (),
            sample=self._sample(settings, state.trainable.params),
            seconds=seconds,
        )

    def metrics(self) -> Sequence[Metric[RunResult]]:
        """Losses at the end; the test part has no say in the best rates."""
        return loss_metrics()

    @property
    def legend(self) -> str:
        """How to read the table."""
        return (
            "Losses are in nats per character at the end of training. Rows are ranked "
            "by the loss on the validation part; the test part selects nothing. The "
            "largest logit is that of any head in any step of any seed, before a clip. "
            "Steps above are those in which it exceeded the threshold, "
            f"{self.config.training.threshold:g}: with MuonClip, a clip fired."
        )

    def columns(self, cell: Cell[RunResult]) -> Mapping[str, str]:
        """Returns the logits, and the load of the experts where there are any."""
        steps = sum(len(result.loss) for result in cell.results)
        above = sum(result.steps_above_threshold for result in cell.results)
        columns = {
            "largest logit": _largest_logit(cell),
            "steps above": f"{above} of {steps}",
        }
        if any(result.imbalance for result in cell.results):
            late = [result.late_imbalance for result in cell.results]
            known = not any(map(math.isnan, late))
            columns["imbalance"] = (
                format_spread(late, digits=4) if known else "not finite"
            )
        return columns

    def curves(self, result: RunResult) -> Curves:
        """Returns the losses, the imbalance, and the largest logit of each head."""
        training, model = result.settings.training, result.settings.model
        every = training.evaluate_every
        evaluated = range(every, training.steps + 1, every)
        heads = {
            f"max_logits/layer{layer}_head{head}": enumerate(
                step[layer][head] for step in result.max_logits
            )
            for layer in range(model.layers)
            for head in range(model.heads)
        }
        return {
            "loss/train": enumerate(result.loss),
            "loss/validation": zip(evaluated, result.validation_loss, strict=True),
            "loss/test": zip(evaluated, result.test_loss, strict=True),
            "imbalance": enumerate(result.imbalance),
            **heads,
        }

    def figures(self, best: Mapping[str, Cell[RunResult]]) -> Mapping[str, Figure]:
        """Draws the losses and the largest logits over the steps."""
        return {"curves": draw_curves(best, self.color)}

    def appendix(self, best: Mapping[str, Cell[RunResult]]) -> Sequence[str]:
        """Returns one sample per optimizer: at its best rate, with the first seed."""
        lines: list[str] = []
        for optimizer, cell in best.items():
            if sample := cell.results[0].sample:
                rate = f"{cell.learning_rate:g}"
                lines += ["", f"Sampled after {optimizer}, learning rate {rate}:", ""]
                # Four spaces make Markdown show the characters as they are.
                lines += ["    " + line for line in sample.split("\n")]
        return lines

    def timed_round(self, optimizer: str) -> Callable[[], object]:
        """Returns a round, its evaluation included."""
        settings = self.settings(optimizer, learning_rate=1e-3, seed=0)
        inputs, state = self.start(settings)
        return lambda: self.advance(settings, inputs, state)

    def _sample(self, settings: RunSettings, params: Any) -> str:
        """Draws a text from the trained model."""
        tokens = sample_tokens(
            self.problem,
            settings.sample_characters,
            params,
            jax.random.fold_in(jax.random.key(settings.seed), _SAMPLE_KEY),
            # A line begins behind the end of another, where the text has lines.
            max(0, self.text.characters.find("\n")),
            settings.temperature,
        )
        return self.text.decode(np.asarray(tokens))


def _largest_logit(cell: Cell[RunResult]) -> str:
    largest = [x for result in cell.results for x in result.largest_logits]
    if any(map(math.isnan, largest)):
        return "not finite"
    return f"{max(largest):.4g}"
