"""Averages of weights: what stays on a manifold, what leaves it, and the way back."""

import functools
import pathlib
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import manifold_optax as mo
from conformance.case import Case, ROUNDING, Tree
from conformance.steps import gradients, on_manifold, parameters
from conformance.table import CASES
from conformance.training import examples, is_optimizer, loss

# Some float32 units (6e-8) of entries of order 1.
LANDED = 2e-6
# Far above it: an average of three steps is off by 7e-4 at the least.
OFF = 1e-4

apply_updates: Any = optax.apply_updates
"""Also of the pairs of weights that `lookahead` trains."""

OPTIMIZERS = [pytest.param(c, id=c.name) for c in CASES if is_optimizer(c)]
CONSTRAINED = [
    pytest.param(c, id=c.name) for c in CASES if is_optimizer(c) and c.retracts
]


def distance(case: Case, params: Tree) -> float:
    """Largest entry of the difference to the nearest point."""
    nearest = jax.tree.map(functools.partial(on_manifold, case.manifold), params)
    apart = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), params, nearest)
    return float(max(jax.tree.leaves(apart)))


def update_and_apply(tx: Any) -> Any:
    """A jitted step on the loss of the table's network."""

    @jax.jit
    def step(params: Tree, state: Tree) -> tuple[Tree, Tree]:
        gradient = jax.grad(loss)(params, examples())
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.promise(
    "Wrappers and frameworks",
    "An average of weights is brought back by `project`",
    on="every optimizer on a manifold; `optax.ema`, `optax.incremental_update`",
)
@pytest.mark.slow
@pytest.mark.parametrize("case", CONSTRAINED)
def test_an_average_is_off_the_manifold_until_it_is_projected(case: Case) -> None:
    tx = case.make()
    step, params = update_and_apply(tx), parameters(case)
    state, averaged, average = tx.init(params), params, params
    debiased = optax.ema(0.5)
    collected = debiased.init(params)
    for _ in range(3):
        params, state = step(params, state)
        averaged = optax.incremental_update(params, averaged, step_size=0.5)
        average, collected = debiased.update(params, collected)
    assert distance(case, params) < LANDED
    for off in (averaged, average):
        assert distance(case, off) > OFF
        back = mo.project(off, case.manifold, axes=mo.STACKED)
        assert distance(case, back) < LANDED


@pytest.mark.promise(
    "Wrappers and frameworks",
    "`optax.lookahead` takes the steps of what it wraps, and the next one lands",
    on="every optimizer; on the manifold, `Sphere('kept')` excepted",
)
@pytest.mark.slow
@pytest.mark.parametrize("case", OPTIMIZERS)
def test_lookahead_takes_the_steps_of_what_it_wraps(case: Case) -> None:
    tx, gradient = case.make(), gradients(case)
    both: Any = optax.lookahead(tx, sync_period=2, slow_step_size=0.5)
    start = parameters(case)
    pair = optax.LookaheadParams.init_synced(start)
    update, alone = jax.jit(both.update), jax.jit(tx.update)
    state, state_alone, fast = both.init(pair), tx.init(start), start
    for _ in range(2):
        updates, state = update(gradient, state, pair)
        pair = apply_updates(pair, updates)
        updates, state_alone = alone(gradient, state_alone, fast)
        fast = optax.apply_updates(fast, updates)
    middle = jax.tree.map(lambda x, y: x + (y - x) / 2, start, fast)
    chex.assert_trees_all_close(
        (pair.fast, pair.slow), (middle, middle), rtol=ROUNDING, atol=ROUNDING
    )
    chex.assert_trees_all_close(
        state.fast_state, state_alone, rtol=ROUNDING, atol=ROUNDING
    )
    if case.retracts and case.name != "hyperball":  # it has a test of its own
        # The pair meets off the manifold; the next step lands on it again.
        assert distance(case, pair.slow) > OFF
        updates, state = update(gradient, state, pair)
        assert distance(case, apply_updates(pair, updates).fast) < LANDED


@pytest.mark.slow
def test_lookahead_shrinks_a_kept_norm_and_a_number_comes_back() -> None:
    start = {"w": 2.0 * jnp.eye(4)}
    gradient = {"w": jnp.arange(16.0).reshape(4, 4)}

    def norm_of_third(manifold: mo.Sphere) -> float:
        inner = mo.hyperball(0.5, manifold=manifold)
        tx: Any = optax.lookahead(inner, sync_period=2, slow_step_size=0.5)
        pair = optax.LookaheadParams.init_synced(start)
        state, update = tx.init(pair), jax.jit(tx.update)
        for _ in range(3):
            updates, state = update(gradient, state, pair)
            pair = apply_updates(pair, updates)
        fast: Any = pair.fast
        return float(jnp.linalg.norm(fast["w"]))

    # The middle of two points of a sphere lies inside; a kept norm is read from there.
    assert norm_of_third(mo.Sphere("kept")) < 3.9
    assert norm_of_third(mo.Sphere(4.0)) == pytest.approx(4.0, rel=LANDED)


@pytest.mark.slow
@pytest.mark.parametrize("case", CONSTRAINED)
def test_schedule_free_leaves_the_manifold(case: Case) -> None:
    tx: Any = optax.contrib.schedule_free(case.make(), learning_rate=0.1)
    step, params = update_and_apply(tx), parameters(case)
    state = tx.init(params)
    for _ in range(5):
        params, state = step(params, state)
    assert distance(case, params) > OFF


@pytest.mark.promise(
    "Wrappers and frameworks",
    "A retraction around `optax.contrib.schedule_free` keeps the manifold",
    on="Stiefel, sphere",
)
@pytest.mark.slow
@pytest.mark.parametrize("manifold", [mo.Stiefel(), mo.Sphere(2.0)], ids=str)
def test_a_retraction_around_schedule_free_keeps_the_manifold(
    manifold: mo.Manifold,
) -> None:
    free = optax.contrib.schedule_free(mo.muon(0.05, momentum=None), learning_rate=0.05)
    tx: Any = optax.chain(free, mo.retract(manifold))
    keys = jax.random.split(jax.random.key(0), 2)
    target, params = (
        mo.project({"w": jax.random.normal(key, (8, 4))}, manifold) for key in keys
    )
    away = lambda tree: jnp.sum(jnp.square(tree["w"] - target["w"]))

    @jax.jit
    def step(params: Tree, state: Tree) -> tuple[Tree, Tree]:
        updates, state = tx.update(jax.grad(away)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, first = tx.init(params), float(away(params))
    for _ in range(100):
        params, state = step(params, state)
    assert float(mo.diagnostics.residual(params, manifold)["w"]) < LANDED
    found = optax.contrib.schedule_free_eval_params(state[0], params)
    judged = mo.project(found, manifold)
    assert float(away(judged)) < 0.1 * first


@pytest.mark.slow
def test_the_python_of_the_page_runs(unhooked: None) -> None:
    page = (pathlib.Path(__file__).parents[2] / "docs" / "wrappers.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(block, namespace)
        for name in ("params", "evaluated"):
            found = mo.diagnostics.residual(namespace[name], mo.Stiefel())
            assert float(found["w"]) < LANDED
