"""Which leaves of a model a spec means, by path; and which of them are absent."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from manifold_optax.trees import check_pattern, is_absent, join_paths, matches


def modules_of(pattern: str, leaf: str, paths: Iterable[str]) -> list[str]:
    """Modules whose path `pattern` matches and that have the leaf `leaf`."""
    found = []
    for path in paths:
        module = path.removesuffix(leaf).removesuffix("/")
        if join_paths(module, leaf) == path and matches(pattern, module):
            found.append(module)
    return found


def resolve(
    what: str, patterns: Mapping[str, Iterable[str]], leaves: Mapping[str, Any]
) -> dict[str, str]:
    """The pattern of every module that the patterns match.

    Args:
        what: what the modules are, for messages: `"attention"`.
        patterns: pattern of a module's path (`trees.matches`) → paths of the leaves
            that each such module must have.
        leaves: the leaves of the model, by path.

    Returns:
        Module path → pattern, in the order of the patterns.

    Raises:
        ValueError: for a pattern that matches no module or a module of another pattern,
            and for a leaf that is missing, `None` or masked.
    """
    owner: dict[str, str] = {}
    module_of: dict[str, str] = {}
    for pattern, wanted in patterns.items():
        wanted = tuple(dict.fromkeys(wanted))
        check_pattern(f"the {what}", pattern)
        found = dict.fromkeys(
            module for leaf in wanted for module in modules_of(pattern, leaf, leaves)
        )
        if not found:
            raise ValueError(
                f"The {what} {pattern!r} with the leaves {list(wanted)} matches "
                f"nothing. The paths are: {', '.join(leaves)}."
            )
        for module in found:
            if module in owner:
                raise ValueError(
                    f"Two {what} patterns match {module!r}: {owner[module]!r} and "
                    f"{pattern!r}; make them exclusive."
                )
            owner[module] = pattern
            for path in (join_paths(module, leaf) for leaf in wanted):
                _require_leaf(what, module, path, leaves)
                if path in module_of:
                    raise ValueError(
                        f"The leaf {path!r} belongs to two of them, the {what} "
                        f"{module_of[path]!r} and {module!r}, which would both "
                        "change it; leave it to one."
                    )
                module_of[path] = module
    return owner


def _require_leaf(what: str, module: str, path: str, leaves: Mapping[str, Any]) -> None:
    if path not in leaves:
        known = [other for other in leaves if other.startswith(join_paths(module, ""))]
        raise ValueError(
            f"The {what} {module!r} has no leaf {path!r}; its leaves are {known}."
        )
    if is_absent(leaves[path]):
        raise ValueError(
            f"The leaf {path!r} of the {what} {module!r} is {leaves[path]!r} here. "
            "This transformation needs it: chain it after optax.partition (or "
            "mo.hybrid, optax.masked), not inside, and do not freeze the leaf."
        )


def require_statistics(
    name: str,
    given: Any,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    hint: str,
    allow_missing: bool = False,
) -> None:
    """Raises unless `given` has an array of the right shape for every module.

    Args:
        name: name of the extra argument, for messages.
        given: what came.
        shapes: module path → shape that its array must have.
        hint: what to do about a wrong shape.
        allow_missing: whether modules may be left out.

    Raises:
        TypeError: for anything but a mapping of real arrays.
        ValueError: for missing and unknown paths and for wrong shapes.
    """
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{name} must be a dict {{path: array}} for {list(shapes)}, got "
            f"{type(given).__name__}."
        )
    missing = [] if allow_missing else [path for path in shapes if path not in given]
    unknown = [path for path in given if path not in shapes]
    if missing or unknown:
        raise ValueError(
            f"{name} must have an array for each of {list(shapes)}; missing: "
            f"{missing}, unknown: {unknown}."
        )
    for path, array in given.items():
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise TypeError(
                f"{name}[{path!r}] must be an array, got {type(array).__name__}."
            )
        # Also numbers too narrow to compute with (float8) are refused.
        floating = jax.numpy.issubdtype(array.dtype, jax.numpy.floating)
        if not floating or jax.numpy.finfo(array.dtype).bits < 16:
            raise TypeError(
                f"{name}[{path!r}] must be real and floating, of at least 16 bits, got "
                f"{array.dtype}."
            )
        if tuple(array.shape) != tuple(shapes[path]):
            raise ValueError(
                f"{name}[{path!r}] must have the shape {tuple(shapes[path])}, got "
                f"{tuple(array.shape)}. {hint}"
            )
