"""Time per training step, measured side by side."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import jax


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Median time per training step, in seconds.

    Attributes:
        wall: Wall time.
        cpu: Processor time of the process, over all its threads.
    """

    wall: float
    cpu: float


def measure_steps(
    programs: Mapping[str, Callable[[], object]], *, steps: int, rounds: int
) -> dict[str, StepTime]:
    """Times the steps of several programs.

    Each round runs every program once, so that what else the machine does falls on all
    of them. The first call of each compiles it and is not counted.

    Args:
        programs: Functions that run `steps` steps and return arrays, by name.
        steps: Steps per call.
        rounds: Calls to time per program, at least one.

    Returns:
        The median over the rounds of the time per step, by name.
    """
    for run in programs.values():
        jax.block_until_ready(run())
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            times[name].append(_time(run))
    return {
        name: StepTime(
            wall=statistics.median(wall for wall, _ in pairs) / steps,
            cpu=statistics.median(cpu for _, cpu in pairs) / steps,
        )
        for name, pairs in times.items()
    }


def _time(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - wall, time.process_time() - cpu
