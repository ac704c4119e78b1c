"""Compiled in whatever way, every transformation gives the same numbers."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from conformance.case import Case, ROUNDING, Tree
from conformance.steps import gradients, parameters, steps_of, update_of
from conformance.table import each_case


def assert_close(found: Tree, expected: Tree) -> None:
    chex.assert_trees_all_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


def stacked(*trees: Tree) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


EAGER_NUMBERS = pytest.mark.promise(
    "Wrappers and frameworks",
    "`jit`, `vmap`, `pmap`, and `scan` with donation, give the eager numbers",
    on="every transformation",
)


@EAGER_NUMBERS
@each_case(compiles=True)
def test_jit_gives_the_eager_numbers(case: Case) -> None:
    tx, params, gradient = case.make(), parameters(case), gradients(case)
    state = tx.init(params)
    eager = tx.update(gradient, state, params)
    assert_close(update_of(case)(gradient, state, params), eager)


@pytest.mark.promise(
    "Programs", "A second step compiles nothing", on="every transformation"
)
@each_case()
def test_two_steps_trace_once(case: Case) -> None:
    steps_of(case, 2)
    assert update_of(case).traces == 1


@EAGER_NUMBERS
@each_case(compiles=True)
def test_vmap_gives_the_numbers_of_a_loop(case: Case) -> None:
    tx = case.make()

    def first_step(params: Tree, gradient: Tree) -> Tree:
        return tx.update(gradient, tx.init(params), params)

    params = [parameters(case, seed) for seed in (0, 1)]
    taken = [gradients(case, seed) for seed in (2, 3)]
    found = jax.jit(jax.vmap(first_step))(stacked(*params), stacked(*taken))
    loop = [
        update_of(case)(gradient, tx.init(point), point)
        for point, gradient in zip(params, taken, strict=True)
    ]
    assert_close(found, stacked(*loop))


@EAGER_NUMBERS
@each_case(compiles=True)
def test_pmap_gives_the_numbers_of_jit(case: Case) -> None:
    tx, params, gradient = case.make(), parameters(case), gradients(case)
    arguments = gradient, tx.init(params), params
    found = jax.pmap(tx.update)(*map(stacked, arguments))
    assert_close(found, stacked(update_of(case)(*arguments)))


@EAGER_NUMBERS
@each_case(compiles=True)
def test_scan_over_donated_buffers_gives_the_numbers_of_a_loop(case: Case) -> None:
    tx = case.make()
    expected_params, expected_state, taken = steps_of(case, 3)

    def step(carry: Tree, gradient: Tree) -> tuple[Tree, None]:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    # A buffer that is given away in vain is a warning, and so an error here.
    scanned = jax.jit(
        lambda carry, taken: jax.lax.scan(step, carry, taken)[0], donate_argnums=0
    )
    params = parameters(case)
    start = params, tx.init(params)
    found = scanned(start, stacked(*taken))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    assert_close(found, (expected_params, expected_state))
