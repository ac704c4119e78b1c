"""The message about parameters that nothing tells: rules to paste into `roles`."""

import re
from collections.abc import Mapping

from manifold_optax.roles._role import OTHER

_WINDOW = 11
"""Largest window of a convolution that is taken for one."""


def unknown_parameters(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """One message for all parameters that cannot be told.

    Args:
        shapes: path → shape of each of them.
    """
    rules: dict[str, list[tuple[int, ...]]] = {}
    for path, shape in shapes.items():
        rules.setdefault(_pattern(path), []).append(shape)
    lines = "\n".join(
        f"    r'{pattern}': {OTHER!r},  # {_shapes(found)}: {_choices(pattern, found)}"
        for pattern, found in rules.items()
    )
    return (
        f"The names and shapes of {len(shapes)} parameters do not tell what they are: "
        f"{', '.join(map(repr, list(shapes)[:8]))}{', …' if len(shapes) > 8 else ''}. "
        "Say so with these rules; each comment lists the values that fit, and "
        f"{OTHER!r} means no matrix:\nmo.roles({{\n{lines}\n}})"
    )


def _pattern(path: str) -> str:
    """A pattern of this path and of the same leaf in all layers that are numbered."""
    components = (
        r"\d+" if part.isdigit() else re.escape(part) for part in path.split("/")
    )
    return f"^{'/'.join(components)}$"


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    different = list(dict.fromkeys(shapes))
    return ", ".join(map(str, different[:3])) + (", …" if len(different) > 3 else "")


def _choices(pattern: str, shapes: list[tuple[int, ...]]) -> str:
    """Values of a rule that fit all of the shapes, with what the axes then mean."""
    ranks = {len(shape) for shape in shapes}
    choices = _AXES.get(min(ranks), _AXES[5]) if len(ranks) == 1 else _AXES[5]
    windows = all(max(shape[:-2], default=0) <= _WINDOW for shape in shapes)
    if ranks == {4} and windows and "conv" in pattern.lower():
        choices = choices[:1]
    return ", ".join((*choices, "'embedding'", "'readout'", "'vector'"))


_AXES: dict[int, tuple[str, ...]] = {
    2: ("mo.STACKED [in, out]", "mo.OUT_IN [out, in]"),
    3: (
        "mo.STACKED [batch, in, out]",
        "mo.HEADS [in, heads, head_dim]",
        "mo.HEADS_OUT [heads, head_dim, out]",
    ),
    4: (
        "mo.CONV [height, width, in, out]",
        "mo.STACKED [batch, batch, in, out]",
        "mo.HEADS [batch, in, heads, head_dim]",
        "mo.HEADS_OUT [batch, heads, head_dim, out]",
    ),
    5: ("mo.STACKED [batch, …, in, out]", "optax.contrib.MuonDimensionNumbers(…)"),
}
"""Named axes by the number of axes of a leaf; the last row is for all others."""
