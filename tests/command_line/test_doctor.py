import dataclasses
import math

from manifold_optax.command_line import _doctor
from manifold_optax.command_line._oracles import Check

GOOD = Check("a number", 1e-7, 1e-6)


def health(*checks: Check) -> _doctor.Health:
    return _doctor.Health({"jax": "1"}, ["1 × cpu"], {}, checks)


def test_a_number_beyond_its_bound_is_wrong() -> None:
    for error in (2e-6, math.inf, math.nan):
        bad = dataclasses.replace(GOOD, error=error)
        assert not bad.is_good
        assert not health(GOOD, bad).is_good
        assert "1 of 2 checks failed" in str(health(GOOD, bad))
        assert "WRONG" in str(health(bad))


def test_all_is_well() -> None:
    assert health(GOOD).is_good
    assert "All numbers are as they should be." in str(health(GOOD))
    assert health(GOOD).as_json()["checks"][0]["is_good"] is True


def test_a_check_that_fails_does_not_end_the_report() -> None:
    def some_check() -> Check:
        raise ValueError("no memory\nand more")

    found = _doctor._done(some_check)  # pyright: ignore[reportPrivateUsage]
    assert found.what == "some check: ValueError: no memory"
    assert not found.is_good
