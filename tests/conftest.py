"""Fixtures of all tests. One BLAS thread: the oracles' small SVDs are faster so."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Callable, Iterator

import jax
import jaxtyping
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


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
def products_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic of accelerators on the CPU: matrix products alone.

    It is chosen where a function is traced, so a test must compile its own.
    """
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


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
