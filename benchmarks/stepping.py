"""Whole optimizer steps: compiled, timed in turn, and the tables of both."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import dot_flops
import jax
import jax.numpy as jnp
import optax

import manifold_optax as mo

Times = Mapping[str, list[float]]


class Step:
    """A compiled update and apply that keeps parameters and state, as training does.

    Both are donated: a step writes over the memory of the last one. The gradient stays
    the same, which no optimizer's cost depends on.
    """

    def __init__(self, tx: optax.GradientTransformation, params: Any, gradients: Any):
        def step(params: Any, state: Any, gradients: Any) -> Any:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        # Copies, because the caller's own must outlive the donation.
        self.params = jax.tree.map(jnp.array, params)
        self.state = jax.jit(tx.init)(self.params)
        self.gradients = gradients
        start = time.process_time()
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(
            self.params, self.state, gradients
        )
        self.compiled: Any = lowered.compile()
        self.compile_seconds = time.process_time() - start

    def __call__(self) -> Any:
        """One step; the new parameters."""
        self.params, self.state = self.compiled(self.params, self.state, self.gradients)
        return self.params

    @property
    def instructions(self) -> int:
        """Number of instructions of the compiled program."""
        return sum(" = " in line for line in self.compiled.as_text().splitlines())

    @property
    def dots(self) -> int:
        """Number of products in the text of the compiled program, loops taken once."""
        return self.compiled.as_text().count(" dot(")

    @property
    def temporary_bytes(self) -> int:
        """Memory beyond arguments and results, on each device."""
        return self.compiled.memory_analysis().temp_size_in_bytes


def update_flops(tx: optax.GradientTransformation, tree: Any) -> int:
    """FLOPs of the products of an update, as this process's device runs it."""
    state = jax.eval_shape(tx.init, tree)
    # All accelerators have the same; without a choice the program has both.
    platform = "cpu" if jax.default_backend() == "cpu" else "cuda"
    with mo.programs.arithmetic_for(platform):
        return dot_flops.dot_flops(tx.update, tree, state, tree)


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - start


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    pairs: int,
    *,
    clock: Callable[[Callable[[], Any]], float] = cpu_seconds,
) -> dict[str, list[float]]:
    """Seconds of each run, measured in turn `pairs` times after a warm-up."""
    for run in runs.values():
        clock(run)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(pairs):
        for name, run in runs.items():
            times[name].append(clock(run))
    return times


def ratio(times: Times, name: str, baseline: str) -> str:
    """Median and quartiles of the ratios of the pairs; a dash without a baseline."""
    if baseline not in times:
        return "–"
    ratios = [a / b for a, b in zip(times[name], times[baseline], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def median_ratio(times: Times, name: str, baseline: str) -> float:
    """Median of the ratios of the pairs."""
    pairs = zip(times[name], times[baseline], strict=True)
    return statistics.median(a / b for a, b in pairs)


def milliseconds(times: Times, name: str) -> str:
    """Median, to three digits."""
    return f"{statistics.median(times[name]) * 1e3:.3g}"


def row(cells: Iterable[object]) -> str:
    """Row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(*names: str) -> list[str]:
    """Head of a Markdown table."""
    return [row(names), "|" + "---|" * len(names)]
