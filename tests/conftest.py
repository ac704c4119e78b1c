"""Fixtures of all tests. One BLAS thread: the oracles' small SVDs are faster so."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import gc
import itertools
import pathlib
from collections.abc import Callable, Iterator

import jax
import jaxtyping
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


# A compiled program takes six memory maps, and Linux gives a process 65,530 by default
# (vm.max_map_count). Beyond that it ends in a segmentation fault.
_MANY_MAPS = 50_000
_MAPS = pathlib.Path("/proc/self/maps")
_tests_run = itertools.count(1)


def pytest_runtest_teardown() -> None:
    """Lets go of compiled programs before there are too many for one process."""
    often_enough = next(_tests_run) % 8 == 0
    if often_enough and _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def on_accelerators() -> Iterator[None]:
    """The arithmetic of accelerators on the CPU: products alone, without float64.

    It is chosen where a function is traced, so a test must compile its own.
    """
    # Not above: the hook that checks types at run time must be there first.
    from manifold_optax.programs import arithmetic_for  # noqa: PLC0415

    with arithmetic_for("tpu"):
        yield


@pytest.fixture
def unhooked() -> Iterator[None]:
    """Without run-time type checks, as users run: for tests of our own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Records how well a promise is held, and fails where it is not.

    The figure stands in docs/guarantees.md: see `promises.py`.
    """

    def record(value: float, *, at_most: float) -> None:
        text = f"{float(value):.2g} (at most {at_most:.3g})"
        record_property("measured", text)
        assert value <= at_most, text

    return record
