"""The parts in which an exchange travels: what they hold, and how many there are."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec as P

import manifold_optax as mo
from manifold_optax.matrices._deal import deal
from manifold_optax.matrices._parts import parts_of
from manifold_optax.matrices._recipes import Facts, make_plan
from manifold_optax.matrices._view import views_of


def dealt(counts, sizes, owners):
    return deal(counts, sizes, sizes, [0.0] * owners)[0]


@pytest.mark.parametrize(
    ("counts", "sizes", "most", "expected"),
    [
        # Four for each of four owners: the parts asked for, four at most.
        ((16,), (6,), 1, [6 * 4]),
        ((16,), (6,), 2, [12, 12]),
        ((16,), (6,), 3, [6, 12, 6]),
        ((16,), (6,), 9, [6, 6, 6, 6]),
        # A long one and two short ones each; the long one travels first.
        ((8, 4), (2, 4), 2, [4, 4]),
        ((8, 4), (2, 4), 3, [4, 2, 2]),
        # Two owners have one more.
        ((6,), (5,), 2, [5, 5]),
        # One has a long one, the others as much in short ones.
        ((9, 1), (2, 6), 4, [6]),
        # Fewer matrices than owners.
        ((3,), (5,), 4, [5]),
    ],
)
def test_parts_are_as_wide_together_as_the_whole(counts, sizes, most, expected):
    whole = dealt(counts, sizes, 4)
    parts = parts_of(whole, sizes, most)
    assert [part.width(sizes) for part in parts] == expected
    assert sum(expected) == whole.width(sizes)


@pytest.mark.parametrize("counts", [(7, 5, 3), (16, 8, 0), (1, 0, 9)])
def test_each_owner_has_in_all_parts_what_it_has_in_the_whole(counts):
    sizes = (3, 6, 2)
    whole = dealt(counts, sizes, 4)
    parts = parts_of(whole, sizes, 3)

    def of_owners(deal):
        rows = [c.counts for c in deal.classes for _ in range(c.owners)]
        return [rows[position] for position in deal.positions]

    every = zip(*map(of_owners, parts), strict=True)
    sums = [tuple(map(sum, zip(*own, strict=True))) for own in every]
    assert sums == of_owners(whole)
    assert all(sum(map(part.count, range(3))) for part in parts)


def test_owners_are_balanced_by_what_the_kernel_costs():
    placement = mo.sharding.owned(AbstractMesh((8,), ("x",)))

    def facts(rows):
        (view,) = views_of(jax.ShapeDtypeStruct((rows, 16), jnp.float32), "w", None)
        return Facts(view, ("float32", "float32"), P("x"))

    blocks = [*[facts(16)] * 12, *[facts(64)] * 6]

    def busiest(flops):
        plan = make_plan(blocks, orientation="tall", placement=placement, flops=flops)
        (exchange,) = plan.exchanges
        costs = [1 if group.rows == 16 else 10 for group in exchange.groups]
        return max(
            sum(map(math.prod, zip(own.counts, costs, strict=True)))
            for own in exchange.deal.classes
        )

    # As manifold Muon, which has a closed form for square matrices.
    assert busiest(lambda short, long: 1 if short == long else 10) == 10
    # By Newton–Schulz a long one costs two squares.
    assert busiest(None) == 11


def plan_of(width, recipe=mo.sharding.auto, **options):
    mesh = AbstractMesh((8,), ("x",))
    tree = {"w": jax.ShapeDtypeStruct((48, width, width), jnp.float32)}
    placement = recipe(mesh, {"w": P(None, "x")}, **options)
    return mo.plan_matrices(tree, axes=mo.STACKED, placement=placement)


def test_large_matrices_travel_in_parts_by_themselves_and_small_ones_do_not():
    # 2 · 48 · 64² · 4 bytes · 7/64: as long as one all-to-all takes to start.
    assert len(plan_of(64).exchanges[0].parts) == 1
    assert "parts" not in str(plan_of(64))
    large = plan_of(4096)
    assert 1 < len(large.exchanges[0].parts) <= 6
    assert str(large).endswith(f", in {len(large.exchanges[0].parts)} parts")


def test_owned_travels_as_a_whole_unless_asked():
    assert len(plan_of(4096, mo.sharding.owned).exchanges[0].parts) == 1
    for chunks, expected in ((2, 2), (3, 3), (100, 6)):
        plan = plan_of(64, mo.sharding.owned, chunks=chunks)
        assert len(plan.exchanges[0].parts) == expected
    chosen = plan_of(4096, mo.sharding.owned, chunks=None).exchanges[0].parts
    assert chosen == plan_of(4096).exchanges[0].parts


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize(
    ("chunks", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError)]
)
def test_chunks_of_a_wrong_kind_are_an_error(chunks, error):
    with pytest.raises(error, match=r"chunks must be an int of at least 1.*got"):
        mo.sharding.owned(AbstractMesh((8,), ("x",)), chunks=chunks)
