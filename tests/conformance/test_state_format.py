"""Formats of states are a promise: they change with their version only."""

import inspect
import re
from typing import Any

import pytest

import manifold_optax as mo
from conformance import golden
from conformance.case import Case
from conformance.table import CASES, each_case
from manifold_optax.states import FORMAT_VERSION
from modular.pages import DOCS

GOLDEN = golden.read()
# Other values of what is no number in the table; each goes where it is an argument.
OTHERS: dict[str, Any] = {
    "schedule": mo.linalg.YOU,
    "steps": 3,
    "nesterov": False,
    "debias": True,
    "scale": "spectral",
    "rule": "rms",
}


@each_case(abstract=True)
def test_the_format_is_the_golden_one(case: Case) -> None:
    wanted = GOLDEN["states"].get(case.name, "none: the case is new")
    assert golden.format_of(case) == wanted, (
        "Checkpoints of this state written before cannot be restored any more. If that "
        f"is meant, or the case is new, do what {golden.__file__} says."
    )


def test_the_golden_file_has_the_version_of_the_code_and_its_cases_only() -> None:
    assert GOLDEN["version"] == FORMAT_VERSION
    assert set(GOLDEN["states"]) == {case.name for case in CASES}


def test_every_version_has_its_note() -> None:
    text = (DOCS / "state_format.md").read_text("utf-8")
    notes = re.findall(r"^### Version (\d+)$", text, re.MULTILINE)
    assert notes == [str(version) for version in range(FORMAT_VERSION, 0, -1)]


def accepted(case: Case) -> dict[str, Any]:
    """Other hyperparameters that the factory of a case takes."""
    names = inspect.signature(case.factory).parameters
    others = {name: OTHERS[name] for name in OTHERS if name in names}
    return others | {name: value / 2 for name, value in case.numbers.items()}


@pytest.mark.slow
@each_case(lambda case: bool(accepted(case)))
def test_hyperparameters_do_not_change_the_format(case: Case) -> None:
    arguments = {"axes": mo.STACKED} if case.takes_axes else {}
    changed = case.factory(**(arguments | dict(case.arguments) | accepted(case)))
    assert golden.format_of(case, changed) == GOLDEN["states"][case.name]


def test_most_optimizers_have_hyperparameters_to_change() -> None:
    # What has none is named by its manifold, norm or roles alone.
    without = [case.name for case in CASES if not accepted(case)]
    others = (
        "monitor",
        "retract",
        "steepest",
        "tangent_project",
        "scale_by",
        "qk_clip",
    )
    assert all(name.startswith(others) for name in without), without
