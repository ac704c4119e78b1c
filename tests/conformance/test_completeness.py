"""Nothing public is left out of the table."""

import types
import typing

import optax

import manifold_optax as mo
from conformance.table import CASES
from manifold_optax.transforms import SHAPE_RULES

TRANSFORMATIONS = (
    optax.GradientTransformation,
    optax.GradientTransformationExtraArgs,
)


def factories(module: typing.Any) -> set[str]:
    """Public functions that are annotated to return a transformation."""
    return {
        name
        for name in module.__all__
        if callable(function := getattr(module, name))
        and not isinstance(function, type)
        and typing.get_type_hints(function).get("return") in TRANSFORMATIONS
    }


def test_every_public_transformation_is_in_the_table() -> None:
    missing = factories(mo) - {case.public_name for case in CASES}
    assert not missing, f"add these to tests/conformance/table.py: {sorted(missing)}"


def test_the_table_names_only_public_transformations() -> None:
    assert {case.public_name for case in CASES} <= factories(mo)


def test_a_forgotten_transformation_is_found() -> None:
    def forgotten(rate: float) -> optax.GradientTransformation:
        return optax.sgd(rate)

    module = types.SimpleNamespace(
        __all__=("forgotten", "number"), forgotten=forgotten, number=3
    )
    assert factories(module) == {"forgotten"}


def test_every_shape_rule_is_in_the_table() -> None:
    rules = {case.arguments.get("rule") for case in CASES} - {None}
    assert rules == set(SHAPE_RULES)


def test_names_of_cases_are_unique_and_start_with_the_factory() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    # Tests are selected by name: `-k manifold_muon`.
    assert all(case.public_name.startswith(case.name.split("-")[0]) for case in CASES)
