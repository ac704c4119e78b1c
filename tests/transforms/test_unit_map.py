"""What the transformations on a manifold share: sizes, and views made once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from manifold_optax.matrices import _blocks
from manifold_optax.transforms import _leaves

PARAMS = {"a": jnp.eye(6, 4), "b": jnp.stack([jnp.eye(4, 6)] * 3), "absent": None}
UPDATES = jax.tree.map(jnp.ones_like, PARAMS)

SPHERE = mo.Sphere(2.0)
ON_MANIFOLDS = {
    "retract": mo.retract(SPHERE, axes=mo.STACKED),
    "steepest": mo.steepest(SPHERE, mo.Frobenius(), axes=mo.STACKED),
    "tangent_project": mo.tangent_project(SPHERE, axes=mo.STACKED),
    "dual_ascent_spectral": mo.dual_ascent_spectral(steps=0, axes=mo.STACKED),
    "scale_by_size": mo.scale_by_size(SPHERE, axes=mo.STACKED),
}


@pytest.fixture
def viewed(monkeypatch):
    """The paths of which views are made."""
    paths = []
    views_of = _blocks.views_of

    def counted(leaf, path, axes):
        paths.append(path)
        return views_of(leaf, path, axes)

    monkeypatch.setattr(_blocks, "views_of", counted)
    return paths


@pytest.mark.parametrize("name", ON_MANIFOLDS)
def test_an_update_makes_the_views_of_a_leaf_once(viewed, name):
    tx = ON_MANIFOLDS[name]
    state = tx.init(PARAMS)
    viewed.clear()
    jax.eval_shape(tx.update, UPDATES, state, PARAMS)
    assert sorted(viewed) == ["a", "b"]


def test_projecting_makes_the_views_of_a_leaf_once(viewed):
    jax.eval_shape(lambda params: mo.project(params, SPHERE, axes=mo.STACKED), PARAMS)
    assert sorted(viewed) == ["a", "b"]


def test_a_kernel_works_in_units_of_the_size(rng):
    points = {"w": jnp.asarray(rng.standard_normal((6, 4)), jnp.float32)}
    updates = {"w": jnp.asarray(rng.standard_normal((6, 4)), jnp.bfloat16)}
    kernel = lambda update, point, axis_name=None: (point, jnp.sum(update))
    run = _leaves.unit_map(
        kernel,
        mo.Sphere(4.0),
        axes=mo.STACKED,
        placement=None,
        returns=("matrix", "number"),
    )
    back, total = run((updates,), (points,), like=points)
    # Divided by 4 and multiplied by it: both exact, but for the dtype of the updates.
    wanted = np.asarray(points["w"].astype(jnp.bfloat16), np.float32)
    np.testing.assert_allclose(back["w"], wanted, rtol=2**-8)
    assert back["w"].dtype == jnp.float32
    np.testing.assert_allclose(total["w"], np.sum(np.asarray(updates["w"], np.float32)))
    unit, _ = run((updates,), (points,), like=None)
    np.testing.assert_allclose(unit["w"].astype(jnp.float32), wanted / 4, rtol=2**-8)
    wider, _ = run((points,), (points,), like=points, factor=0.5)
    np.testing.assert_array_equal(wider["w"], points["w"])
