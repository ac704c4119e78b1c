"""What `init` says before the first step: leaves and weights that do not fit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import manifold_optax as mo
from transforms.draws import draw

Make = Callable[..., optax.GradientTransformation]

ON_A_MANIFOLD: dict[str, Make] = {
    "retract": lambda manifold, **options: mo.retract(manifold, **options),
    "tangent_project": lambda manifold, **options: mo.tangent_project(
        manifold, **options
    ),
    "steepest": lambda manifold, **options: mo.steepest(
        manifold, mo.Frobenius(), **options
    ),
    "momentum": lambda manifold, **options: mo.momentum(
        0.9, transport=manifold, **options
    ),
}
ON_STIEFEL: dict[str, Make] = ON_A_MANIFOLD | {
    "dual_ascent_spectral": lambda manifold, **options: mo.dual_ascent_spectral(
        manifold, **options
    ),
    "retract_polar": lambda manifold, **options: mo.retract_polar(manifold, **options),
}
ANYWHERE: dict[str, Make] = {
    "orthogonalize": mo.orthogonalize_via_newton_schulz,
    "add_spectral_weight_decay": lambda **options: mo.add_spectral_weight_decay(
        0.1, **options
    ),
    "shrink_norm": lambda **options: mo.shrink_norm(mo.Spectral(), 0.1, **options),
    "scale_by_row_rms": mo.scale_by_row_rms,
    "scale_by_shape": lambda **options: mo.scale_by_shape("rms", **options),
    "scale_by_size": lambda **options: mo.scale_by_size(mo.Sphere(), **options),
    "euclidean": lambda **options: mo.steepest(
        mo.Euclidean(), mo.Spectral(), **options
    ),
}

# On every unit manifold here: a matrix with one column of length 1, three times.
STACK = {"up": {"kernel": jnp.stack([jnp.eye(5, 1)] * 3)}}


@pytest.mark.promise(
    "What is applied",
    "Leaves of three and more axes are never guessed",
    on="every transformation",
)
@pytest.mark.parametrize("name", [*ON_STIEFEL, *ANYWHERE])
def test_three_axes_without_a_word_about_them_are_an_error(name: str) -> None:
    def make(**options: Any) -> optax.GradientTransformation:
        if name in ANYWHERE:
            return ANYWHERE[name](**options)
        return ON_STIEFEL[name](mo.Stiefel(), **options)

    with pytest.raises(ValueError, match=r"'up/kernel' of shape \(3, 5, 1\)") as caught:
        make().init(STACK)
    for word in ("axes=mo.STACKED", "mo.CONV", "mo.HEADS", "mo.roles"):
        assert word in str(caught.value)
    make(axes=mo.STACKED).init(STACK)


@pytest.mark.promise(
    "Faults",
    "A start off the manifold is an error with its residual",
    on="links on Stiefel, concrete weights",
)
@pytest.mark.parametrize("name", ON_STIEFEL)
def test_a_weight_off_its_manifold_is_an_error_with_its_residual(name: str) -> None:
    params = {"on": jnp.eye(4, 2), "off": {"kernel": 2 * jnp.eye(4, 2)}}
    # On Stiefel it is the distance of the squared singular values, 4, from 1.
    message = (
        r"'off/kernel' is not on Stiefel\(.*residual is 3\. Project .* mo\.project"
    )
    with pytest.raises(ValueError, match=message):
        ON_STIEFEL[name](mo.Stiefel()).init(params)
    ON_STIEFEL[name](mo.Stiefel(2.0)).init({"off": params["off"]})


@pytest.mark.parametrize("name", ON_A_MANIFOLD)
def test_one_matrix_of_a_stack_is_enough_for_the_error(name: str) -> None:
    off = {"w": jnp.stack([jnp.eye(5, 1), 3 * jnp.eye(5, 1)])}
    tx = ON_A_MANIFOLD[name](mo.Sphere(), axes=mo.STACKED)
    with pytest.raises(ValueError, match=r"'w' is not on Sphere\(.*residual is 2\."):
        tx.init(off)


@pytest.mark.promise(
    "Faults",
    "A start off the manifold is an error with its residual",
    on="every preset on a manifold, concrete weights",
)
def test_every_preset_on_a_manifold_says_it() -> None:
    off = {"w": 5 * jnp.eye(4, 2)}
    for tx in (
        mo.manifold_muon(0.1),
        mo.hyperspherical_descent(0.1),
        mo.spel(0.1),
        mo.spectral_sphere(0.1),
        mo.hyperball(0.1, manifold=mo.Sphere(2.0)),
    ):
        with pytest.raises(ValueError, match=r"'w' is not on .*Project the parameters"):
            tx.init(off)


def test_weights_that_are_not_known_yet_are_not_checked() -> None:
    off = {"w": 5 * jnp.eye(4, 2)}
    tx = mo.retract(mo.Stiefel())
    assert jax.jit(tx.init)(off) == optax.EmptyState()
    assert jax.eval_shape(tx.init, off) == optax.EmptyState()


def test_weights_that_a_jitted_function_closes_over_are_checked() -> None:
    on, off = {"w": jnp.eye(4, 2)}, {"w": 5 * jnp.eye(4, 2)}
    tx = mo.dual_ascent_spectral()
    found = jax.jit(lambda: tx.init(on))()
    assert found.tangency["w"].shape == ()
    with pytest.raises(ValueError, match="'w' is not on Stiefel"):
        jax.jit(lambda: tx.init(off))()


@pytest.mark.parametrize("manifold", [mo.Stiefel("rms"), mo.Sphere(3.0)], ids=str)
def test_points_rounded_to_bfloat16_are_on_the_manifold(
    rng: np.random.Generator, manifold: mo.Manifold
) -> None:
    params = mo.project({"w": draw(rng, 6, 3)}, manifold)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert float(mo.diagnostics.residual(rounded, manifold)["w"]) > 1e-4
    mo.retract(manifold).init(rounded)


@pytest.mark.parametrize(
    "manifold",
    [mo.Ball(mo.Spectral(), 0.5), mo.Band(0.1, 0.5), mo.Sphere("kept")],
    ids=str,
)
def test_training_may_start_anywhere_where_there_is_a_way_back(
    manifold: mo.Manifold,
) -> None:
    for point in (jnp.zeros((4, 2)), 9 * jnp.ones((4, 2))):
        assert mo.retract(manifold).init({"w": point}) == optax.EmptyState()


def test_weights_that_are_not_finite_are_left_to_the_first_update() -> None:
    mo.retract(mo.Sphere()).init({"w": jnp.full((4, 2), jnp.inf)})


class Model(nnx.Module):
    """An ordinary model: biases, a norm, a fused kernel of three axes."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.up = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.heads = nnx.LinearGeneral(6, (2, 3), rngs=rngs)
        assert self.up.bias is not None
        self.up.bias[...] += 1


def test_project_with_roles_leaves_alone_what_is_no_matrix() -> None:
    model, known = Model(), mo.roles({"heads/kernel": mo.HEADS})
    before = nnx.state(model, nnx.Param)
    project = jax.jit(lambda params: mo.project(params, mo.Stiefel(), axes=known))
    after = project(before)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    paired = jax.tree_util.tree_leaves_with_path(before)
    moved = [
        jax.tree_util.keystr(keys)
        for (keys, old), new in zip(paired, jax.tree.leaves(after), strict=True)
        if (old != new).any()
    ]
    assert len(paired) == 6
    assert len(moved) == 2
    assert all("kernel" in path for path in moved)
    nnx.update(model, after)
    for kernel in (model.up.kernel, model.heads.kernel):
        matrix = np.asarray(kernel[...]).reshape(kernel.shape[0], -1)
        values = np.linalg.svd(matrix, compute_uv=False)
        # Float32 rounding of one polar factor.
        np.testing.assert_allclose(values, 1, atol=1e-6)
    assert model.up.bias is not None
    np.testing.assert_array_equal(model.up.bias[...], 1)


def test_project_without_roles_refuses_a_bias_and_names_the_remedy() -> None:
    params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"'bias' of shape \(2,\).*axes=mo\.roles\(\)"):
        mo.project(params, mo.Sphere())


@pytest.mark.promise(
    "Faults",
    "A reflection is projected to a reflection; a zero matrix cannot be projected, and "
    "`init` says so",
    on="Stiefel",
)
@pytest.mark.slow
def test_a_reflection_stays_one_and_a_zero_matrix_is_an_error() -> None:
    reflection = jnp.diag(jnp.asarray([1.0, 1.0, -1.0]))
    found = mo.project({"w": 2 * reflection}, mo.Stiefel())
    # Some float32 units.
    np.testing.assert_allclose(found["w"], reflection, rtol=0, atol=1e-6)
    zero = mo.project({"w": jnp.zeros((4, 2))}, mo.Stiefel())
    with pytest.raises(ValueError, match=r"A zero matrix .* cannot be projected"):
        mo.retract(mo.Stiefel()).init(zero)
