"""Points and gradients on which the Stiefel solvers are compared, in float64."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

KINDS = ("gaussian", "power", "low_rank_noise", "rank_deficient")
# From nearly square to 8 times as tall; readouts and hidden layers of small networks.
MIXED_SIZES = (
    *((m, 64) for m in (66, 72, 80, 96, 128, 192, 256)),
    (64, 10),
    (512, 128),
    (512, 256),
    (1024, 128),
)
LARGE_SIZES = ((1024, 256), (3072, 128))
# Two networks: between them, the layers 128x64, 512x128, 512x256, 256x64 and 64x10.
NETWORKS = ((512, 128, 64, 10), (512, 256, 64, 10))


class Case(NamedTuple):
    """A point [m, n] with orthonormal columns and a gradient [m, n]."""

    name: str
    kind: str
    point: Array
    gradient: Array


def _load_oracles() -> Any:
    """`tests/oracles.py`: the generators and the network's gradients are there."""
    path = Path(__file__).parents[1] / "tests" / "oracles.py"
    spec = importlib.util.spec_from_file_location("oracles", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracles = _load_oracles()


def synthetic(kind: str, m: int, n: int) -> Case:
    """Random case; the same at every call."""
    rng = np.random.default_rng([KINDS.index(kind), m, n])
    point = oracles.stiefel_point(rng, m, n)
    return Case(f"{m}x{n} {kind}", kind, point, oracles.gradient(kind, rng, m, n))


def mixed_cases() -> Iterator[Case]:
    """The 44 cases: four kinds at eleven sizes."""
    for m, n in MIXED_SIZES:
        for kind in KINDS:
            yield synthetic(kind, m, n)


def skew_dominant(kind: str, ratio: float, m: int = 256, n: int = 64) -> Case:
    """Case with ||K||_F = ratio ||G_perp||_F, K taken from an unrelated gradient."""
    rng = np.random.default_rng([KINDS.index(kind), m, n, 1])
    point = oracles.stiefel_point(rng, m, n)
    first, second = (oracles.gradient(kind, rng, m, n) for _ in range(2))
    outside = first - point @ (point.T @ first)
    skew = oracles.skew(point.T @ second)
    skew *= ratio * np.linalg.norm(outside) / np.linalg.norm(skew)
    name = f"{m}x{n} {kind} K/G_perp={ratio:g}"
    return Case(name, "skew_dominant", point, point @ skew + outside)


def skew_dominant_cases() -> Iterator[Case]:
    """Four kinds, K as large as the rest, 3 and 10 times as large."""
    for kind in KINDS:
        for ratio in (1.0, 3.0, 10.0):
            yield skew_dominant(kind, ratio)


def momentum_cases(steps: int = 40) -> Iterator[Case]:
    """Momentum of each layer of `NETWORKS` on digits; a layer of both comes twice."""
    for sizes in NETWORKS:
        for name, point, momentum in oracles.momentum_gradients(sizes, steps):
            title = f"{name} momentum {'-'.join(map(str, sizes))}"
            yield Case(title, "momentum", point, momentum)
