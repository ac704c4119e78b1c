"""Manifold and norm of each parameter, by its role and by rules."""

from typing import Any

import optax
import pytest

import manifold_optax as mo
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._budgets._rules import (
    check_geometry_rules,
    fits,
    geometry_of,
    idle_rules,
)

FREE = mo.Euclidean()
Axes = optax.contrib.MuonDimensionNumbers


@pytest.mark.parametrize(
    ("role", "axes", "shape", "norm"),
    [
        ("matrix", None, (4, 8), mo.RmsToRms()),
        ("expert", mo.STACKED, (3, 4, 8), mo.RmsToRms()),
        ("matrix", mo.CONV, (3, 3, 4, 8), mo.RmsToRms()),
        ("readout", None, (4, 8), mo.RmsToRms()),
        ("router", None, (4, 8), mo.RmsToRms()),
        ("embedding", None, (50, 8), mo.RowRms()),
        ("embedding", mo.OUT_IN, (50, 8), mo.RowRms()),
        # The linear map from tokens to features: a token is a column.
        ("embedding", mo.STACKED, (50, 8), mo.ColumnRms()),
        ("embedding", Axes(0, 1), (50, 8), mo.ColumnRms()),
        ("vector", None, (8,), mo.Max()),
        ("vector", None, (3, 8), mo.Max()),
        ("vector", None, (), mo.Max()),
    ],
)
def test_the_norm_of_a_role(role: str, axes: Any, shape: Any, norm: mo.Norm) -> None:
    assert geometry_of("a/kernel", role, axes, shape) == (FREE, norm)


def test_a_manifold_keeps_the_norm_and_a_norm_the_space() -> None:
    rules = {"matrix": mo.Stiefel("rms"), "readout": mo.Max()}
    found = geometry_of("a", "matrix", None, (4, 8), rules)
    assert found == (mo.Stiefel("rms"), mo.RmsToRms())
    assert geometry_of("a", "readout", None, (4, 8), rules) == (FREE, mo.Max())
    assert geometry_of("a", "router", None, (4, 8), rules) == (FREE, mo.RmsToRms())


def test_the_first_rule_that_fits_wins() -> None:
    rules = {"head": mo.Max(), "matrix": mo.Spectral(), "up": mo.Frobenius()}
    kinds = {
        path: geometry_of(path, "matrix", None, (4, 8), rules)[1]
        for path in ("head/kernel", "up/kernel")
    }
    assert kinds == {"head/kernel": mo.Max(), "up/kernel": mo.Spectral()}


def test_labels_are_no_patterns() -> None:
    assert not fits("embedding", "embedding/table", "matrix")
    assert fits("^embedding", "embedding/table", "matrix")
    assert fits("expert", "moe/kernel", "expert")
    assert fits("expert", "expert/kernel", "matrix")


def test_idle_rules_are_listed() -> None:
    atoms = [Atom("up/kernel"), Atom("bias", "vector")]
    rules = {"matrix": 1, "up": 1, "down": 1, "embedding": 1}
    assert idle_rules(rules, atoms) == ["down", "embedding"]


@pytest.mark.parametrize(
    ("rules", "role", "shape", "message"),
    [
        (
            {"matrix": mo.Sphere("kept")},
            "matrix",
            (4, 8),
            r"'w'.*size.*'kept'|relative",
        ),
        ({"matrix": (mo.Sphere(), mo.Max())}, "matrix", (4, 8), r"'w'.*known pairs"),
        ({"vector": mo.Sphere()}, "vector", (4,), r"'w' of shape \(4,\).*mo\.Max"),
    ],
)
def test_impossible_geometries_name_the_parameter(
    rules: Any, role: str, shape: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        geometry_of("w", role, None, shape, rules)


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ([("matrix", mo.Max())], TypeError, "geometry must be a dict"),
        ({"matrix": "Max"}, TypeError, "rule 'matrix' must be a pair"),
        ({"matrix": (mo.Max(), FREE)}, TypeError, "rule 'matrix' must be a pair"),
        ({"matrix": mo.Max}, TypeError, "rule 'matrix' must be a pair"),
        ({"(": mo.Max()}, ValueError, "regular expression"),
        ({1: mo.Max()}, TypeError, "must be a string"),
    ],
)
def test_wrong_rules(rules: Any, error: Any, message: str, unhooked: None) -> None:
    with pytest.raises(error, match=message):
        check_geometry_rules(rules)


def test_right_rules_pass() -> None:
    check_geometry_rules({"matrix": (FREE, mo.Max()), "up": mo.Stiefel()})
