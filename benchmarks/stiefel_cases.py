"""Points and gradients on which the Stiefel solvers are compared, in float64."""

import importlib.util
import itertools
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
        for name, point, momentum in network_momentum(sizes, steps):
            title = f"{name} momentum {'-'.join(map(str, sizes))}"
            yield Case(title, "momentum", point, momentum)


def network_momentum(
    sizes: tuple[int, ...], steps: int = 40
) -> list[tuple[str, Array, Array]]:
    """Momentum of a ReLU network on scikit-learn's digits, batches of 128.

    The 64 pixels are lifted to sizes[0] random features. Training is momentum-SGD
    (0.95), each kernel [inputs, outputs] put back on the Stiefel manifold by `polar`.
    """
    # Not at the top: scikit-learn is optional, and only this generator needs it.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    rng = np.random.default_rng(0)
    pixels, labels = load_digits(return_X_y=True)
    lifted = np.maximum(pixels @ rng.standard_normal((64, sizes[0])), 0)
    # Unit mean square: orthonormal kernels keep the scale from layer to layer.
    inputs = lifted / np.sqrt(np.mean(lifted**2))
    targets = np.eye(10)[labels]
    shapes = list(itertools.pairwise(sizes))
    kernels = [oracles.stiefel_point(rng, *shape) for shape in shapes]
    momenta = [np.zeros(shape) for shape in shapes]
    for step in range(steps):
        batch = rng.choice(len(inputs), size=128, replace=False)
        gradients = network_gradients(kernels, inputs[batch], targets[batch])
        pairs = zip(momenta, gradients, strict=True)
        momenta = [0.95 * m + 0.05 * g for m, g in pairs]
        if step < steps - 1:
            pairs = zip(kernels, momenta, strict=True)
            kernels = [oracles.polar(w - m) for w, m in pairs]
    names = [f"{m}x{n}" for m, n in shapes]
    return list(zip(names, kernels, momenta, strict=True))


def network_gradients(kernels: list[Array], x: Array, targets: Array) -> list[Array]:
    """Gradients of the mean softmax cross-entropy of a ReLU network without bias."""
    activations = [x]
    for kernel in kernels[:-1]:
        activations.append(np.maximum(activations[-1] @ kernel, 0))
    logits = activations[-1] @ kernels[-1]
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    delta = (weights / weights.sum(axis=1, keepdims=True) - targets) / len(x)
    gradients = []
    for kernel, activation in zip(kernels[::-1], activations[::-1], strict=True):
        gradients.append(activation.T @ delta)
        # A ReLU passes the gradient where its own output is positive.
        delta = (delta @ kernel.T) * (activation > 0)
    return gradients[::-1]
