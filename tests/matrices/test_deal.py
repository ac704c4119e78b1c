"""Dealing by cost, and the buffers of the owners."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from manifold_optax.matrices._deal import deal


def loads(found, costs):
    return [
        sum(n * cost for n, cost in zip(c.counts, costs, strict=True))
        for c in found.classes
        for _ in range(c.owners)
    ]


@pytest.mark.parametrize(
    ("counts", "costs", "owners", "expected"),
    [
        # Equally many for each owner.
        ((8, 16), (50, 30), 8, [110] * 8),
        # Two long ones, or one and two short ones more.
        ((12, 24), (70, 30), 8, [200] * 4 + [190] * 4),
        # One long or two short ones.
        ((4, 8), (60, 30), 8, [60] * 8),
        # Fewer matrices than owners.
        ((3,), (5,), 8, [5] * 3 + [0] * 5),
    ],
)
def test_owners_have_equal_work_where_there_is_enough(counts, costs, owners, expected):
    found, after = deal(counts, costs, costs, [0.0] * owners)
    assert sorted(after, reverse=True) == expected
    assert found.owners == owners
    assert sorted(loads(found, costs), reverse=True) == expected


@hypothesis.given(
    stacks=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1),
    owners=st.integers(1, 6),
)
@hypothesis.settings(deadline=None, max_examples=40)
def test_the_work_is_dealt_evenly_and_every_matrix_is_dealt_once(stacks, owners):
    counts, costs = zip(*stacks, strict=True)
    found, _ = deal(counts, costs, costs, [0.0] * owners)
    for index, count in enumerate(counts):
        assert sum(c.owners * c.counts[index] for c in found.classes) == count
    work = loads(found, costs)
    # Greedy: 4/3 of the best (Graham), and a part of it more for fewer bytes.
    best = max(sum(work) / owners, *costs)
    assert max(work) <= 4 / 3 * 1.05 * best or max(work) - min(work) <= max(costs)


@pytest.mark.parametrize("owners", [1, 3])
def test_unpacking_inverts_packing(owners):
    counts, sizes = (4, 7, 0), (6, 2, 3)
    stacks = [
        np.arange(n * size, dtype=np.float32).reshape(n, size)
        for n, size in zip(counts, sizes, strict=True)
    ]
    # The first has something to do already, and so is not the first in order.
    found, _ = deal(counts, (3, 1, 1), sizes, [5.0] + [0.0] * (owners - 1))
    assert found.in_order == (owners == 1)
    buffer = found.pack([jnp.asarray(stack) for stack in stacks])
    assert buffer.shape == (owners, found.width(sizes))
    for actual, stack in zip(found.unpack(buffer, sizes), stacks, strict=True):
        np.testing.assert_array_equal(actual, stack)


def test_a_row_of_the_buffer_holds_what_its_owner_has():
    found, _ = deal((4, 8), (2, 1), (1, 1), [0.0] * 8)
    stacks = [jnp.arange(4.0)[:, None], 10 + jnp.arange(8.0)[:, None]]
    rows = np.asarray(found.pack(stacks))
    held = sorted(tuple(row) for row in rows.tolist())
    # Four owners of one dear matrix, whose rows are filled up, four of two cheap ones.
    assert held == [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 0),
        (10, 11),
        (12, 13),
        (14, 15),
        (16, 17),
    ]


def test_small_matrices_fill_up_the_owners_that_have_room():
    # 48 narrow factors beside seven squares: not all of them to the eighth owner.
    found, work = deal((7, 48), (1000, 1), (1000, 60), [0.0] * 8)
    most = max(c.counts[0] * 1000 + c.counts[1] * 60 for c in found.classes)
    assert most <= 1.25 * (7 * 1000 + 48 * 60) / 8
    assert max(work) <= 1.05 * 1000


def test_owners_with_work_from_before_get_less():
    _, work = deal((6,), (1,), (1,), [1.0, 1.0, 0.0, 0.0])
    assert work == [2.0] * 4


def test_many_entries_do_not_overload_an_owner():
    # By entries alone the last of the short ones would go to the owner of the long one.
    found, after = deal((1, 2), (10, 5), (1, 3), [0.0, 0.0])
    assert after == [10, 10]
    assert loads(found, (10, 5)) == [10, 10]
