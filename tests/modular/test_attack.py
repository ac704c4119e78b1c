"""Derived sensitivities against the largest changes that a search finds.

The search is worth something only if it comes close to a supremum that is known: of
chains of linear maps, of one convolution, of one block of attention.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from jax import Array, numpy as jnp
from numpy.typing import ArrayLike

from manifold_optax.trees import leaves_by_path
from modular.attack import INSIDE, measured_sensitivities, Packed, unit_steps
from modular.layers import attention, convolution, dense, Draw, scanned
from modular.networks import assembled, random_network, RandomNetwork

# Rounding of float32. A change differs from that in float64 by at most 1.4e-6 of it
# (observed, 50 networks at random points), and a search takes the largest of many.
ROUNDING = 1e-5

# What a search may miss of a supremum that is known; 5e-4 of it observed at worst.
MISSED = 0.02

# A quick one of each family, in their order; one scans: 5 s in all. All 200
# run nightly, with a search that is three times as long.
GATE = (55, 6, 14)


@pytest.mark.promise(
    "Certificates",
    "No derived sensitivity is exceeded by an attack",
    on="200 random networks",
)
@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=[] if seed in GATE else [pytest.mark.slow])
        for seed in range(200)
    ],
)
def test_no_sensitivity_is_ever_exceeded(
    seed: int, measured: Callable[..., None]
) -> None:
    network = random_network(seed)
    bounds = derived_sensitivities(network)
    steps, restarts = (60, 3) if seed in GATE else (120, 4)
    found = measured_sensitivities(network, seed, steps, restarts=restarts)
    for path, ratios in found.items():
        bound = np.asarray(bounds[path])
        assert bound.shape == (len(ratios),), (path, network.description)
        # A bound that is infinite would make this test empty.
        assert np.isfinite(bound).all(), (path, network.description)
        within = np.asarray(ratios) <= bound * (1 + ROUNDING)
        assert within.all(), (path, ratios, bound, network.description)
        measured((np.asarray(ratios) / bound).max(), at_most=1 + ROUNDING)


def derived_sensitivities(network: RandomNetwork) -> dict[str, tuple[float, ...]]:
    modular = pytest.importorskip("manifold_optax.modular")
    if not hasattr(modular, "read"):
        pytest.skip("manifold_optax.modular has no reader.")
    module = modular.read(network.forward, network.params, *network.inputs)
    return module.sensitivities("derived")


@pytest.mark.parametrize("seed", range(0, 200, 9))
def test_networks_start_inside_their_balls(seed: int) -> None:
    network = random_network(seed)
    for x in network.inputs:
        assert rms(np.asarray(x, np.float64)).max() <= 1 + ROUNDING
    leaves = leaves_by_path(network.params)
    assert set(leaves) == set(network.axes_by_path)
    for path, leaf in leaves.items():
        axes = network.axes_by_path[path]
        if axes is None:
            assert jnp.abs(leaf).max() <= 1
        else:
            norm = rms_to_rms(leaf, axes.reduction_axis, axes.output_axis)
            assert norm <= 1 + ROUNDING, path


@pytest.mark.parametrize("move_params", [False, True])
def test_the_search_finds_the_supremum_of_a_chain(move_params: bool) -> None:
    draw = drawing(seed=1)
    widths = (6, 4, 8, 3, 5)
    layers = [
        dense(draw, widths[i], widths[i + 1], active=False)
        for i in range(len(widths) - 1)
    ]
    network = assembled("chain", layers, unit_input(draw, (2, widths[0])))
    kernels = [np.asarray(layer.params["kernel"], np.float64) for layer in layers]
    found = measured_sensitivities(network, move_params=move_params, restarts=4)
    for index, (measured,) in enumerate(found.values()):
        # A step changes the output by (what comes before) × (what comes after).
        before, after = product(kernels[:index]), product(kernels[index + 1 :])
        supremum = 1.0 if move_params else before * after
        assert (1 - MISSED) * supremum <= measured <= (1 + ROUNDING) * supremum


def test_the_search_tells_the_slices_of_a_scan_apart() -> None:
    draw = drawing(seed=3)
    layers = [
        dense(draw, 2, 4, active=False),
        scanned(draw, dense(draw, 4, 4, active=False), 3),
    ]
    network = assembled("chain", layers, unit_input(draw, (2, 2)))
    first = np.asarray(layers[0].params["kernel"], np.float64)
    slices = list(np.asarray(layers[1].params["kernel"], np.float64))
    found = measured_sensitivities(network, move_params=False)["layer_1/kernel"]
    assert len(found) == len(slices)
    for index, measured in enumerate(found):
        supremum = product([first, *slices[:index]]) * product(slices[index + 1 :])
        assert (1 - MISSED) * supremum <= measured <= (1 + ROUNDING) * supremum


@pytest.mark.parametrize("dims", [1, 2])
def test_the_search_finds_the_supremum_of_a_convolution(dims: int) -> None:
    draw = drawing(seed=2)
    layer = convolution(draw, dims, (2, 3), "SAME", 1)
    network = assembled("convolution", [layer], unit_input(draw, (1, *[5] * dims, 2)))
    (measured,) = measured_sensitivities(network)["layer_0/kernel"]
    # A window of positions of RMS 1 has an RMS of 1 itself, and so has the result.
    assert 1 - MISSED <= measured <= 1 + ROUNDING


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))]
)
def test_the_search_finds_the_suprema_of_attention(seed: int) -> None:
    draw = drawing(seed)
    layer = attention(draw, 4)
    network = assembled("attention", [layer], unit_input(draw, (1, 3, 4)))
    found = measured_sensitivities(network, seed)
    size, scale = layer.params["query"].shape[-1], float(layer.name.split("*")[1])
    # A unit step of the queries or keys changes logits by at most scale × size, and the
    # weights by as much in the sum of absolute values. Opposite values attain this.
    logits = scale * size
    suprema = {"out": 1.0, "value": 1.0, "query": logits, "key": logits}
    for name, supremum in suprema.items():
        (measured,) = found[f"layer_0/{name}"]
        assert (1 - MISSED) * supremum <= measured <= (1 + ROUNDING) * supremum, name


def test_no_unit_step_leaves_its_ball(rng: np.random.Generator) -> None:
    matrices = rng.normal(size=(50, 36, 8)) * np.logspace(-6, 6, 50)[:, None, None]
    matrices[::2, :, 3:] = 0  # padded
    matrices[1::2] = matrices[1::2, :, :1] * matrices[1::2, :1, :]  # of rank one
    (unit,) = unit_steps(Packed(jnp.asarray(matrices, jnp.float32), jnp.zeros((0, 1))))
    norms = np.linalg.norm(np.asarray(unit.matrices, np.float64), 2, axis=(1, 2))
    # They aim at `INSIDE`, and the decomposition rounds by as much at most.
    assert norms.max() <= 1
    assert norms.min() >= 2 * INSIDE - 1


def drawing(seed: int) -> Draw:
    return Draw(
        rng=np.random.default_rng(seed),
        orthogonal=0.0,
        biases=False,
        bias_size=0.0,
        activations=("relu",),
    )


def unit_input(draw: Draw, shape: tuple[int, ...]) -> Array:
    x = draw.rng.normal(size=shape)
    return jnp.asarray(x / rms(x)[..., None], jnp.float32)


def rms(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(x), axis=-1))


def rms_to_rms(leaf: Array, fan_in: ArrayLike, fan_out: ArrayLike) -> float:
    """The largest norm of the matrices of a leaf; their axes count from the end."""
    ins, outs = np.atleast_1d(fan_in).tolist(), np.atleast_1d(fan_out).tolist()
    order = [axis for axis in range(-leaf.ndim, 0) if axis not in ins + outs]
    matrices = np.transpose(np.asarray(leaf, np.float64), [*order, *ins, *outs])
    rows = math.prod(leaf.shape[axis] for axis in ins)
    columns = math.prod(leaf.shape[axis] for axis in outs)
    norms = np.linalg.norm(matrices.reshape(-1, rows, columns), 2, axis=(1, 2))
    return float(norms.max()) * math.sqrt(rows / columns)


def product(kernels: list[np.ndarray]) -> float:
    """The RMS-to-RMS norm of the maps one after the other; 1 if there are none."""
    if not kernels:
        return 1.0
    matrix = kernels[0]
    for kernel in kernels[1:]:
        matrix = matrix @ kernel
    return float(np.linalg.norm(matrix, 2)) * math.sqrt(
        matrix.shape[0] / matrix.shape[1]
    )
