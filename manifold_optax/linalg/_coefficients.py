"""Coefficients of odd polynomial iterations, each with its source.

A row `(a, b, c)` is the polynomial `a·s + b·s³ + c·s⁵`, applied to all singular values
at once. A schedule is a tuple of rows; its length is the number of steps.

Rounding and rank-one matrices put values slightly above `s = 1`, so every schedule here
is bounded and positive up to 1.01 (`DEEPSEEK`, `SIMPLE`, `TAYLOR`, `CLASSIC`,
`POLAR_EXPRESS_FAST`, `MODULA` up to 1.02; `JORDAN`, `YOU`, `POLAR_EXPRESS_WIDE` up to
1.05). Rows that are not are divided: row(s/1.01) for `(a, b, c)` is
`(a/1.01, b/1.01³, c/1.01⁵)`. A published schedule is missing on purpose: the first of
the four rows that go with "almost orthogonal layer" scaling (Turbo-Muon) is negative
above 0.884, where rank-one and orthogonal matrices have their values, and turns a
descent step into one of ascent.
"""

from manifold_optax._typing import Schedule


def _divided(rows: Schedule, factor: float) -> Schedule:
    """The rows as functions of `s / factor`."""
    return tuple((a / factor, b / factor**3, c / factor**5) for a, b, c in rows)


_SAFETY = 1.01
"""Divisor of the input that keeps rows tame above 1.

Source: the list of the repository thinking-machines-lab/manifolds (commit 89dcae5).
"""

JORDAN: Schedule = ((3.4445, -4.7750, 2.0315),) * 5
"""Muon's own row, five times: steep at 0 (485), image of [1e-2, 1] in [0.68, 1.14].

It does not converge to 1. Source: K. Jordan et al., "Muon: An optimizer for hidden
layers in neural networks" (2024), and its repository KellerJordan/Muon.
"""

SIMPLE: Schedule = ((2.0, -1.5, 0.5),) * 12
"""Slow and robust: fixed points 0, 1 and √2, image of [1e-3, 1] in [1 − 1e-4, 1].

Slope 4096 at 0. Source: the "simple" rows of the repository
KellerJordan/modded-nanogpt.
"""

DEEPSEEK: Schedule = JORDAN[:1] * 8 + SIMPLE[:2]
"""Jordan's row eight times, then two steps to 1; image of [1e-3, 1] in [1, 1.0005].

Slope 79 000 at 0. Source: DeepSeek-V4, as carried by the repository
NVIDIA-NeMo/Emerging-Optimizers.
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

MODULA: Schedule = (
    (3955 / 1024, -8306 / 1024, 5008 / 1024),
    (3735 / 1024, -6681 / 1024, 3463 / 1024),
    (3799 / 1024, -6499 / 1024, 3211 / 1024),
    (4019 / 1024, -6385 / 1024, 2906 / 1024),
    (2677 / 1024, -3029 / 1024, 1162 / 1024),
    (2172 / 1024, -1833 / 1024, 682 / 1024),
)
"""Six tuned rows, exact in bfloat16's integers; image of [1e-2, 1] in [0.995, 1].

Slope 1137 at 0. Source: J. You's six rows, as carried by the repository
modula-systems/modula.
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

TAYLOR: Schedule = (TAYLOR_ROW,) * 12
"""The quintic Newton–Schulz iteration: slope 1888 at 0, [1e-2, 1] goes to 1.

Source: see `TAYLOR_ROW`.
"""

CLASSIC: Schedule = ((1.5, -0.5, 0.0),) * 15
"""The cubic Newton–Schulz iteration: slope 438 at 0, [1e-2, 1] goes to 1.

Two products a step, not three. Source: G. Schulz (1933); N. Higham, "Functions of
Matrices" (SIAM, 2008), chapter 8.
"""

POLAR_EXPRESS: Schedule = (*_divided(_PUBLISHED_POLAR_EXPRESS, _SAFETY), TAYLOR_ROW)
"""Minimax rows for [1e-3, 1] in eight steps, slope 6363 at 0.

Input above 1 is tolerated up to 1.01. Source: N. Amsel, D. Persson, C. Musco,
R. Gower, "The Polar Express" (arXiv 2505.16932, 2025), algorithm 1, lower bound 1e-3;
divided after generation, as in thinking-machines-lab/manifolds.
"""

POLAR_EXPRESS_WIDE: Schedule = _divided(_PUBLISHED_POLAR_EXPRESS[:5], 1.05)
"""Five rows, divided for input up to 1.05: image of [1e-2, 1] in [0.846, 1.124].

Slope 804 at 0. Source: the repository Dao-AILab/gram-newton-schulz.
"""

POLAR_EXPRESS_FAST: Schedule = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Five rows generated with safety 1.02: image of [1e-3, 1] in [0.858, 1.142].

Slope 989 at 0; `polar_express(5, safety=1.02, cushion=0.02)` gives them. Source: the
repositories microsoft/dion and KellerJordan/modded-nanogpt, which divide the matrix by
1.02 times its norm first. `newton_schulz` divides by the norm alone, and its results
differ from theirs by 8 to 11 %; with `(a/1.02, b/1.02³, c/1.02⁵)` in place of the first
row they agree.
"""

CANS: Schedule = _divided(
    (
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ),
    _SAFETY,
)
"""Five minimax rows, divided by 1.01: image of [1e-3, 1] in [0.856, 1.114].

Slope 998 at 0. As published they are 2.8 at 1 + 1e-5 and worse beyond. Source:
E. Grishina, M. Smirnov, M. Rakhuba, "Accelerating Newton–Schulz iteration for
orthogonalization via Chebyshev-type polynomials" (arXiv 2506.10935, 2025), rows as
carried by NVIDIA-NeMo/Emerging-Optimizers.
"""

CUBIC: Schedule = _divided(
    (
        (3.3656576, -3.3420992, 0.0),
        (2.5744352, -1.4957376, 0.0),
        (2.5368962, -1.4312570, 0.0),
        (2.4418906, -1.2764040, 0.0),
        (2.2230472, -0.9630650, 0.0),
    ),
    _SAFETY,
)
"""Five cubic rows, divided by 1.01: image of [1e-2, 1] in [0.807, 1.3], slope 114.

Two products a step, not three. As published they change sign at 1.004. Source: arXiv
2606.00371 (2026), as carried by NVIDIA-NeMo/Emerging-Optimizers.
"""

RANK_ROW: tuple[float, float, float] = (0.0, 5 / 2, -3 / 2)
"""Row that decides: 0 and 1 both attract quadratically, the border is √(2/3) ≈ 0.816.

`f(0) = f'(0) = 0`, `f(1) = 1`, `f'(1) = 0` determine it among the odd quintics.
"""
