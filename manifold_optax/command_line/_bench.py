"""`manifold-optax bench`: what a step costs on this machine."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import manifold_optax as mo
from manifold_optax._typing import ArrayTree
from manifold_optax.command_line._answer import Answer, CommandError, Options, Table

_LEARNING_RATE = 1e-3
_REFERENCE = "optax.adamw"


@dataclasses.dataclass(frozen=True)
class Step:
    """What one optimizer costs.

    Attributes:
        milliseconds: of an update and its application, the median of the rounds.
        ratio: to the step of AdamW in the same round, the median.
        quartiles: of these ratios.
        state_bytes: of the state, per parameter.
    """

    milliseconds: float
    ratio: float
    quartiles: tuple[float, float]
    state_bytes: float


@dataclasses.dataclass(frozen=True)
class Measured(Answer):
    """Steps of several optimizers on one set of matrices."""

    device: str
    parameters: int
    matrices: int
    steps: Mapping[str, Step]

    def __str__(self) -> str:
        """A sentence and a table."""
        rows = [
            (
                name,
                f"{step.milliseconds:.3g}",
                f"{step.ratio:.2f} [{step.quartiles[0]:.2f}, {step.quartiles[1]:.2f}]",
                f"{step.state_bytes:.1f}",
            )
            for name, step in self.steps.items()
        ]
        header = ("step", "ms", "of AdamW's, median [quartiles]", "state, bytes each")
        return (
            f"{self.matrices} matrices and their vectors, {self.parameters:,} "
            f"parameters, float32, on {self.device}.\n\n{Table(header, rows)}"
        )

    def as_json(self) -> Any:
        """The same."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Bench(Options):
    """Measures the steps of AdamW, Optax's Muon and ours on matrices of transformers.

    A step is an update and its application, compiled, with donated buffers. Every round
    runs each of them once, so that other load falls on all; the ratios are what to look
    at. Forward and backward pass are not in it.
    """

    width: int = 256
    """of the model; each layer has four matrices of width x width and two four times as
    long"""
    layers: int = 2
    """number of layers"""
    rounds: int = 7
    """how often each step is timed"""

    def answer(self) -> Measured:
        """Measures.

        Raises:
            CommandError: for a number that is not positive.
        """
        for name in ("width", "layers", "rounds"):
            if getattr(self, name) < 1:
                raise CommandError(
                    f"--{name} must be at least 1, got {getattr(self, name)}"
                )
        params = _parameters(self.width, self.layers)
        number = sum(leaf.size for leaf in jax.tree.leaves(params))
        states = {
            name: jax.eval_shape(tx.init, params) for name, tx in _optimizers().items()
        }
        times = _times(params, self.rounds)
        steps = {name: _step(times, name, states[name], number) for name in times}
        device = jax.devices()[0]
        return Measured(
            f"{device.platform} ({device.device_kind})", number, 6 * self.layers, steps
        )


def _optimizers() -> dict[str, optax.GradientTransformation]:
    others = optax.adamw(_LEARNING_RATE)
    return {
        _REFERENCE: others,
        "optax.contrib.muon": optax.contrib.muon(_LEARNING_RATE),
        "mo.hybrid(mo.muon)": mo.hybrid(mo.muon(_LEARNING_RATE), others=others),
        "mo.hybrid(mo.manifold_muon)": mo.hybrid(
            mo.manifold_muon(_LEARNING_RATE), others=others
        ),
    }


def _parameters(width: int, layers: int) -> ArrayTree:
    """Kernels on the Stiefel manifold, which every one of the steps accepts."""
    shapes = {
        **dict.fromkeys(("query", "key", "value", "out"), (width, width)),
        "up": (width, 4 * width),
        "down": (4 * width, width),
    }
    keys = iter(jax.random.split(jax.random.key(0), layers * len(shapes)))
    draw = mo.initializers.stiefel()
    return {
        f"layer{layer}": {
            name: {"kernel": draw(next(keys), shape), "bias": jnp.zeros(shape[1])}
            for name, shape in shapes.items()
        }
        for layer in range(layers)
    }


def _times(params: ArrayTree, rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round; the first round compiles and is left out."""
    runs = {name: _runner(tx, params) for name, tx in _optimizers().items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def _runner(
    tx: optax.GradientTransformation, params: ArrayTree
) -> Callable[[], ArrayTree]:
    """A function that takes the next step each time it is called."""
    step = jax.jit(
        lambda updates, state, params: _applied(tx, updates, state, params),
        donate_argnums=(1, 2),
    )
    updates = jax.tree.map(
        lambda x: 1e-3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params
    )
    held = [tx.init(params), jax.tree.map(jnp.array, params)]

    def run() -> ArrayTree:
        held[1], held[0] = step(updates, *held)
        return held[1]

    return run


def _applied(
    tx: optax.GradientTransformation, updates: ArrayTree, state: Any, params: ArrayTree
) -> tuple[ArrayTree, Any]:
    updates, state = tx.update(updates, state, params)
    return optax.apply_updates(params, updates), state


def _step(
    times: Mapping[str, list[float]], name: str, state: Any, parameters: int
) -> Step:
    ratios = sorted(
        seconds / reference
        for seconds, reference in zip(times[name], times[_REFERENCE], strict=True)
    )
    size = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
    )
    last = len(ratios) - 1
    return Step(
        1e3 * statistics.median(times[name]),
        statistics.median(ratios),
        (ratios[round(last / 4)], ratios[round(3 * last / 4)]),
        size / parameters,
    )


OPTIONS = Bench
