"""The role of each parameter, from how the model uses it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from manifold_optax.matrices import Axes, CONV, HEADS, HEADS_OUT, OUT_IN, Split, STACKED
from manifold_optax.matrices._axes import normalized_axis
from manifold_optax.modular._computation._declare import declaration
from manifold_optax.modular._computation._graph import Graph
from manifold_optax.modular._uses._use import Use
from manifold_optax.roles import (
    EMBEDDING,
    MATRIX,
    NOT_MATRICES,
    OTHER,
    READOUT,
    Role,
    role_by_name,
    Roles,
    roles,
    VECTOR,
)
from manifold_optax.trees import matches

Shape = tuple[int, ...]

_PRODUCTS = ("matrix", "convolution")
_INDECISIVE = ("other", "output")
"""Kinds of use that say nothing of what a parameter is, beside one that does."""


def roles_from_use(
    uses: Mapping[str, tuple[Use, ...]],
    shapes: Mapping[str, Shape],
    decided: Mapping[str, Axes | str | Role] | None = None,
) -> Roles:
    """One exact rule for each parameter.

    Args:
        uses: of each path, as `uses` returns them.
        shapes: of each path.
        decided: pattern of paths → what the parameter is, as in `roles`; it takes
            precedence. A matrix that it leaves without axes has those of its use.

    Returns:
        The roles: `"matrix"` and `"readout"` with their axes; `"embedding"`;
        `"vector"` for what is added or multiplied and for all that has fewer than two
        axes; `"other"` for the rest, unused parameters among them. The only matrix of a
        model is a `"matrix"`, though its result leaves the model.

    Raises:
        ValueError: for parameters that are used in several ways and not decided, all
            of them in one message, and for patterns of `decided` that match nothing.
    """
    chosen = _decided(uses, shapes, decided or {})
    tables = [
        path
        for path, found in uses.items()
        if any(use.kind in (*_PRODUCTS, "embedding") for use in found)
    ]
    rules, several = [], {}
    for path, found in uses.items():
        if path in chosen:
            role = chosen[path]
        else:
            different = roles_of_use(found, shapes[path], alone=len(tables) == 1)
            if len(different) > 1:
                several[path] = found
            role = different[0]
        rules.append((f"^{re.escape(path)}$", role))
    if several:
        raise ValueError(_undecided(several, shapes))
    return Roles(tuple(rules))


def declared_roles(graph: Graph, paths: Sequence[str]) -> dict[str, Any]:
    """What `declare` says of the parameters that a declared function takes, by path."""
    leaves = dict(zip(graph.inputs, paths, strict=False))
    found: dict[str, Any] = {}
    for operation in graph.operations():
        known = None
        if operation.name == "declared":
            known = declaration(operation.params["name"])
        if known is None:
            continue
        for value, role in zip(operation.operands, known.roles, strict=False):
            while value.operation is not None and len(value.operation.operands) == 1:
                (value,) = value.operation.operands
            if role is not None and value in leaves:
                found[f"^{re.escape(leaves[value])}$"] = role
    return found


def unused(uses: Mapping[str, tuple[Use, ...]]) -> tuple[str, ...]:
    """Paths of the parameters without a use; see `uses`."""
    return tuple(path for path, found in uses.items() if not found)


def conflicts(
    uses: Mapping[str, tuple[Use, ...]],
    shapes: Mapping[str, Shape],
    decided: Mapping[str, Axes | str | Role] | None = None,
) -> list[str]:
    """Where the names of parameters contradict how they are used.

    A conflict is: a name of vectors for what is contracted as a matrix, and the other
    way round; a name that takes the other axis for the input; a name of readouts for
    a matrix in the middle of the model. No conflict is what names cannot say: heads one
    by one, fused products, that a matrix is the last one; nor a name of embeddings for
    a matrix, since patches, times and positions are embedded by matrices, too.

    Args:
        uses: of each path, as `uses` returns them.
        shapes: of each path.
        decided: as for `roles_from_use`; what it names is no conflict.

    Returns:
        One message for each conflict: what the name says, what the use says and where,
        and how to decide. The same leaf of numbered layers is one conflict.
    """
    patterns = tuple(decided or {})
    readouts = [p for p, found in uses.items() if any(use.readout for use in found)]
    alike: dict[tuple[str, Role, Role], list[str]] = {}
    for path, found in uses.items():
        named = role_by_name(path, shapes[path])
        different = roles_of_use(found, shapes[path], alone=False)
        if named is None or len(different) > 1:
            continue
        if any(matches(pattern, path) for pattern in patterns):
            continue
        if _differ(path, named, different[0], shapes[path], readouts):
            key = (_pattern(path), named, different[0])
            alike.setdefault(key, []).append(path)
    return [
        _conflict(paths, shapes[paths[0]], named, role, uses[paths[0]])
        for (_, named, role), paths in alike.items()
    ]


def described(use: Use, rank: int) -> str:
    """A use in words: `matrix [in, out], heads one by one, at model.py:12:4 (f)`."""
    words = [use.kind if use.axes is None else f"{use.kind} {_layout(use.axes, rank)}"]
    if use.note:
        words.append(use.note)
    if use.readout:
        words.append("the last of the model")
    return f"{', '.join(words)}, by {use.operation}"


def roles_of_use(found: tuple[Use, ...], shape: Shape, *, alone: bool) -> list[Role]:
    """The different roles that follow from the uses of one parameter."""
    decisive = [use for use in found if use.kind not in _INDECISIVE] or [*found]
    different: dict[Role, None] = {}
    for use in decisive:
        if len(shape) < 2:
            role = Role(VECTOR)
        elif use.kind in _PRODUCTS:
            role = Role(READOUT if use.readout and not alone else MATRIX, use.axes)
        else:
            role = Role(_LABELS[use.kind])
        different[role] = None
    return [*different] or [Role(OTHER)]


_LABELS = {
    "embedding": EMBEDDING,
    "bias": VECTOR,
    "gain": VECTOR,
    "other": OTHER,
    "output": OTHER,
}


def _decided(
    uses: Mapping[str, tuple[Use, ...]],
    shapes: Mapping[str, Shape],
    decided: Mapping[str, Axes | str | Role],
) -> dict[str, Role]:
    """What the user says, by path; axes that are left open are those of the use."""
    chosen: dict[str, Role] = {}
    idle = []
    for pattern, role in roles(decided).rules:
        paths = [path for path in uses if matches(pattern, path)]
        if not paths:
            idle.append(pattern)
        for path in paths:
            if path not in chosen:
                chosen[path] = _with_axes(role, uses[path], shapes[path])
    if idle:
        raise ValueError(
            f"The patterns {idle} of the given roles match no parameter; a pattern "
            "must match whole components of a path. The paths are: "
            f"{', '.join(map(repr, uses))}."
        )
    return chosen


def _with_axes(role: Role, found: tuple[Use, ...], shape: Shape) -> Role:
    """A role with the axes of the use, if it is a matrix without axes of its own."""
    if role.axes is not None or len(shape) < 2:
        return role
    if role.label in NOT_MATRICES and role.label != READOUT:
        return role
    return Role(role.label, next((use.axes for use in found if use.axes), None))


def _undecided(
    several: Mapping[str, tuple[Use, ...]], shapes: Mapping[str, Shape]
) -> str:
    alike: dict[str, list[str]] = {}
    for path in several:
        alike.setdefault(_pattern(path), []).append(path)
    lines, choices = [], []
    for paths in alike.values():
        first = paths[0]
        lines.append(f"  {_named(paths)} {shapes[first]} is used as")
        lines.extend(
            f"    - {described(u, len(shapes[first]))}" for u in several[first]
        )
        choices.append(f"{_key(paths)}: {_choice(several[first])!r}")
    return (
        "These parameters are used in more than one way, so you must decide their "
        "roles:\n" + "\n".join(lines) + "\nSay what they are to the optimizer, for "
        f"example read(..., roles={{{', '.join(choices)}}}). For a matrix give its "
        "axes, such as mo.STACKED [in, out] or mo.OUT_IN [out, in]; for none of these, "
        "'other'."
    )


def _named(paths: list[str]) -> str:
    more = f" (and {len(paths) - 1} like it)" if len(paths) > 1 else ""
    return f"{paths[0]!r}{more}"


def _pattern(path: str) -> str:
    """A pattern of a path, and of the same leaf in all layers that are numbered."""
    parts = (r"\d+" if one.isdigit() else re.escape(one) for one in path.split("/"))
    return f"^{'/'.join(parts)}$"


def _key(paths: list[str]) -> str:
    """The key of a rule for these paths."""
    return repr(paths[0]) if len(paths) == 1 else f"r'{_pattern(paths[0])}'"


def _choice(found: tuple[Use, ...]) -> str:
    kinds = {use.kind for use in found}
    return (
        EMBEDDING if "embedding" in kinds else MATRIX if kinds & {*_PRODUCTS} else OTHER
    )


def _differ(
    path: str, named: Role, used: Role, shape: Shape, readouts: list[str]
) -> bool:
    """Whether a name and a use exclude each other."""
    contracted = used.label in (MATRIX, READOUT)
    if named.label == VECTOR:
        return contracted
    if named.label == MATRIX:
        if contracted:
            return _inputs(named.axes, len(shape)) != _inputs(used.axes, len(shape))
        return used.label in (VECTOR, EMBEDDING)
    if named.label == READOUT:
        return used.label == VECTOR or (
            used.label == MATRIX and not _beside(path, shape, readouts)
        )
    return False


def _beside(path: str, shape: Shape, readouts: list[str]) -> bool:
    """Whether a parameter is in one part of the model with a readout by use.

    That part has the name of a readout: `head/0/kernel` beside `head/2/kernel`.
    """
    parts = path.split("/")
    for end in range(1, len(parts)):
        part = "/".join(parts[:end])
        named = role_by_name(f"{part}/kernel", shape)
        if named is not None and named.label == READOUT:
            return any(other.startswith(f"{part}/") for other in readouts)
    return False


def _inputs(axes: Axes | None, rank: int) -> set[int]:
    """The input axes of a matrix."""
    numbers: Any = axes.axes if isinstance(axes, Split) else axes
    if numbers is None:
        return set()
    inputs = numbers.reduction_axis
    inputs = (inputs,) if isinstance(inputs, int) else inputs
    return {normalized_axis(axis, rank, "") for axis in inputs}


def _layout(axes: Axes, rank: int) -> str:
    """`[batch, in, out]`: what each axis is."""
    inputs = _inputs(axes, rank)
    numbers: Any = axes.axes if isinstance(axes, Split) else axes
    outputs = numbers.output_axis
    outputs = (outputs,) if isinstance(outputs, int) else outputs
    names = ["batch"] * rank
    for axis in inputs:
        names[axis] = "in"
    for axis in outputs:
        names[axis] = "out"
    if isinstance(axes, Split):
        names[axes.axis] += f" in {len(axes.sizes)} blocks"
    return f"[{', '.join(names)}]"


def _conflict(
    paths: list[str], shape: Shape, named: Role, role: Role, found: tuple[Use, ...]
) -> str:
    name = named.label
    if named.axes is not None:
        name = f"{name} {_layout(named.axes, len(shape))}"
    used = "; ".join(described(use, len(shape)) for use in found)
    value = repr(role.label)
    if role.axes is not None:
        value = f"mo.Role({role.label!r}, {_spelled(role.axes)})"
    return (
        f"The name of {_named(paths)} {shape} says {name}, but the model uses it as "
        f"{used}. Decide with read(..., roles={{{_key(paths)}: …}}): {value} goes by "
        f"the use, {named.label!r} by the name."
    )


def _spelled(axes: Axes) -> str:
    """Axes as one writes them."""
    return next((f"mo.{name}" for name, known in _NAMES if known == axes), f"{axes}")


_NAMES = (
    ("STACKED", STACKED),
    ("OUT_IN", OUT_IN),
    ("CONV", CONV),
    ("HEADS", HEADS),
    ("HEADS_OUT", HEADS_OUT),
)
