"""Wall times on an accelerator, and the time that a table may take."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from stepping import row

ROUNDS = 7
"""Rounds of several calls each: enough for quartiles."""

_UNSUPPORTED = (jax.errors.JaxRuntimeError, ValueError, NotImplementedError)
"""What a device raises that has too little memory, or does not know an operation."""


@dataclasses.dataclass
class Deadline:
    """The seconds of a table; rows that would start later are left out, and named."""

    seconds: float
    """From now on."""

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        """Seconds until the end, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def rows(self, name: str, make: Callable[[], Iterable[str]]) -> Iterator[str]:
        """The rows of `make`, or one that says why they are missing.

        Args:
            name: the first cell of the row that stands for missing ones.
            make: makes the rows; called only while time is left.
        """
        if not self.left:
            yield row([name, f"left out: the {self.seconds:.0f} s are over"])
            return
        try:
            yield from make()
        except _UNSUPPORTED as error:
            # One cell: the message may have lines and bars.
            reason = str(error).replace("|", "/").split("\n")[0][:100]
            yield row([name, f"failed: {type(error).__name__}: {reason}"])


def rounds_of(
    run: Callable[[], Any],
    wait: Callable[[Any], Any] = jax.block_until_ready,
    *,
    seconds: float,
) -> list[float]:
    """Seconds of a call in each round.

    A round has as many calls as fit into its part of `seconds`, so that the wait at its
    end does not count where a call is short. Two calls come before: the first loads
    and tunes, the second says how long one takes.
    """
    wait(run())
    start = time.perf_counter()
    wait(run())
    single = time.perf_counter() - start
    calls = max(1, min(100, int(seconds / ROUNDS / single)))
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls - 1):
            run()
        wait(run())
        found.append((time.perf_counter() - start) / calls)
    return found


def spread(seconds: list[float]) -> str:
    """Median and quartiles in milliseconds."""
    # Inclusive: the quartiles of a few rounds stay within what was measured.
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive")
    low, middle, high = (1e3 * x for x in quartiles)
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def median_of(run: Callable[[], Any], *, seconds: float) -> float:
    """Median seconds of a call."""
    return statistics.median(rounds_of(run, seconds=seconds))


def peak_rate(size: int, *, seconds: float) -> float:
    """FLOPs per second of one bfloat16 product of `size` x `size`."""
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    return 2 * size**3 / median_of(lambda: product(x, x), seconds=seconds)


def peak_bytes() -> int | None:
    """Most bytes of the first device in use since the process began, where it counts.

    No backend sets it back to zero.
    """
    statistics_of = jax.devices()[0].memory_stats() or {}
    return statistics_of.get("peak_bytes_in_use")


def held_bytes(compiled: Any) -> int:
    """Bytes that a compiled program holds while it runs, by `memory_analysis`.

    Arguments, results and temporaries; donated arguments count once.
    """
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return total + memory.temp_size_in_bytes - memory.alias_size_in_bytes
