from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import manifold_optax as mo
from manifold_optax.initializers import on_manifold, sphere, stiefel

# Float32 rounding of points of size 1, and bfloat16 rounding of their entries.
FLOORS = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 2e-3}

SHAPES = [(6, 3), (2, 3, 6)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 3.0, "rms"])
def test_singular_values_are_all_equal(key, shape, scale):
    point = stiefel(scale, axes=mo.STACKED)(key, shape)
    assert point.shape == shape
    size = (shape[-1] / shape[-2]) ** 0.5 if scale == "rms" else scale
    values = np.linalg.svd(np.asarray(point), compute_uv=False)
    np.testing.assert_allclose(values, size, rtol=FLOORS["float32"])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [1.0, 3.0, "rms"])
def test_norms_are_all_equal(key, shape, radius):
    point = sphere(radius, axes=mo.STACKED)(key, shape)
    size = (shape[-1] / shape[-2]) ** 0.5 if radius == "rms" else radius
    norms = np.linalg.norm(np.asarray(point), axis=(-2, -1))
    np.testing.assert_allclose(norms, size, rtol=FLOORS["float32"])


@pytest.mark.parametrize("dtype", FLOORS)
@pytest.mark.parametrize("manifold", [mo.Stiefel(), mo.Sphere(2.0)], ids=str)
def test_points_have_the_dtype_asked_for(key, manifold, dtype):
    point = on_manifold(manifold)(key, (6, 3), dtype)
    assert point.dtype == dtype
    assert manifold.residual(point) < FLOORS[dtype]
    # Drawn and projected in float32, whatever comes out.
    wide = on_manifold(manifold)(key, (6, 3))
    np.testing.assert_array_equal(point, wide.astype(dtype))


def test_keys_decide_the_point(key):
    init = stiefel()
    np.testing.assert_array_equal(init(key, (6, 3)), init(key, (6, 3)))
    other = init(jax.random.key(1), (6, 3))
    assert np.abs(other - init(key, (6, 3))).max() > 0.1


def test_matrices_of_a_batch_differ(key):
    point = stiefel(axes=mo.STACKED)(key, (2, 6, 3))
    assert np.abs(point[0] - point[1]).max() > 0.1


def test_axes_say_which_part_is_a_matrix(key):
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=-1)
    point = np.asarray(stiefel("rms", axes=axes)(key, (6, 2, 3)))
    for head in range(2):
        values = np.linalg.svd(point[:, head], compute_uv=False)
        np.testing.assert_allclose(values, (3 / 6) ** 0.5, rtol=FLOORS["float32"])


@pytest.mark.slow
def test_blocks_of_a_split_are_points_of_their_own(key):
    point = np.asarray(stiefel(axes=mo.Split((3, 2)))(key, (6, 5)))
    for block in np.split(point, [3], axis=1):
        values = np.linalg.svd(block, compute_uv=False)
        np.testing.assert_allclose(values, 1, rtol=FLOORS["float32"])


def test_the_base_is_projected(key):
    base = jax.nn.initializers.lecun_normal()
    found = on_manifold(mo.Stiefel(), base)(key, (6, 3))
    left, _, right = np.linalg.svd(base(key, (6, 3)), full_matrices=False)
    # Float32 rounding, times the condition number of the base, below 10.
    np.testing.assert_allclose(found, left @ right, rtol=0, atol=1e-5)


def test_a_kept_norm_is_that_of_the_base(key):
    base = jax.nn.initializers.normal(3.0)
    found = on_manifold(mo.Sphere("kept"), base)(key, (6, 3))
    np.testing.assert_allclose(found, base(key, (6, 3)), rtol=FLOORS["float32"])


def test_vectors_are_refused_by_name_of_the_remedy(key, unhooked):
    with pytest.raises(ValueError, match="at least 2 axes"):
        stiefel()(key, (6,))


def test_flax_takes_an_initializer(key):
    layer = linen.Dense(3, kernel_init=stiefel("rms"))
    variables: Any = layer.init(key, jnp.ones((1, 6)))
    kernel = variables["params"]["kernel"]
    # Rows mean fan-out for a manifold; a Flax kernel is [fan_in, fan_out].
    assert mo.Stiefel("rms").residual(kernel.T) < FLOORS["float32"]
