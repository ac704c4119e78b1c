import os

import pytest

from manifold_optax.experiments.harness.backend import run_in_order

ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, f"{ORDER}=false"),
        ("--xla_dump_to=here", f"--xla_dump_to=here {ORDER}=false"),
        (f"{ORDER}=true", f"{ORDER}=true"),
        (f"{ORDER}=false", f"{ORDER}=false"),
    ],
)
def test_what_the_user_has_set_stays(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Restored after the test, set or not.
    monkeypatch.setenv("XLA_FLAGS", before or "")
    if before is None:
        monkeypatch.delenv("XLA_FLAGS")

    run_in_order()

    assert os.environ["XLA_FLAGS"] == after
