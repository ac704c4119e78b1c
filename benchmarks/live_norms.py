"""What strict spectral norms cost, and how near they are: the matrices of GPT-2 small.

Run: `.venv/bin/python benchmarks/live_norms.py`. For each shape, number of doublings
and spectrum: the time and the GFLOP of one bound, and by how much it exceeds the norm
(float64). Then all 72 matrices of the twelve layers in one call, by `live_norms`.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg as scipy_linalg

from manifold_optax import linalg
from manifold_optax.modular._bounds._mixed_norm import mixed_norm
from manifold_optax.modular._certificates._live_norms import live_norms

SHAPES = ((768, 768), (768, 3072), (3072, 128))
DOUBLINGS = (2, 3, 4, 5)
LAYERS = 12
# Matrices of a layer: queries, keys, values, output; up; down.
LAYER = ((768, 768),) * 4 + ((768, 3072), (3072, 768))


def gigaflops(shape: tuple[int, int], doublings: int) -> float:
    """Of the Gram matrix and the squarings."""
    short = min(shape)
    return (2 * shape[0] * shape[1] * short + 2 * doublings * short**3) / 1e9


def spectra(shape: tuple[int, int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields Gaussian and orthogonal matrices, and others, with their names."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(shape)
    short = min(shape)
    tall = noise if shape[0] >= shape[1] else noise.T
    frame = np.linalg.qr(tall)[0]
    frame = frame if shape[0] >= shape[1] else frame.T
    yield "Gaussian", noise
    yield "orthogonal", frame
    yield "orthogonal + noise of norm 0.1", frame + 0.1 * noise / norm_of(noise)
    decaying = 1 / np.sqrt(np.arange(1, short + 1))
    yield (
        "values 1/√i",
        (frame * decaying if shape[0] >= shape[1] else decaying[:, None] * frame),
    )


def norm_of(x: np.ndarray) -> float:
    """The spectral norm in float64."""
    x = np.asarray(x, np.float64)
    square = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    last = len(square) - 1
    largest = scipy_linalg.eigvalsh(square, subset_by_index=[last, last])
    return float(np.sqrt(largest[0]))


def milliseconds(call: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
    """Wall time and CPU time of a call that was compiled before: medians."""
    jax.block_until_ready(call())
    wall, used = [], []
    for _ in range(repeats):
        start, before = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        used.append(time.process_time() - before)
        wall.append(time.perf_counter() - start)
    return 1e3 * statistics.median(wall), 1e3 * statistics.median(used)


def one_shape(shape: tuple[int, int]) -> None:
    """Prints the lines of one shape."""
    cases = [(name, np.asarray(x, np.float32)) for name, x in spectra(shape)]
    norms = [norm_of(x) for _, x in cases]
    for doublings in DOUBLINGS:
        bound = jax.jit(
            functools.partial(linalg.spectral_norm_bound, doublings=doublings)
        )
        wall, used = milliseconds(lambda call=bound: call(jnp.asarray(cases[0][1])))
        excess = ", ".join(
            f"{name} {100 * (float(bound(jnp.asarray(x))) / norm - 1):.2f} %"
            for (name, x), norm in zip(cases, norms, strict=True)
        )
        print(
            f"{shape[0]:4d} x {shape[1]:<4d} doublings {doublings}: {wall:6.1f} ms "
            f"(CPU {used:6.1f}), {gigaflops(shape, doublings):5.2f} GFLOP; "
            f"above the norm: {excess}",
            flush=True,
        )


def whole_model() -> None:
    """Prints the line of all matrices."""
    keys = jax.random.split(jax.random.key(0), LAYERS * len(LAYER))
    shapes = LAYER * LAYERS
    arrays = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]

    @jax.jit
    def bounds(arrays: list[jax.Array]) -> list[jax.Array]:
        return live_norms([(x, mixed_norm(x.shape, "io")) for x in arrays])

    start = time.perf_counter()
    jax.block_until_ready(bounds(arrays))
    first = time.perf_counter() - start
    wall, used = milliseconds(lambda: bounds(arrays), repeats=3)
    print(
        f"{len(arrays)} matrices: {wall / 1e3:.2f} s (CPU {used / 1e3:.2f}), the first "
        f"call {first:.1f} s with compilation"
    )


if __name__ == "__main__":
    for shape in SHAPES:
        one_shape(shape)
    whole_model()
