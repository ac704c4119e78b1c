"""Every rule has a test: a rule without one fails here."""

import pytest

from manifold_optax.modular._bounds._sizes import RULES
from modular import (
    test_entry_rules,
    test_loop_rules,
    test_product_rules,
    test_refused_rules,
    test_shape_rules,
    test_sum_rules,
)
from modular.rule_cases import names_in, read

ATTACKED = (
    *test_entry_rules.CASES,
    *test_loop_rules.CASES,
    *test_product_rules.CASES,
    *test_shape_rules.CASES,
    *test_sum_rules.CASES,
)

# Registered by the example of `register_rule`, where the docstrings are tested before.
REGISTERED = {"my_identity"}


@pytest.mark.promise(
    "Certificates",
    "Every rule for an operation is attacked by tests, or refuses by name",
    on="all rules",
)
def test_every_rule_is_attacked_or_refused():
    attacked = set().union(*(names_in(read(the)[0]) for the in ATTACKED))
    tested = attacked | set(test_refused_rules.JUMPS)
    assert set(RULES) - REGISTERED - tested == set()


def test_names_of_cases_differ():
    """The attacks are drawn by the name of a case."""
    names = [the.name for the in ATTACKED]
    assert len(names) == len(set(names))
