import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
import oracles
from transforms.helpers import apply, draw_pair

# Float32 rounding of matrices with singular values near 1.
ROUNDING = 1e-5


def steepest(manifold, norm, point, gradient):
    return apply(mo.steepest, manifold, norm, point=point, update=gradient)


def normalised(x):
    return x / np.linalg.norm(x)


# Each row of the table: manifold, norm, oracle of the direction on the unit manifold.
ROWS = {
    "Euclidean-Frobenius": (mo.Euclidean(), mo.Frobenius(), lambda w, g: normalised(g)),
    "Euclidean-Max": (mo.Euclidean(), mo.Max(), lambda w, g: np.sign(g)),
    "Euclidean-Spectral": (
        mo.Euclidean(),
        mo.Spectral(),
        lambda w, g: oracles.polar(g),
    ),
    "Sphere-Frobenius": (mo.Sphere(2.0), mo.Frobenius(), oracles.sphere_direction),
    "Stiefel-Frobenius": (
        mo.Stiefel(2.0),
        mo.Frobenius(),
        lambda w, g: normalised(oracles.stiefel_tangent(w, g)),
    ),
    "Stiefel-Spectral": (mo.Stiefel(2.0), mo.Spectral(), oracles.square_direction),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_direction_is_that_of_the_oracle(rng, row):
    manifold, norm, oracle = ROWS[row]
    point, gradient = draw_pair(rng, manifold, (4, 4))
    found = steepest(manifold, norm, point, gradient)
    size = manifold.size
    w, g = np.asarray(point, np.float64) / size, np.asarray(gradient, np.float64)
    np.testing.assert_allclose(found, size * oracle(w, g), rtol=0, atol=10 * ROUNDING)
    assert np.sum(found * gradient) > 0


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
@pytest.mark.parametrize("row", ROWS)
def test_the_direction_has_the_length_of_the_manifolds_size(rng, row, shape):
    manifold, norm, _ = ROWS[row]
    point, gradient = draw_pair(rng, manifold, shape)
    found = steepest(manifold, norm, point, gradient)
    length = norm.value(found) / manifold.size
    # The dual solver stays up to a permille inside the unit ball.
    np.testing.assert_allclose(length, 1, atol=1e-3 if row.endswith("ral") else 1e-6)
    doubled = steepest(manifold, norm, point, 1e3 * gradient)
    np.testing.assert_allclose(doubled, found, rtol=0, atol=10 * ROUNDING)


@pytest.mark.parametrize("row", ["Sphere-Frobenius", "Stiefel-Frobenius"])
def test_a_radial_gradient_gives_zero(rng, row):
    manifold, norm, _ = ROWS[row]
    point, _ = draw_pair(rng, manifold, (6, 3))
    found = steepest(manifold, norm, point, 7 * point)
    np.testing.assert_array_equal(found, 0)


def test_updates_keep_their_dtype(rng):
    point, gradient = draw_pair(rng, mo.Sphere(), (6, 3))
    half = gradient.astype(jnp.bfloat16)
    assert steepest(mo.Sphere(), mo.Frobenius(), point, half).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("manifold", "norm"),
    [(mo.Sphere(), mo.Max()), (mo.Stiefel(), mo.Max())],
)
def test_an_unknown_pair_is_an_error_that_prints_the_table(manifold, norm):
    with pytest.raises(ValueError, match="No direction is known for") as caught:
        mo.steepest(manifold, norm)
    for word in (str(manifold), str(norm), "mo.manifold_muon", "hyperspherical"):
        assert word in str(caught.value)


def test_missing_parameters_name_the_pair():
    tx = mo.steepest(mo.Sphere(), mo.Frobenius())
    with pytest.raises(ValueError, match=r"steepest\(Sphere\(radius=1.0\), Frobenius"):
        tx.update({"w": jnp.ones((4, 2))}, tx.init({}))
