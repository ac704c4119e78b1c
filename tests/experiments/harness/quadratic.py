"""A tiny experiment: gradient descent to a random point, at one of two speeds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from manifold_optax.experiments import harness


@dataclasses.dataclass(frozen=True)
class LearningRates(harness.LearningRates):
    slow: tuple[float, ...] = (0.1,)
    fast: tuple[float, ...] = (0.1,)


@dataclasses.dataclass(frozen=True)
class QuadraticConfig(harness.GridConfig):
    optimizers: tuple[str, ...] = ("slow", "fast")
    learning_rates: LearningRates = LearningRates()
    rounds: int = 4
    size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        harness.require_at_least("rounds", self.rounds, 1)


@dataclasses.dataclass(frozen=True)
class Settings:
    optimizer: str
    learning_rate: float
    seed: int
    rounds: int
    size: int
    condition: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
    settings: Settings
    distance: tuple[float | None, ...]
    seconds: float


@functools.partial(jax.jit, static_argnums=0)
def advance(speed, inputs, state):
    point, target = state.trainable.params
    point = point - speed * inputs.learning_rate * (point - target)
    distance = jnp.linalg.norm(point - target)
    return harness.RunState(
        round=state.round + 1,
        trainable=harness.Trainable((point, target), ()),
        history=state.history.at[state.round].set(distance),
    )


class Quadratic(harness.Experiment[QuadraticConfig, Settings, Result]):
    result_type = Result

    def __init__(self, config):
        super().__init__(config, rounds=config.rounds, steps_per_round=1)

    def settings(self, optimizer, learning_rate, seed, condition=""):
        sizes = (self.config.rounds, self.config.size)
        return Settings(optimizer, learning_rate, seed, *sizes, condition)

    def start(self, settings):
        target = jax.random.normal(jax.random.key(settings.seed), (settings.size,))
        params = (jnp.zeros(settings.size), target)
        history = harness.unknown(settings.rounds)
        return harness.run_inputs(settings), harness.first_state(params, (), history)

    def advance(self, settings, inputs, state):
        return advance({"slow": 1, "fast": 2}[settings.optimizer], inputs, state)

    def finish(self, settings, state, seconds):
        return Result(settings, harness.finite(state.history), seconds)

    def metrics(self):
        last = lambda result: result.distance[-1]
        return [harness.Metric("distance", last, lower_is_better=True)]

    def curves(self, result):
        return {"distance": enumerate(result.distance)}

    def timed_round(self, optimizer):
        inputs, state = self.start(self.settings(optimizer, 0.1, 0))
        return lambda: advance(1, inputs, state)


class Conditional(Quadratic):
    """The quadratic in two sizes; the second has a rate of its own."""

    @property
    def conditions(self):
        return ("size=3", "size=4")

    def learning_rates_of(self, optimizer, condition):
        rates = super().learning_rates_of(optimizer, condition)
        return (*rates, 0.4) if condition == "size=4" else rates

    def settings(self, optimizer, learning_rate, seed, condition=""):
        settings = super().settings(optimizer, learning_rate, seed, condition)
        size = int(condition.partition("=")[2] or self.config.size)
        return dataclasses.replace(settings, size=size)


class Batched(harness.BatchedExperiment[QuadraticConfig, Settings, Result]):
    """The quadratic, all runs of an optimizer by formula at once."""

    result_type = Result

    def __init__(self, config):
        super().__init__(config, rounds=1, steps_per_round=config.rounds)
        self.batches = []

    settings = Quadratic.settings
    metrics = Quadratic.metrics

    def run_many(self, settings_list):
        self.batches.append([(s.learning_rate, s.seed) for s in settings_list])
        return [
            Result(s, (s.learning_rate + s.seed,), seconds=0.0) for s in settings_list
        ]


COMMAND = harness.Command(
    help="tiny", description="Tiny.", default=QuadraticConfig(), prepare=Quadratic
)
