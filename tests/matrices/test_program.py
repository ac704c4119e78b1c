"""`map_matrices` inside the transformations of JAX, and the programs it makes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import manifold_optax as mo


def normalize(x, axis_name=None):
    return x / jnp.linalg.norm(x)


def mapped(tree, **options):
    return mo.map_matrices(normalize, (tree,), axes=mo.STACKED, **options)


def model(rng, *lead):
    shapes = {"a": (6, 4), "b": (4, 6), "c": (3, 6, 4), "d": (5, 2)}
    return {
        name: jnp.asarray(rng.standard_normal((*lead, *shape)), jnp.float32)
        for name, shape in shapes.items()
    }


def test_vmap_is_a_loop(rng):
    stack = model(rng, 2)
    found = jax.vmap(mapped)(stack)
    for index in range(2):
        one = mapped(jax.tree.map(lambda leaf, i=index: leaf[i], stack))
        for name, leaf in one.items():
            # Batched norms may add in another order: one or two roundings.
            np.testing.assert_allclose(found[name][index], leaf, rtol=1e-6)


@pytest.mark.promise(
    "Faults",
    "A NaN or infinite entry shows in the update of its own matrix and in no other",
    on="every transformation",
)
def test_a_nan_stays_in_its_own_matrix(rng):
    good = model(rng)
    bad = good | {"c": good["c"].at[1, 2, 3].set(jnp.nan)}
    found, expected = jax.jit(mapped)(bad), jax.jit(mapped)(good)
    assert np.isnan(found["c"][1]).all()
    for name in ("a", "b", "d"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(found["c"][::2], expected["c"][::2])


@pytest.mark.promise(
    "Wrappers and frameworks",
    "Derivatives go through where the function of a matrix has one",
    on="`map_matrices`, reverse mode",
)
def test_derivatives_go_through(rng):
    tree = {"a": jnp.asarray(rng.standard_normal((2, 3, 2)), jnp.float32)}

    def square(x, axis_name=None):
        return x * x

    def total(tree):
        return jnp.sum(mo.map_matrices(square, (tree,), axes=mo.STACKED)["a"])

    np.testing.assert_array_equal(jax.grad(total)(tree)["a"], 2 * tree["a"])


@pytest.mark.promise(
    "Layouts and devices",
    "Inside `shard_map` leaves are local, and nothing is sent",
    on="`map_matrices`",
)
def test_inside_shard_map_everything_is_local(rng):
    mesh = jax.make_mesh((1,), ("data",))
    tree = model(rng)
    plans = []

    def local(tree):
        plans.append(str(mo.plan_matrices(tree, axes=mo.STACKED)))
        return mapped(tree)

    inside = jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=P())
    found, expected = jax.jit(inside)(tree), jax.jit(mapped)(tree)
    for name, leaf in expected.items():
        # The same arithmetic in another program.
        np.testing.assert_allclose(found[name], leaf, rtol=1e-6)
    (plan,) = plans
    stacks = [line.split()[:6] for line in plan.splitlines()[1:-1]]
    assert stacks == [
        ["6", "×", "4", "float32", "5", "local"],
        ["5", "×", "2", "float32", "1", "local"],
    ]


@pytest.mark.parametrize("recipe", [mo.sharding.owned, mo.sharding.sliced])
def test_a_placement_inside_shard_map_is_an_error(rng, recipe):
    mesh = jax.make_mesh((1,), ("data",))
    placement = recipe(mesh)
    inside = jax.shard_map(
        lambda tree: mapped(tree, placement=placement),
        mesh=mesh,
        in_specs=P(),
        out_specs=P(),
    )
    with pytest.raises(ValueError, match=r"inside shard_map or pmap.*placement=None"):
        inside(model(rng))


def test_a_placement_inside_pmap_is_an_error(rng):
    kinds = []
    look = lambda x: kinds.extend(jax.sharding.get_abstract_mesh().axis_types) or x
    jax.pmap(look)(jnp.ones(1))
    if jax.sharding.AxisType.Manual not in kinds:
        pytest.skip("the pmap of this JAX is no shard_map and cannot be seen")
    placement = mo.sharding.owned(jax.make_mesh((1,), ("data",)))
    inside = jax.pmap(lambda tree: mapped(tree, placement=placement))
    with pytest.raises(ValueError, match=r"inside shard_map or pmap.*placement=None"):
        inside(model(rng, 1))


@functools.cache
def instructions(make, matrices):
    """Instructions of the compiled step of a model of equal matrices."""
    tx, params = make(0.02), {f"w{i}": jnp.ones((8, 4)) for i in range(matrices)}

    def step(gradient, state, params):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    compiled: Any = jax.jit(step).lower(params, tx.init(params), params).compile()
    return sum(" = " in line for line in compiled.as_text().splitlines())


@pytest.mark.promise(
    "Programs",
    "The compiled program grows with depth no faster than AdamW's",
    on="Muon, 4 to 16 layers",
)
@pytest.mark.slow
def test_a_program_grows_with_depth_no_faster_than_that_of_adamw(measured):
    ours, theirs = mo.muon, optax.adamw
    for fewer, more in ((4, 8), (8, 16)):
        ours_more = instructions(ours, more) - instructions(ours, fewer)
        theirs_more = instructions(theirs, more) - instructions(theirs, fewer)
        # Measured: 34 and 51 instructions per matrix, and 51 of AdamW. An unrolled
        # Newton–Schulz would be 250 and more (`optax.contrib.muon`: 416). jax 0.8.0
        # reaches 1.105; the benchmark has the bound of 1.1 on a real tree (0.91).
        measured(ours_more / theirs_more, at_most=1.15)
