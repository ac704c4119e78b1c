"""A small experiment that trains, to be stopped and resumed by other processes.

`trained.py OPTIONS` runs it as the command line does. Its result holds the digest of
the parameters and of the state of their optimizer at the end.
"""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import optax

import manifold_optax as mo
from manifold_optax.experiments import harness
from manifold_optax.experiments.harness.command_line import main
from manifold_optax.states import state_digest

ROUNDS, STEPS = 40, 50
"""A round takes some milliseconds, so that a signal may well fall into it."""


@dataclasses.dataclass(frozen=True)
class LearningRates(harness.LearningRates):
    muon: tuple[float, ...] = (0.1,)


@dataclasses.dataclass(frozen=True)
class TrainedConfig(harness.GridConfig):
    optimizers: tuple[str, ...] = ("muon",)
    learning_rates: LearningRates = LearningRates()
    seeds: tuple[int, ...] = (0,)
    rounds: int = ROUNDS


@dataclasses.dataclass(frozen=True)
class Settings:
    optimizer: str
    learning_rate: float
    seed: int
    rounds: int
    condition: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
    settings: Settings
    size: float | None
    digest: str
    seconds: float


def optimizer(learning_rate):
    schedule = optax.linear_schedule(1.0, 0.0, ROUNDS * STEPS)
    rate = lambda count: learning_rate * schedule(count)
    return mo.hybrid(mo.normuon(rate), others=optax.adamw(rate))


@jax.jit
def advance(inputs, state):
    tx = optimizer(inputs.learning_rate)

    def step(trainable, number):
        params, opt_state = trainable
        # The noise of a step depends on its number alone, as batches do.
        key = jax.random.fold_in(inputs.key, number)
        noise = jax.random.normal(key, (16, 8))
        gradient = {
            "kernel": params["kernel"] + noise,
            "bias": params["bias"] + noise[0],
        }
        updates, opt_state = tx.update(gradient, opt_state, params)
        return harness.Trainable(optax.apply_updates(params, updates), opt_state), None

    numbers = state.round * STEPS + jnp.arange(STEPS)
    trainable, _ = jax.lax.scan(step, state.trainable, numbers)
    size = optax.tree.norm(trainable.params)
    history = state.history.at[state.round].set(size)
    return harness.RunState(state.round + 1, trainable, history)


class Trained(harness.Experiment[TrainedConfig, Settings, Result]):
    result_type = Result

    def __init__(self, config):
        super().__init__(config, rounds=config.rounds, steps_per_round=STEPS)

    def settings(self, optimizer, learning_rate, seed, condition=""):
        rounds = self.config.rounds
        return Settings(optimizer, learning_rate, seed, rounds, condition)

    def start(self, settings):
        params = {"kernel": jnp.ones((16, 8)), "bias": jnp.ones(8)}
        inputs = harness.run_inputs(settings)
        state = optimizer(settings.learning_rate).init(params)
        history = harness.unknown(settings.rounds)
        return inputs, harness.first_state(params, state, history)

    def advance(self, settings, inputs, state):
        return advance(inputs, state)

    def finish(self, settings, state, seconds):
        size = harness.finite(state.history)[-1]
        return Result(settings, size, state_digest(state.trainable), seconds)

    def metrics(self):
        size = lambda result: result.size
        return [harness.Metric("size", size, lower_is_better=True)]


COMMAND = harness.Command(
    help="small", description="Small.", default=TrainedConfig(), prepare=Trained
)

if __name__ == "__main__":
    # Jobs in the background of a script ignore Ctrl-C, and so would the run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main({"trained": COMMAND})
