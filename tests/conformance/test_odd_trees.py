"""Trees that are odd: leaves of another kind, static fields, none at all, twice one.

And what becomes of an update that is itself differentiated.
"""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from conformance.case import Case, ROUNDING
from conformance.steps import gradients, parameters, update_of
from conformance.table import each_case
from conformance.test_leaves import takes_any_tree


@pytest.mark.promise(
    "Faults",
    "Leaves of another kind are errors that name them: bool, complex, random keys, "
    "eight bits",
    on="every transformation of matrices",
)
@each_case(takes_any_tree)
def test_leaves_that_cannot_be_optimized_are_refused_by_name(
    case: Case, unhooked: None
) -> None:
    tx = case.make()
    for leaf, kind in (
        (jnp.ones((8, 2), bool), "bool"),
        (jnp.ones((8, 2), jnp.complex64), "complex64"),
        (jax.random.split(jax.random.key(0), (8, 2)), "key<fry>"),
        (jnp.ones((8, 2), jnp.float8_e4m3fn), "float8_e4m3fn"),
    ):
        params = parameters(case) | {"first": {"kernel": leaf}}
        with pytest.raises(TypeError, match=f"'first/kernel' has dtype {kind}"):
            tx.update(params, tx.init(params), params)


@pytest.mark.promise(
    "Faults",
    "An empty tree is updated to an empty tree",
    on="every transformation of matrices",
)
@each_case(takes_any_tree)
def test_an_empty_tree_stays_empty(case: Case) -> None:
    tx = case.make()
    updates, _ = tx.update({}, tx.init({}), {})
    assert updates == {}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["kernel", "masked", "nothing"],
    meta_fields=["activation"],
)
@dataclasses.dataclass(frozen=True)
class Layer:
    """As Equinox and Flax write one: with a field that is no array."""

    kernel: Any
    masked: Any = dataclasses.field(default_factory=optax.MaskedNode)
    nothing: None = None
    activation: str = "tanh"


@pytest.mark.promise(
    "Faults",
    "Static fields, `MaskedNode`, `None` and shapes without arrays pass through",
    on="every transformation of matrices",
)
@each_case(takes_any_tree, compiles=True)
def test_static_fields_and_masked_nodes_pass_through(case: Case) -> None:
    tx = case.make()
    model = {"first": Layer(jax.ShapeDtypeStruct((8, 2), jnp.float32))}
    state = jax.eval_shape(tx.init, model)
    updates, new = jax.eval_shape(tx.update, model, state, model)
    assert updates == model
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


@pytest.mark.promise(
    "Faults",
    "One array under two names is two parameters with equal updates",
    on="every transformation of matrices",
)
@each_case(takes_any_tree, compiles=True)
def test_a_leaf_that_stands_twice_is_updated_twice(case: Case) -> None:
    params, gradient = parameters(case), gradients(case)
    for tree in (params, gradient):
        shared = tree["first"]["kernel"]
        tree["third"]["kernel"] = jnp.stack([shared, shared])
    updates, _ = update_of(case)(gradient, case.make().init(params), params)
    once, again = updates["third"]["kernel"]
    np.testing.assert_array_equal(once, again)
    # A leaf of its own may stand elsewhere in the program.
    np.testing.assert_allclose(
        updates["first"]["kernel"], once, rtol=ROUNDING, atol=ROUNDING
    )


def _along(function: Any, x: jax.Array, tangent: jax.Array) -> float:
    """The derivative along a tangent, by a central difference in float64."""
    step = 1e-5
    return float(function(x + step * tangent) - function(x - step * tangent)) / (
        2 * step
    )


@pytest.mark.promise(
    "Wrappers and frameworks",
    "Derivatives go through a step of Muon, in reverse mode and under `jax.checkpoint`",
    on="`muon`, float64, against differences",
)
@pytest.mark.slow
def test_derivatives_go_through_a_step_of_muon(x64: None) -> None:
    rng = np.random.default_rng(0)
    point, gradient, weights, tangent = jnp.asarray(rng.standard_normal((4, 6, 3)))
    tx: Any = mo.muon(0.1, weight_decay=0.1)
    params = {"w": point}

    @jax.jit
    def value(gradient: jax.Array) -> jax.Array:
        updates: Any
        updates, _ = tx.update({"w": gradient}, tx.init(params), params)
        return jnp.sum(weights * updates["w"])

    expected = _along(value, gradient, tangent)
    for function in (value, jax.checkpoint(value)):
        found = jnp.sum(jax.grad(function)(gradient) * tangent)
        # Second order in the step of the difference, 1e-10, times steep polynomials.
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.promise(
    "Wrappers and frameworks",
    "Where a solver stops by itself, JAX says that reverse mode does not work",
    on="`manifold_muon`",
)
@pytest.mark.slow
def test_reverse_mode_through_a_solver_is_an_error() -> None:
    params = {"w": jnp.eye(6, 3)}
    tx: Any = mo.manifold_muon(0.1)

    def value(gradient: jax.Array) -> jax.Array:
        updates: Any
        updates, _ = tx.update({"w": gradient}, tx.init(params), params)
        return jnp.sum(updates["w"])

    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(value)(jnp.ones((6, 3)))
