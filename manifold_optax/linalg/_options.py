"""What the names of options may be, and what a schedule is."""

import math
from typing import Literal, TypeAlias

Form: TypeAlias = Literal["auto", "direct", "gram"]
"""How `newton_schulz` multiplies."""

Preconditioner: TypeAlias = Literal["frobenius", "schatten"]
"""The norm that `newton_schulz` divides by."""

FORMS: tuple[Form, ...] = ("auto", "direct", "gram")
PRECONDITIONERS: tuple[Preconditioner, ...] = ("frobenius", "schatten")


def check_schedule(schedule: object) -> None:
    """Raises ValueError unless `schedule` is a tuple of rows of finite numbers."""
    rows = schedule if isinstance(schedule, tuple | list) else ()
    shaped = all(isinstance(row, tuple | list) and len(row) == 3 for row in rows)
    if not rows or not shaped or not all(math.isfinite(x) for row in rows for x in row):
        raise ValueError(
            "A schedule is a tuple of rows (a, b, c) of finite numbers, one per step, "
            f"e.g. mo.linalg.JORDAN; got {schedule!r}."
        )
