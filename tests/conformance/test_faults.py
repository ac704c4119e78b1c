"""Gradients of any scale, rank and precision give finite steps, each as it is promised.

More faults stand in `test_leaves.py`, `test_odd_trees.py`, `test_any_leaf.py` and
`test_wrappers.py`.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from conformance.case import Case, KERNELS, ROUNDING, Tree
from conformance.steps import gradients, on_manifold, parameters
from conformance.table import CASES, each_case
from conformance.test_leaves import first_update

LINKS = {
    "add_spectral_weight_decay",
    "balance_router_bias",
    "momentum",
    "monitor",
    "qk_clip",
    "retract",
    "retract_polar",
    "scale_by_modular_budget",
    "scale_by_row_rms",
    "scale_by_shape",
    "scale_by_size",
    "shrink_norm",
    "tangent_project",
}
"""Links that pass the gradient on as long as it came, or compare it with its past; all
others give directions."""

HALF = {"bfloat16": 2**-8, "float16": 2**-11}
"""Rounding of an entry, relative to it."""


def matrices(tree: Tree) -> Tree:
    return {name: tree[name] for name in KERNELS}


def gives_directions(case: Case) -> bool:
    return case.public_name not in LINKS


def each_half(*in_the_gate: tuple[str, str]) -> pytest.MarkDecorator:
    """Every case in both half precisions, all but these nightly."""
    return pytest.mark.parametrize(
        ("case", "dtype"),
        [
            pytest.param(
                case,
                dtype,
                id=f"{case.name}-{dtype}",
                marks=() if (case.name, dtype) in in_the_gate else (pytest.mark.slow,),
            )
            for case in CASES
            for dtype in HALF
        ],
    )


@pytest.mark.promise(
    "Faults",
    "In half precision a zero gradient moves a parameter by its decay and rounding",
    on="every transformation; bfloat16, float16 but for AdamW's vectors",
)
@each_half(("steepest-Euclidean-Frobenius", "float16"))
def test_a_zero_gradient_in_half_precision_moves_nothing(
    case: Case, dtype: str
) -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), parameters(case))
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = case.make()
    updates, _ = jax.jit(tx.update)(zero, tx.init(params), params)
    chex.assert_trees_all_equal_dtypes(updates, params)
    # float16 cannot hold the epsilon of AdamW, which has the vectors of whole models.
    ours = matrices(updates) if dtype == "float16" else updates
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours))
    if case.decays:
        return
    rate = case.numbers.get("learning_rate", 0.0) * case.numbers.get("weight_decay", 0)
    for update, point in zip(
        jax.tree.leaves(matrices(updates)),
        jax.tree.leaves(matrices(params)),
        strict=True,
    ):
        point = np.asarray(point, np.float64)
        # A retraction takes back the rounding of entries below 4, and is rounded.
        np.testing.assert_allclose(
            np.asarray(update, np.float64),
            -rate * point,
            rtol=4 * HALF[dtype],
            atol=8 * HALF[dtype] if case.retracts else 0,
        )


@pytest.mark.promise(
    "Faults",
    "A step by a gradient of any scale is the step by it at scale 1",
    on="every transformation, float32 gradients with entries of 1e-30, 1e30, 1e37",
)
@each_case(gives_directions)
def test_the_scale_of_a_gradient_does_not_matter(
    case: Case, measured: Callable[..., None]
) -> None:
    gradient = gradients(case)
    expected, _ = first_update(case, gradient)
    # Entries below 3, so that the largest is normal: below 3.4e38.
    for scale in (1e-30, 1e30, 1e37):
        scaled = jax.tree.map(
            lambda leaf, scale=scale: leaf * np.float32(scale), matrices(gradient)
        )
        found, _ = first_update(case, gradient | scaled)
        off = jax.tree.map(
            lambda x, y: float(jnp.abs(x - y).max()),
            matrices(found),
            matrices(expected),
        )
        # The input is rounded anew.
        measured(max(jax.tree.leaves(off)), at_most=ROUNDING)


@pytest.mark.promise(
    "Faults",
    "Gradients below the normal numbers give finite steps",
    on="every transformation, float32 gradients with entries of 1e-41",
)
@each_case()
def test_subnormal_gradients_give_finite_steps(case: Case) -> None:
    gradient = jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf, np.float64) * 1e-41, jnp.float32),
        gradients(case),
    )
    updates, state = first_update(case, gradient)
    for leaf in jax.tree.leaves((updates, state)):
        assert np.isfinite(leaf).all()
    # Directions have a length; what is below the normal numbers may count as zero.
    chex.assert_trees_all_equal_shapes(updates, gradient)


SINGULAR = {
    "rank one": (1.0, 0.0),
    "equal singular values": (1.0, 1.0),
    "condition 1e6": (1.0, 1e-6),
    "below rounding": (1.0, 1e-12),
}


def singular(case: Case, values: tuple[float, ...]) -> Tree:
    """The gradients of the case with other singular values; vectors as they are."""

    def replaced(leaf: jax.Array) -> jax.Array:
        left, _, right = np.linalg.svd(leaf, full_matrices=False)
        return jnp.asarray(left * np.asarray(values, np.float32) @ right)

    gradient = gradients(case)
    return gradient | jax.tree.map(replaced, matrices(gradient))


@pytest.mark.promise(
    "Faults",
    "Gradients of rank one, of equal singular values and of condition 1e6 or 1e12 give "
    "finite steps; points stay on their manifold",
    on="every transformation, float32",
)
@each_case()
def test_singular_gradients_give_finite_steps(case: Case) -> None:
    params = parameters(case)
    for name, values in SINGULAR.items():
        updates, state = first_update(case, singular(case, values))
        for leaf in jax.tree.leaves((updates, state)):
            assert np.isfinite(leaf).all(), name
        if case.retracts and not isinstance(case.arguments.get("manifold"), mo.Ball):
            moved = optax.apply_updates(params, updates)
            landed = jax.tree.map(functools.partial(on_manifold, case.manifold), moved)
            # A few float32 units of entries of order 1.
            chex.assert_trees_all_close(moved, landed, rtol=0, atol=2e-6)


@pytest.mark.promise(
    "Faults",
    "Muon's direction has the singular values that its schedule documents",
    on="gradients of rank one, equal singular values, condition 1e6 and 1e12",
)
@each_case(lambda case: case.public_name == "orthogonalize_via_newton_schulz")
def test_singular_values_stay_in_the_image_of_the_schedule(case: Case) -> None:
    for values in SINGULAR.values():
        updates, _ = first_update(case, singular(case, values))
        for leaf in jax.tree.leaves(updates):
            found = np.linalg.svd(np.asarray(leaf, np.float64), compute_uv=False)
            kept = np.asarray(values) >= 1e-2
            # The image of [0.01, 1] by Jordan's schedule, which the tests of the
            # coefficients pin; what is smaller may be anything below its maximum.
            assert (found <= 1.21).all()
            assert (found[..., kept] >= 0.68).all()


@pytest.mark.promise(
    "State and checkpoints",
    "Gradients of another dtype than the parameters change no dtype of the state",
    on="every transformation; bfloat16, float16 and float32",
)
@each_half(("muon", "float16"), ("manifold_muon", "float16"), ("hyperball", "bfloat16"))
def test_float32_gradients_of_parameters_in_half_precision(
    case: Case, dtype: str
) -> None:
    tx = case.make()
    wide = jax.eval_shape(lambda: gradients(case))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), wide)
    if case.extra and "max_logits" in case.extra:
        pytest.skip("The statistics decide about its own dtype.")
    state = jax.eval_shape(tx.init, params)
    updates, new = jax.eval_shape(tx.update, wide, state, params)
    if not case.whole_model:
        # AdamW of `hybrid`'s vectors follows its gradients, as Optax has it.
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    if case.retracts:
        chex.assert_trees_all_equal_dtypes(updates, params)
