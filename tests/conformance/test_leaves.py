"""Odd leaves: zero, not finite, thin, empty, absent, and those that are refused."""

import functools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conformance.case import Case, ROUNDING, Tree
from conformance.steps import filled, gradients, on_manifold, parameters, update_of
from conformance.table import each_case

ODD = {
    "row": {"kernel": (1, 5)},
    "column": {"kernel": (5, 1)},
    "empty": {"kernel": (0, 3)},
    "flat": {"kernel": (3, 0)},
    "frozen": {"kernel": (5, 1)},
}


def leaves_under(tree: Tree, part: str) -> list[Any]:
    """Leaves in whose path `part` occurs, and those of states alike."""
    paired, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [leaf for keys, leaf in paired if part in jax.tree_util.keystr(keys)]


def first_update(case: Case, gradient: Tree) -> tuple[Tree, Tree]:
    params = parameters(case)
    return update_of(case)(gradient, case.make().init(params), params)


@pytest.mark.promise(
    "Faults",
    "A zero gradient moves a parameter by its weight decay alone; a point "
    "stays on its manifold",
    on="every transformation, float32",
)
@each_case()
def test_a_zero_gradient_moves_nothing_but_what_decays(case: Case) -> None:
    params = parameters(case)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = first_update(case, zero)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
    if case.decays:
        return
    rate = case.numbers.get("learning_rate", 0.0) * case.numbers.get("weight_decay", 0)
    for name in ("first", "second", "third"):
        update, point = updates[name]["kernel"], params[name]["kernel"]
        # A retraction corrects rounding; a decay is a product of three, each rounded
        # to 6e-8; all others must give exactly 0.
        np.testing.assert_allclose(
            update, -rate * point, rtol=2e-7, atol=ROUNDING if case.retracts else 0
        )


@pytest.mark.promise(
    "Faults",
    "A NaN or infinite entry shows in the update of its own matrix and in no other",
    on="every transformation",
)
@each_case()
def test_a_nan_stays_in_its_own_matrix(case: Case) -> None:
    good = gradients(case)
    bad = jax.tree.map(lambda leaf: leaf, good)
    bad["first"]["kernel"] = good["first"]["kernel"].at[3, 1].set(jnp.nan)
    bad["third"]["kernel"] = good["third"]["kernel"].at[1, 0, 0].set(jnp.inf)
    found, expected = first_update(case, bad), first_update(case, good)
    assert not np.isfinite(found[0]["first"]["kernel"]).all()
    for part in ("second", "fourth"):
        chex.assert_trees_all_equal(
            leaves_under(found, part), leaves_under(expected, part)
        )
    stacks = found[0]["third"]["kernel"], expected[0]["third"]["kernel"]
    np.testing.assert_array_equal(stacks[0][0], stacks[1][0])
    assert not np.isfinite(stacks[0][1]).all()


@functools.cache
def odd_step(case: Case) -> tuple[Tree, Tree, Tree, Tree]:
    """Params, updates, the state before and after, for odd leaves."""
    tx = case.make()
    shapes = dict(ODD)
    if case.whole_model:
        # Optax's own `masked` needs one structure of updates and parameters.
        del shapes["frozen"]
    points = filled(shapes, 0)
    params = jax.tree.map(functools.partial(on_manifold, case.manifold), points)
    params["nothing"] = {"kernel": None}
    gradient = filled(shapes, 1) | {"nothing": {"kernel": None}}
    if "frozen" in gradient:
        gradient["frozen"] = {"kernel": None}
    state = tx.init(params)
    updates, new = jax.jit(tx.update)(gradient, state, params)
    return params, updates, state, new


def takes_any_tree(case: Case) -> bool:
    """Not one that names leaves of the table's model, and lets all others through."""
    return not case.names_leaves


ROWS_AND_EMPTY = pytest.mark.promise(
    "Faults",
    "Single rows and columns are matrices; empty and absent leaves pass through",
    on="every transformation of matrices",
)


@ROWS_AND_EMPTY
@each_case(takes_any_tree, compiles=True)
def test_single_rows_and_columns_are_matrices(case: Case) -> None:
    params, updates, _, _ = odd_step(case)
    for name in ("row", "column"):
        update, point = updates[name]["kernel"], params[name]["kernel"]
        assert update.shape == point.shape
        assert np.isfinite(update).all()
        assert np.abs(update).max() > 1e-3
        if case.retracts:
            moved = point + update
            landed = on_manifold(case.manifold, moved)
            # A few float32 units of entries of order 1.
            np.testing.assert_allclose(moved, landed, rtol=0, atol=1e-6)


@ROWS_AND_EMPTY
@each_case(takes_any_tree, compiles=True)
def test_empty_and_absent_leaves_pass_through(case: Case) -> None:
    params, updates, _, _ = odd_step(case)
    assert updates["nothing"]["kernel"] is None
    for name in ("empty", "flat"):
        chex.assert_trees_all_equal_shapes_and_dtypes(updates[name], params[name])


@pytest.mark.promise(
    "Faults",
    "A frozen leaf, without a gradient, keeps its parameter and its state",
    on="every transformation of matrices",
)
@each_case(lambda case: takes_any_tree(case) and not case.whole_model, compiles=True)
def test_a_leaf_without_update_keeps_its_state(case: Case) -> None:
    _, updates, state, new = odd_step(case)
    assert updates["frozen"]["kernel"] is None
    before, after = leaves_under(state, "frozen"), leaves_under(new, "frozen")
    chex.assert_trees_all_equal(after, before)


REFUSED_BY_NAME = pytest.mark.promise(
    "Faults",
    "Integers, float0, numbers of Python, vectors and scalars are errors "
    "that name the leaf",
    on="every transformation of matrices",
)


@REFUSED_BY_NAME
@each_case(takes_any_tree)
def test_an_integer_leaf_is_refused_by_name(case: Case, unhooked: None) -> None:
    tx, params = case.make(), parameters(case)
    params["first"]["kernel"] = jnp.ones((8, 2), jnp.int32)
    with pytest.raises(TypeError, match=r"'first/kernel' has dtype int32.*label"):
        tx.update(params, tx.init(params), params)


@REFUSED_BY_NAME
@each_case(takes_any_tree)
def test_a_float0_gradient_is_refused_by_name(case: Case, unhooked: None) -> None:
    tx, params, gradient = case.make(), parameters(case), gradients(case)
    gradient["second"]["kernel"] = np.zeros((2, 8), jax.dtypes.float0)
    with pytest.raises(TypeError, match=r"'second/kernel' has dtype .*float0"):
        tx.update(gradient, tx.init(params), params)


@REFUSED_BY_NAME
@each_case(lambda case: takes_any_tree(case) and not case.any_shape)
def test_a_vector_is_refused_by_name(case: Case, unhooked: None) -> None:
    tx, params = case.make(), parameters(case)
    for leaf in (jnp.ones(8), jnp.ones(())):
        params["first"]["kernel"] = leaf
        message = rf"'first/kernel' of shape {re.escape(str(leaf.shape))}.*mo\.hybrid"
        with pytest.raises(ValueError, match=message):
            tx.update(params, tx.init(params), params)


@REFUSED_BY_NAME
@each_case(takes_any_tree)
def test_a_python_number_is_refused_by_name(case: Case, unhooked: None) -> None:
    tx, params = case.make(), parameters(case)
    params["first"]["kernel"] = 1.0
    with pytest.raises((TypeError, ValueError), match="'first/kernel'"):
        tx.update(params, tx.init(params), params)
