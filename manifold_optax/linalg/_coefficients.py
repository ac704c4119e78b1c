"""Coefficients of odd polynomial iterations, each with its source.

A row `(a, b, c)` is the polynomial `a·s + b·s³ + c·s⁵`, applied to all singular values
at once. A schedule is a tuple of rows; its length is the number of steps. Rounding and
rank-one matrices put values slightly above `s = 1`: `JORDAN` and `YOU` stay tame up to
1.05, `POLAR_EXPRESS` up to 1.01.
"""

import math
from typing import Any

from manifold_optax._typing import Schedule

JORDAN: Schedule = ((3.4445, -4.7750, 2.0315),) * 5
"""Muon's own row, five times: steep at 0 (485), image of [1e-2, 1] in [0.68, 1.14].

It does not converge to 1. Source: K. Jordan et al., "Muon: An optimizer for hidden
layers in neural networks" (2024), and its repository KellerJordan/Muon.
"""

YOU: Schedule = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Rows tuned step by step; image of [1e-2, 1] in [0.978, 1.032].

Source: J. You's rows, as carried by `optax.contrib.muon` (preset "dion") and by the
repository microsoft/dion.
"""

_PUBLISHED_POLAR_EXPRESS: Schedule = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408949524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)

TAYLOR_ROW: tuple[float, float, float] = (15 / 8, -5 / 4, 3 / 8)
"""Quintic Newton–Schulz row: cubic convergence to 1, and the limit of POLAR_EXPRESS.

It is the Taylor series of (1 + e)^(-1/2) at e = s² − 1, so that
|f(s) − 1| ≤ (5/16)|e|³ + O(e⁴).
Source: the Padé family in N. Higham, "Functions of Matrices" (SIAM, 2008), chapter 8.
"""

_SAFETY = 1.01
"""Divisor of the input that keeps rows tame above 1: row(s/1.01) for all but the last.

Source: the list of the repository thinking-machines-lab/manifolds (commit 89dcae5).
"""

POLAR_EXPRESS: Schedule = (
    *(
        (a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5)
        for a, b, c in _PUBLISHED_POLAR_EXPRESS
    ),
    TAYLOR_ROW,
)
"""Minimax rows for [1e-3, 1] in eight steps, slope 6363 at 0.

Input above 1 is tolerated up to 1.01. Source: N. Amsel, D. Persson, C. Musco,
R. Gower, "The Polar Express" (arXiv 2505.16932, 2025), algorithm 1, lower bound 1e-3.
"""

RANK_ROW: tuple[float, float, float] = (0.0, 5 / 2, -3 / 2)
"""Row that decides: 0 and 1 both attract quadratically, the border is √(2/3) ≈ 0.816.

`f(0) = f'(0) = 0`, `f(1) = 1`, `f'(1) = 0` determine it among the odd quintics.
"""


def check_schedule(schedule: Any) -> None:
    """Raises ValueError unless `schedule` is a tuple of rows of finite numbers."""
    rows = schedule if isinstance(schedule, tuple | list) else ()
    shaped = all(isinstance(row, tuple | list) and len(row) == 3 for row in rows)
    if not rows or not shaped or not all(math.isfinite(x) for row in rows for x in row):
        raise ValueError(
            "A schedule is a tuple of rows (a, b, c) of finite numbers, one per step, "
            f"e.g. mo.linalg.JORDAN; got {schedule!r}."
        )
