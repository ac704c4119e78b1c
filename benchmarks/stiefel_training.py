"""Gaps of manifold Muon's direction at every step of small trainings, and near square.

`stiefel_solver.py` prints these tables after its own. All gaps are those that the
library certifies.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import stiefel_cases
import stiefel_gaps
from sklearn.datasets import load_digits
from stepping import head, row

import manifold_optax as mo

# The first has matrices near square, the second with twice as many rows as columns.
NETWORKS = ((64, 80, 64, 10), (64, 128, 64, 10), (64, 256, 64, 10))
BACKENDS = ("eigh", "products")
DECAYS = {"gradients": None, "momentum": 0.95}
STEPS, SEEDS, LEARNING_RATE = 60, 3, 0.1
SMALL_SIZES = ((3, 2), (5, 4), (9, 8), (13, 12), (17, 16), (24, 16), (33, 32), (64, 32))
DRAWS = 8

TRAINING_TEXT = f"""\
ReLU networks without biases on scikit-learn's digits, batches of 128, logits times 8.
Every matrix is on the Stiefel manifold, and takes {STEPS} steps of
`mo.manifold_muon({LEARNING_RATE})`, with {SEEDS} seeds. 'gradients': as they are, which
is the default. 'momentum': `momentum=0.95`. A cell has the largest gap of any step and
seed, in brackets the number of that step, and the median. The gaps are those that the
library certifies. `--training` prints this chapter and the next one alone."""
SMALL_TEXT = f"""\
Largest certified gap of {DRAWS} draws of each of the four kinds of gradient."""


def chain(backend: Any, decay: float | None) -> Any:
    """`mo.manifold_muon` with a choice of the backend, certified."""
    momentum: Any = optax.identity() if decay is None else mo.momentum(decay)
    return optax.named_chain(
        ("momentum", momentum),
        ("direction", mo.dual_ascent_spectral(certify=True, backend=backend)),
        ("scale_by_learning_rate", optax.scale_by_learning_rate(LEARNING_RATE)),
        ("retraction", mo.retract_polar()),
    )


def loss(weights: Any, images: Any, labels: Any) -> Any:
    """Mean cross-entropy."""
    for kernel in weights[:-1]:
        images = jax.nn.relu(images @ kernel)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return cross_entropy(8 * images @ weights[-1], labels).mean()


@functools.partial(jax.jit, static_argnames=("backend", "decay"))
def training(
    weights: Any,
    images: Any,
    labels: Any,
    *,
    backend: str,
    decay: float | None,
) -> Any:
    """Gap of each matrix at each step, `[steps]`; batches are `[steps, 128, …]`."""
    tx = chain(backend, decay)

    def step(carry: Any, batch: Any) -> Any:
        weights, state = carry
        updates, state = tx.update(jax.grad(loss)(weights, *batch), state, weights)
        return (optax.apply_updates(weights, updates), state), state["direction"].gap

    return jax.lax.scan(step, (weights, tx.init(weights)), (images, labels))[1]


def run(
    widths: tuple[int, ...], seed: int, backend: str, decay: float | None
) -> list[np.ndarray]:
    """The gaps of one run."""
    pixels, answers = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(answers), (STEPS, 128))
    keys = jax.random.split(jax.random.key(seed), len(widths) - 1)
    weights = [
        mo.Stiefel().random_point(key, shape)
        for key, shape in zip(keys, itertools.pairwise(widths), strict=True)
    ]
    images = jnp.asarray(pixels[rows] / 16 - 0.3, jnp.float32)
    labels = jnp.asarray(answers[rows], jnp.int32)
    gaps = training(weights, images, labels, backend=backend, decay=decay)
    return [np.asarray(gap) for gap in gaps]


def training_table() -> Iterator[str]:
    """A row for each matrix of each network."""
    columns = [f"{name}, {backend}" for name in DECAYS for backend in BACKENDS]
    yield from head("network", "matrix", *columns)
    for widths in NETWORKS:
        found = [
            np.array([run(widths, seed, backend, decay) for seed in range(SEEDS)])
            for decay in DECAYS.values()
            for backend in BACKENDS
        ]
        for layer in range(len(widths) - 1):
            m, n = sorted(widths[layer : layer + 2], reverse=True)
            cells = [_cell(gaps[:, layer]) for gaps in found]
            yield row(["-".join(map(str, widths)), f"{m}x{n}", *cells])


def _cell(gaps: np.ndarray) -> str:
    step = np.unravel_index(np.argmax(gaps), gaps.shape)[1] + 1
    return f"{gaps.max():.1e} ({step}), {np.median(gaps):.0e}"


def small_table() -> Iterator[str]:
    """A row for each size."""
    yield from head("size", *BACKENDS)
    for m, n in SMALL_SIZES:
        cells = []
        for backend in BACKENDS:
            solve = jax.jit(stiefel_gaps.library(backend, certify=True))
            gaps = [
                float(solve(*(jnp.asarray(x, jnp.float32) for x in problem))[1])
                for problem in _problems(m, n)
            ]
            cells.append(f"{max(gaps):.1e}")
        yield row([f"{m}x{n}", *cells])


def _problems(m: int, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    oracles = stiefel_cases.oracles
    for seed in range(DRAWS):
        for kind in stiefel_cases.KINDS:
            rng = np.random.default_rng([seed, m, n])
            point = oracles.stiefel_point(rng, m, n)
            yield point, oracles.gradient(kind, rng, m, n)


def _after(text: str, table: Callable[[], Iterator[str]]) -> Iterator[str]:
    yield from (text, "")
    yield from table()


CHAPTERS: dict[str, Callable[[], Iterator[str]]] = {
    "Gradients of a training": lambda: _after(TRAINING_TEXT, training_table),
    "Small matrices near square": lambda: _after(SMALL_TEXT, small_table),
}
