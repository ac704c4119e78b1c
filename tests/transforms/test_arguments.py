"""What is wrong with an argument is said at once, by the name of the argument."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

import pytest

from transforms.arguments import Call, CALLS, NAMED, ODD, OPEN, WRONG


def rows() -> list[Any]:
    """Every argument of every call but those that are `OPEN`."""
    return [
        pytest.param(call, argument, id=f"{call.name}-{argument}")
        for call in CALLS
        for argument in inspect.signature(call.function).parameters
        if (call.name, argument) not in OPEN
    ]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_right_arguments_pass(call: Call, unhooked: None) -> None:
    call.function(**call.right)


NAMES_THE_ARGUMENT = pytest.mark.promise(
    "Faults",
    "A wrong argument is an error that names it",
    on="every argument of every public factory; wrong kinds and values",
)


@NAMES_THE_ARGUMENT
@pytest.mark.parametrize(("call", "argument"), rows())
def test_a_wrong_argument_is_an_error_that_names_it(
    call: Call, argument: str, unhooked: None
) -> None:
    assert_refused(call, argument, call.wrong.get(argument, WRONG.get(argument, ())))


@NAMES_THE_ARGUMENT
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_odd_objects_are_arguments_of_nothing(call: Call, unhooked: None) -> None:
    for argument in inspect.signature(call.function).parameters:
        if (call.name, argument) not in OPEN:
            assert_refused(call, argument, ODD)


def assert_refused(call: Call, argument: str, values: Sequence[Any]) -> None:
    """Each value is a `TypeError` or `ValueError` with the name of the argument."""
    name = NAMED.get((call.name, argument), argument)
    silent, nameless = [], []
    for value in values:
        try:
            call.function(**{**call.right, argument: value})
        except (TypeError, ValueError) as error:
            if not re.search(rf"\b({name})\b", str(error)):
                nameless.append(f"{value!r}: {error}")
        else:
            silent.append(value)
    assert not silent, f"{argument} may be {silent}"
    assert not nameless, f"these errors do not name {argument}: {nameless}"
