"""The declaration of a fused leaf: what it accepts, and that it stays a plain value."""

import pickle

import jax
import pytest

import manifold_optax as mo
from matrices.views import Dims

SPLIT = mo.Split((4, 2, 1), axis=0, axes=Dims(1, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, True),), r"size of block 1 .* got True of type bool"),
        (((16.0, 2),), r"size of block 0 .* got 16.0 of type float"),
        (((4, "4"),), r"size of block 1 .* got '4' of type str"),
        (("44",), r"sizes of a Split must be a tuple of ints.* got '44'"),
        ((8,), r"sizes of a Split must be a tuple of ints.* got 8"),
        (((4, 4), 1.0), r"axis of a Split must be an int, got 1.0"),
        (((4, 4), True), r"axis of a Split must be an int, got True"),
        (((4, 4), -1, "last"), r"axes of a Split .* got 'last'"),
        (((4, 4), -1, mo.Split((2, 2))), r"axes of a Split .* got Split"),
    ],
)
def test_entries_of_a_wrong_type_are_errors_that_name_them(
    unhooked, arguments, message
):
    with pytest.raises(TypeError, match=message):
        mo.Split(*arguments)


def test_a_split_is_a_value():
    assert hash(SPLIT) == hash(mo.Split([4, 2, 1], 0, Dims(1, 0)))
    assert pickle.loads(pickle.dumps(SPLIT)) == SPLIT
    assert SPLIT._replace(axis=1).axis == 1
    assert repr(mo.Split((4,))).startswith("Split(sizes=(4,), axis=-1, axes=Muon")


def test_a_split_is_a_pytree_of_its_numbers(unhooked):
    leaves, treedef = jax.tree.flatten(SPLIT)
    assert leaves == [4, 2, 1, 0, 1, 0]
    assert treedef.unflatten(leaves) == SPLIT
    # JAX rebuilds trees of whatever a function makes of their leaves.
    assert isinstance(jax.tree.map(lambda leaf: object(), SPLIT), mo.Split)
