"""Symmetric products: the bits of plain ones, and the kernel that may compute them.

Pallas's interpreter runs the kernels here, with small tiles. Programs for GPUs and TPUs
are lowered, not run.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from manifold_optax import linalg
from manifold_optax.linalg import _symmetric_kernel as kernels
from manifold_optax.linalg._reductions import gram
from manifold_optax.linalg._symmetric import commuting_product, gram_product

EPS = float(np.finfo(np.float32).eps)
HIGHEST = jax.lax.Precision.HIGHEST
PLATFORMS = {"cuda": kernels.cuda_product, "tpu": kernels.tpu_product}
CALLS = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}
# A kernel for every product, run on a CPU.
EVERY = {"min_size": 1, "min_flops": 0.0}
INTERPRETED = linalg.symmetric_kernel(**EVERY, interpret=True)


def gaussian(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def commuting_pair(size, count):
    """Two polynomials of a symmetric matrix of norm 1."""
    x = gaussian((count, size, size))
    p = x + np.swapaxes(x, 1, 2)
    p = p / np.linalg.norm(p, 2, axis=(1, 2))[:, None, None]
    q = 2 * p - p @ p
    return p, (q + np.swapaxes(q, 1, 2)) / 2


def kernel_calls(function, *arguments):
    # A new function: JAX would not trace one again that it has traced.
    fresh = jax.make_jaxpr(lambda *arrays: function(*arrays))
    return str(fresh(*arguments)).count("pallas_call")


def lowered(function, platform, *arguments):
    """The program for this platform, and the names of its custom calls."""
    allowed = [export.DisabledSafetyCheck.custom_call(x) for x in CALLS.values()]
    exported = export.export(
        jax.jit(function), platforms=[platform], disabled_checks=allowed
    )
    program = exported(*arguments).mlir_module()
    return program, set(re.findall(r"custom_call @([\w.$]+)", program))


def test_without_the_kernel_the_products_are_plain():
    x = jnp.asarray(gaussian((2, 9, 5)))
    p, q = map(jnp.asarray, commuting_pair(6, 2))

    @jax.jit
    def both(x, p, q):
        seam = [
            gram(x),
            gram_product(x, -1, precision=None),
            commuting_product(p, q, p, alpha=2.0, beta=3.0),
        ]
        square = jnp.matmul(x.mT, x, precision=HIGHEST)
        plain = [
            (square + square.mT) / 2,
            jnp.matmul(x, x.mT),
            3.0 * p + 2.0 * jnp.matmul(p, q, precision=HIGHEST),
        ]
        return seam, plain

    seam, plain = both(x, p, q)
    for found, expected in zip(seam, plain, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tiles", range(1, 8))
def test_the_programs_compute_each_tile_of_the_triangle_once(tiles):
    triangle = kernels.Triangle(tiles)
    rows, columns = np.indices(triangle.grid)
    i, j = (np.asarray(x).ravel() for x in triangle.tile_of(rows, columns))
    assert len(i) == tiles * (tiles + 1) // 2
    expected = {(r, c) for r in range(tiles) for c in range(r + 1)}
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    ("size", "length", "dtype", "tiling"),
    # One tile, an odd and an even number of them; with and without padding.
    [
        (5, 20, "float32", (8, 8)),
        (13, 9, "float32", (8, 4)),
        (24, 16, "float32", (8, 16)),
        (32, 10, "float32", (8, 8)),
        (20, 24, "bfloat16", (8, 8)),
        (20, 24, "float16", (8, 8)),
    ],
)
def test_the_kernel_is_the_product_and_symmetric(platform, size, length, dtype, tiling):
    x = jnp.asarray(gaussian((2, size, length)), dtype)
    addend = gram(jnp.asarray(gaussian((2, 3, size), seed=1)))
    product = functools.partial(
        PLATFORMS[platform],
        epilogue=kernels.Epilogue(0.5, 2.0),
        precision=HIGHEST,
        dtype=jnp.float32,
        tiling=kernels.Tiling(*tiling),
        interpret=True,
    )
    found = np.asarray(jax.jit(product)(x, x, addend))
    np.testing.assert_array_equal(found, np.swapaxes(found, 1, 2))
    wide = np.asarray(x, np.float64)
    squares = np.einsum("bik,bjk->bij", wide, wide)
    expected = 0.5 * squares + 2 * np.asarray(addend, np.float64)
    # Narrow operands are exact in float32, and so is the sum of up to 24 of their
    # products but for the rounding of float32, on the scale of the diagonal (seen: 1.0
    # eps of it).
    atol = 6 * EPS * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_kernel_multiplies_commuting_factors(platform):
    p, q = commuting_pair(20, 2)
    product = functools.partial(
        PLATFORMS[platform],
        epilogue=kernels.Epilogue(),
        precision=HIGHEST,
        dtype=jnp.float32,
        tiling=kernels.Tiling(8, 8),
        interpret=True,
    )
    found = np.asarray(jax.jit(product)(jnp.asarray(p), jnp.asarray(q), None))
    np.testing.assert_array_equal(found, np.swapaxes(found, 1, 2))
    # 20 products of numbers below 1 (seen: 0.3 eps).
    np.testing.assert_allclose(found, p.astype(float) @ q, rtol=0, atol=4 * EPS)


def test_the_gate_counts_rows_and_operations_of_a_batch():
    squares = jax.ShapeDtypeStruct((8, 16, 16), jnp.float32)
    one = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    of_a_batch = {"min_size": 16, "min_flops": 8 * 2 * 16.0**3}
    kernel = linalg.symmetric_kernel(**of_a_batch)(gram)
    assert kernel_calls(gram, squares) == 0
    assert kernel_calls(kernel, one) == 0
    # One for a GPU, one for a TPU.
    assert kernel_calls(kernel, squares) == 2
    assert kernel_calls(jax.vmap(kernel), squares) == 2
    assert kernel_calls(linalg.symmetric_kernel(min_size=17)(gram), squares) == 0
    assert kernel_calls(linalg.symmetric_kernel()(gram), squares) == 0


def test_float64_stays_plain(x64):
    x = jax.ShapeDtypeStruct((16, 16), jnp.float64)
    assert kernel_calls(INTERPRETED(gram), x) == 0


def test_the_kernel_is_off_again_behind_its_context():
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)

    def fails():
        with linalg.symmetric_kernel(**EVERY):
            assert kernel_calls(gram, x) == 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert kernel_calls(gram, x) == 0


@pytest.mark.parametrize("wrong", [{"min_size": 0}, {"min_flops": -1.0}])
def test_an_impossible_gate_is_an_error(wrong):
    with pytest.raises(ValueError, match="min_size ≥ 1 and min_flops ≥ 0"):
        linalg.symmetric_kernel(**wrong).__enter__()


def test_a_program_for_a_cpu_stays_as_it_was():
    x = jnp.asarray(gaussian((2, 9, 5)))
    kernel = linalg.symmetric_kernel(**EVERY)(gram)
    assert kernel_calls(kernel, x) == 2
    np.testing.assert_array_equal(jax.jit(kernel)(x), jax.jit(gram)(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrap", "form"),
    [
        *(("plain", "direct"), ("plain", "gram")),
        *(("vmap", "direct"), ("vmap", "gram")),
        # With split rows the small products of "gram" are in float64 on a CPU.
        ("shard_map", "direct"),
    ],
)
def test_newton_schulz_by_the_kernel(wrap, form):
    x = jnp.asarray(gaussian((3, 24, 10)))
    plain = functools.partial(linalg.newton_schulz, form=form)
    kernel = INTERPRETED(plain)
    if wrap == "vmap":
        kernel = jax.vmap(kernel)
    if wrap == "shard_map":
        mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
        split = jax.sharding.PartitionSpec(None, "rows")
        rows = functools.partial(plain, axis_name="rows")
        # Pallas's interpreter does not know over which mesh axes its arrays vary.
        kernel = jax.shard_map(
            INTERPRETED(rows),
            mesh=mesh,
            in_specs=split,
            out_specs=split,
            check_vma=False,
        )
    assert kernel_calls(kernel, x) > 0
    found, expected = jax.jit(kernel)(x), jax.jit(plain)(x)
    # The rounding of five rows that are steep at 0, of both (seen: 16 eps).
    np.testing.assert_allclose(found, expected, rtol=0, atol=80 * EPS)


@pytest.mark.slow
@pytest.mark.parametrize("function", [linalg.newton_schulz, linalg.polar])
def test_derivatives_are_those_of_the_plain_product(function):
    x = jnp.asarray(gaussian((2, 12, 6)))
    along = jnp.asarray(gaussian((2, 12, 6), seed=1))

    def forward(function):
        return lambda x: jax.jvp(function, (x,), (along,))[1]

    def backward(function):
        return jax.grad(lambda x: jnp.sum(along * function(x)))

    modes = [forward] if function is linalg.polar else [forward, backward]
    for mode in modes:
        found = jax.jit(mode(INTERPRETED(function)))(x)
        expected = jax.jit(mode(function))(x)
        # The rounding of a slope of 485 (seen: 90 eps of the largest entry).
        atol = 400 * EPS * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_programs_for_accelerators_hold_the_kernel(platform, dtype):
    x = jax.ShapeDtypeStruct((2, 300, 200), jnp.float32)
    kernel = linalg.symmetric_kernel(**EVERY)(
        functools.partial(linalg.newton_schulz, compute_dtype=jnp.dtype(dtype))
    )
    _, calls = lowered(kernel, platform, x)
    # Mosaic does not load float16.
    missing = platform == "tpu" and dtype == "float16"
    assert calls == (set() if missing else {CALLS[platform]})
    assert lowered(linalg.newton_schulz, platform, x)[1] == set()


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
def test_programs_of_shard_map_hold_the_kernel(platform):
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("rows", None)
    rows = functools.partial(linalg.newton_schulz, form="direct", axis_name="rows")
    kernel = jax.shard_map(
        linalg.symmetric_kernel(**EVERY)(rows),
        mesh=mesh,
        in_specs=split,
        out_specs=split,
    )
    x = jax.ShapeDtypeStruct((300, 200), jnp.float32)
    assert lowered(kernel, platform, x)[1] == {CALLS[platform]}
