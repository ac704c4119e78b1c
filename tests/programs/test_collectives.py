"""The reader of compiled programs: exact counts, bytes and products.

Programs whose collectives are known are compiled for eight devices. Ways of writing
that the local XLA does not print are in `test_program.py`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from manifold_optax.programs import collectives, dot_flops

devices = pytest.mark.devices

BLOCK = 16 * 8 * 4
"""Bytes of the block [16, 8] float32 that each device holds in these programs."""


def compiled(function: Any, dtype: Any = jnp.float32, *, axes: Any = ("x", "y")) -> Any:
    """`function` of one block [16, 8] per device, on a mesh of 2 × 4."""
    mesh = jax.make_mesh((2, 4), axes)
    spec = P(*axes)
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    x = jax.ShapeDtypeStruct((32, 32), dtype, sharding=NamedSharding(mesh, spec))
    return jax.jit(mapped).lower(x).compile()


def traffic(found: mo.programs.Collectives) -> dict[str, tuple[float, ...]]:
    """Count and bytes outside loops, count and bytes inside."""
    return {
        kind.name: (
            kind.outside.count,
            kind.outside.wire,
            kind.inside.count,
            kind.inside.wire,
        )
        for kind in found.kinds
    }


def ring(steps: int) -> list[tuple[int, int]]:
    return [(i, (i + 1) % steps) for i in range(steps)]


# The formulas of the bytes, one device of a group of G on a ring, B the block:
# all-reduce 2(G-1)/G·B, all-gather (G-1)·B, reduce-scatter and all-to-all (G-1)/G·B.
ONE_OF_EACH = {
    "all-reduce": (lambda x: lax.psum(x, "y"), 2 * 3 / 4 * BLOCK),
    "all-gather": (lambda x: lax.all_gather(x, "y", tiled=True)[:16], 3 * BLOCK),
    "reduce-scatter": (
        lambda x: lax.psum_scatter(x, "x", scatter_dimension=0, tiled=True),
        1 / 2 * BLOCK,
    ),
    "all-to-all": (lambda x: lax.all_to_all(x, "y", 0, 1, tiled=True), 3 / 4 * BLOCK),
    "collective-permute": (lambda x: lax.ppermute(x, "y", ring(4)), BLOCK),
}


@devices
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_one_collective_of_a_group(kind: str) -> None:
    function, wire = ONE_OF_EACH[kind]
    found = collectives(compiled(function))
    assert traffic(found) == {kind: (1, wire, 0, 0)}
    assert found.count(kind) == found.count() == 1
    assert found.wire(kind) == found.wire() == wire
    assert found.inside_loops == 0
    assert found.unknown_loops == ()


@devices
def test_loops_multiply_by_their_known_lengths() -> None:
    def function(x: Any) -> Any:
        def inner(carry: Any, _: None) -> Any:
            return lax.psum(carry, "x") * 0.5, None

        def outer(_: Any, carry: Any) -> Any:
            carry, _ = lax.scan(inner, carry, None, length=3)
            return lax.ppermute(carry, "y", ring(4))

        return lax.psum(lax.fori_loop(0, 5, outer, x), "y")

    found = collectives(compiled(function))
    assert traffic(found) == {
        "all-reduce": (1, 2 * 3 / 4 * BLOCK, 15, 15 * BLOCK),
        "collective-permute": (0, 0, 5, 5 * BLOCK),
    }
    assert found.inside_loops == 20
    assert found.count("all-reduce") == 16
    assert found.unknown_loops == ()


@devices
def test_a_loop_of_unknown_length_counts_once_and_is_named() -> None:
    def function(x: Any) -> Any:
        # The condition communicates, too.
        go_on = lambda carry: lax.pmax(carry[0, 0], ("x", "y")) < 10.0
        return lax.while_loop(go_on, lambda carry: lax.psum(carry, "y"), x)

    found = collectives(compiled(function))
    number = 2 * 7 / 8 * 4
    assert traffic(found) == {
        "all-reduce": (0, 0, 2, 2 * 3 / 4 * BLOCK + number),
    }
    assert len(found.unknown_loops) == 1
    assert found.unknown_loops[0] in str(found)


@devices
@pytest.mark.parametrize("much_first", [True, False])
def test_of_a_conditional_the_branch_that_sends_most_counts(much_first: bool) -> None:
    def function(x: Any) -> Any:
        much = lambda x: lax.psum(lax.psum(x, "y") + 1, "x")
        little = lambda x: lax.psum(x[0, 0], "y") + x
        branches = (much, little) if much_first else (little, much)
        return lax.cond(x[0, 0] > 0, *branches, x)

    found = collectives(compiled(function))
    assert traffic(found) == {"all-reduce": (2, 3 / 2 * BLOCK + BLOCK, 0, 0)}


@devices
def test_two_bytes_per_entry_travel_as_unsigned_integers() -> None:
    def function(x: Any) -> Any:
        bits = lax.bitcast_convert_type(x, jnp.uint16)
        bits = lax.all_to_all(bits, "y", 0, 1, tiled=True)
        return lax.bitcast_convert_type(bits, jnp.bfloat16)

    found = collectives(compiled(function, jnp.bfloat16))
    assert traffic(found) == {"all-to-all": (1, 3 / 4 * BLOCK / 2, 0, 0)}


@devices
def test_arrays_that_are_reduced_together_are_one_collective() -> None:
    def function(x: Any) -> Any:
        whole, row = lax.psum((x, x[0]), ("x", "y"))
        return whole + row[None]

    found = collectives(compiled(function))
    assert traffic(found) == {"all-reduce": (1, 2 * 7 / 8 * (BLOCK + 8 * 4), 0, 0)}


@devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_what_the_partitioner_inserts_is_read_too(kind: AxisType) -> None:
    # XLA writes the groups of these by mesh axes or by strides, not as lists.
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind))
    layout = lambda *axes: NamedSharding(mesh, P(*axes))
    x = jax.ShapeDtypeStruct((32, 32), jnp.float32, sharding=layout("x", "y"))
    place = (
        jax.sharding.reshard
        if kind == AxisType.Explicit
        else lax.with_sharding_constraint
    )
    program = jax.jit(lambda x: place(x, layout("x", None))).lower(x).compile()
    assert traffic(collectives(program)) == {"all-gather": (1, 3 * BLOCK, 0, 0)}


@devices
def test_the_table_of_a_program() -> None:
    def function(x: Any) -> Any:
        x = lax.fori_loop(0, 5, lambda _, c: lax.psum(c, "y") * 0.5, x)
        return lax.ppermute(x, "y", ring(4))

    table = """\
                    outside loops  wire bytes  inside loops  wire bytes
all-reduce                      0           0             5       3,840
collective-permute              1         512             0           0"""
    assert str(collectives(compiled(function))) == table


def test_a_program_of_one_device_has_none() -> None:
    program = jax.jit(jnp.sin).lower(1.0).compile()
    assert str(collectives(program)) == "no collectives"
    assert collectives(program).count() == 0
    assert collectives(program).wire() == 0
    assert collectives(program).kinds == ()


def product(form: str, *shapes: tuple[int, ...]) -> Any:
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(functools.partial(jnp.einsum, form)).lower(*arrays).compile()


@pytest.mark.parametrize(
    ("form", "shapes", "flops"),
    [
        ("ij,jk->ik", ((8, 16), (16, 32)), 2 * 8 * 16 * 32),
        ("ij,kj->ik", ((8, 16), (32, 16)), 2 * 8 * 16 * 32),
        ("ji,jk->ik", ((16, 8), (16, 32)), 2 * 8 * 16 * 32),
        ("bij,bjk->bik", ((3, 8, 16), (3, 16, 32)), 3 * 2 * 8 * 16 * 32),
        ("bij,cj->bci", ((3, 8, 16), (32, 16)), 3 * 2 * 8 * 16 * 32),
        ("ijk,jkl->il", ((8, 4, 16), (4, 16, 32)), 2 * 8 * 64 * 32),
    ],
)
def test_products_are_twice_output_times_contracted(
    form: str, shapes: Any, flops: int
) -> None:
    assert dot_flops(product(form, *shapes)) == flops


def test_products_in_loops_count_as_often_as_they_run() -> None:
    def function(x: Any) -> Any:
        def body(_: Any, carry: Any) -> Any:
            return lax.fori_loop(0, 4, lambda _, c: jnp.tanh(c @ c), jnp.tanh(carry))

        y = lax.fori_loop(0, 5, body, x) @ x
        return lax.map(lambda row: jnp.tanh(x @ row), jnp.stack([y, x, y]))

    x = jnp.eye(16)
    square = 2 * 16**3
    assert dot_flops(jax.jit(function).lower(x).compile()) == (20 + 1 + 3) * square


def test_products_in_a_loop_of_unknown_length() -> None:
    def function(x: Any) -> Any:
        # The condition multiplies, too, and is looked at once more than the body.
        go_on = lambda x: jnp.max(jnp.tanh(x @ x)) < 0.5
        return lax.while_loop(go_on, lambda x: jnp.tanh(x @ x @ x), x @ x)

    program = jax.jit(function).lower(jnp.eye(16)).compile()
    with pytest.raises(ValueError, match="whose trip count XLA does not know; say"):
        dot_flops(program)
    square = 2 * 16**3
    assert dot_flops(program, unknown_trips=7) == (1 + 8 + 2 * 7) * square
    assert dot_flops(program, unknown_trips=0) == (1 + 1) * square


def test_products_of_a_conditional_are_those_of_its_longest_branch() -> None:
    def function(x: Any) -> Any:
        return lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ (x @ x + 1), x)

    program = jax.jit(function).lower(jnp.eye(16)).compile()
    assert dot_flops(program) == 2 * 2 * 16**3


@devices
def test_products_are_those_of_one_device() -> None:
    assert dot_flops(compiled(lambda x: x @ x.T @ x)) == 2 * (2 * 16 * 16 * 8)


def test_library_calls_that_are_no_products_count_nothing() -> None:
    x = jnp.eye(8)
    program = jax.jit(jnp.linalg.cholesky).lower(x).compile()
    assert dot_flops(program) == 0


def test_a_lowered_program_is_refused(unhooked: None) -> None:
    lowered = jax.jit(jnp.sin).lower(1.0)
    for function in (collectives, dot_flops):
        with pytest.raises(TypeError, match=r"call \.compile\(\) on it"):
            function(lowered)
        with pytest.raises(TypeError, match="got float"):
            function(1.0)
