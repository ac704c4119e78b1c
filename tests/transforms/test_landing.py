"""The end of a chain on a manifold in one pass is the chain, state and all."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

import manifold_optax as mo
from conformance.steps import filled, on_manifold
from manifold_optax.transforms._landing import joined_links, landing_chain

SHAPES = {"a": (8, 4), "b": (3, 6, 8)}
SPHERE, STIEFEL, OBLIQUE = (
    mo.Sphere("kept"),
    mo.Stiefel("rms"),
    mo.Oblique(),
)
HELD: Any = {"axes": mo.STACKED}
PLACED = mo.sharding.owned(AbstractMesh((8,), ("x",)))
CHAINS: dict[str, tuple[mo.Manifold, Any]] = {
    "one link": (
        SPHERE,
        [("direction", mo.steepest(SPHERE, mo.Frobenius(), **HELD))],
    ),
    "numbers in the state": (
        STIEFEL,
        [
            ("momentum", mo.momentum(0.9)),
            ("direction", mo.dual_ascent_spectral(STIEFEL, certify=True, **HELD)),
        ],
    ),
    "several links": (
        STIEFEL,
        [
            ("tangent", mo.tangent_project(STIEFEL, **HELD)),
            ("direction", mo.steepest(mo.Euclidean(), mo.Frobenius(), **HELD)),
            ("size", mo.scale_by_size(STIEFEL, **HELD)),
        ],
    ),
}
CHAINS["rows"] = (OBLIQUE, [("direction", mo.steepest(OBLIQUE, mo.RowRms(), **HELD))])


def points(manifold: mo.Manifold) -> Any:
    """By NumPy: each projection outside of `jit` compiles anew."""
    drawn = filled(SHAPES, 0)
    if manifold == OBLIQUE:
        # Rows are fan-out, the last axis.
        norms = jax.tree.map(lambda x: np.linalg.norm(x, axis=-2, keepdims=True), drawn)
        return jax.tree.map(jnp.divide, drawn, norms)
    return jax.tree.map(lambda x: on_manifold(manifold, x), drawn)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "several links" else pytest.mark.slow)
        for name in CHAINS
    ],
)
def test_one_pass_is_the_chain(name: str) -> None:
    manifold, links = CHAINS[name]
    schedule = optax.linear_schedule(0.2, 0.0, 4)
    rate = ("rate", optax.scale_by_learning_rate(schedule))
    absent = {"absent": optax.MaskedNode()}
    params, updates = points(manifold) | absent, filled(SHAPES, 1) | absent

    @jax.jit
    def two_steps(params: Any, updates: Any) -> Any:
        def of(tx: Any) -> Any:
            def step(state: Any, _: Any) -> Any:
                return tx.update(updates, state, params)[::-1]

            return jax.lax.scan(step, tx.init(params), length=2)

        once = landing_chain(manifold, links, rate, **HELD)
        end = ("retraction", mo.retract(manifold, **HELD))
        return of(once), of(optax.named_chain(*links, rate, end))

    found, expected = two_steps(params, updates)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert ours.dtype == theirs.dtype
        # One product by the rate less is rounded, of entries below 1 (seen: 1.4e-7).
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def joined(manifold: mo.Manifold, links: Any, placement: Any = None) -> tuple[str, ...]:
    return joined_links(manifold, links, mo.STACKED, placement).names


def test_the_links_at_the_end_that_know_their_kernel_are_joined() -> None:
    for name, expected in (
        ("one link", ("direction",)),
        ("numbers in the state", ("direction",)),
        ("several links", ("tangent", "direction", "size")),
        ("rows", ("direction",)),
    ):
        assert joined(*CHAINS[name]) == expected


@pytest.mark.parametrize(
    ("link", "placement"),
    [
        # Of another library; other axes; another placement; another manifold; another
        # orientation.
        (optax.identity(), None),
        (mo.steepest(OBLIQUE, mo.RowRms(), axes=mo.CONV), None),
        (mo.steepest(OBLIQUE, mo.RowRms(), **HELD), PLACED),
        (mo.steepest(mo.Oblique(2.0), mo.RowRms(), **HELD), None),
        (mo.scale_by_size(mo.Oblique(2.0), **HELD), None),
    ],
)
def test_links_that_do_not_fit_stay_links(link: Any, placement: Any) -> None:
    assert joined(OBLIQUE, [("direction", link)], placement) == ()


def test_a_direction_without_the_size_stays_a_link() -> None:
    links = CHAINS["several links"][1]
    assert joined(STIEFEL, links[:2]) == ()
    # Oblique rows are never transposed, the tall matrices of a Euclidean norm are.
    flat = mo.steepest(mo.Euclidean(), mo.Frobenius(), **HELD)
    size = mo.scale_by_size(OBLIQUE, **HELD)
    assert joined(OBLIQUE, [("direction", flat), ("size", size)]) == ("size",)


def test_updates_come_in_the_dtype_of_the_parameter() -> None:
    tx = mo.hyperspherical_descent(0.1)
    for of_update, of_param in (("bfloat16", "float32"), ("float32", "bfloat16")):
        params = {"w": jnp.ones((4, 2), of_param) / 8**0.5}
        updates = {"w": jnp.ones((4, 2), of_update)}
        found, _ = jax.eval_shape(tx.update, updates, tx.init(params), params)
        assert found["w"].dtype == of_param
