"""The manifold, the norm and the mass of each parameter, by rules.

A rule's key is the label of a role or a pattern of paths. `matrix`, `embedding`,
`readout`, `vector`, `router` and `other` are always labels, and so is the own label of
the parameter in question; every other key is a pattern (`trees.matches`). The first
rule that fits wins. A path with a component that is called like a label is reached by
an anchored pattern: `^embedding`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from manifold_optax.geometry import (
    ColumnRms,
    Euclidean,
    Manifold,
    Max,
    Norm,
    RmsToRms,
    RowRms,
    steepest_direction,
)
from manifold_optax.matrices import Axes, Split
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.roles import EMBEDDING, MATRIX, NOT_MATRICES, OTHER, VECTOR
from manifold_optax.trees import check_pattern, matches

Geometry: TypeAlias = tuple[Manifold, Norm]
"""A manifold, and the norm in which a step on it is measured."""

GeometryRules: TypeAlias = Mapping[str, Geometry | Manifold | Norm]
"""Label or pattern → manifold and norm; a manifold alone keeps the norm of the role, a
norm alone is one of the Euclidean space."""

LABELS = (MATRIX, *NOT_MATRICES)
"""Keys of rules that are labels whatever the paths are."""

_V = TypeVar("_V")


def geometry_of(
    path: str,
    role: str,
    axes: Axes | None,
    shape: tuple[int, ...],
    rules: GeometryRules | None = None,
) -> Geometry:
    """The manifold and the norm of one parameter.

    Without a rule the space is Euclidean, and the norm is that of the role:

    | role | norm | reason |
    |---|---|---|
    | `"embedding"` | RMS of the vector of a token | each input is one token |
    | `"vector"`, `"other"` | largest entry | that is the gain of `x ↦ g∘x` |
    | all others | `RmsToRms` | the gain of the linear map |

    A convolution is the linear map from its window to the output channels. Heads are
    one by one matrices where `axes` make the axis of heads a batch axis.

    Args:
        path: of the parameter.
        role: its label.
        axes: which of its axes are the matrix, as in `Atom`.
        shape: of the whole leaf.
        rules: label or pattern of paths → `(manifold, norm)`, a manifold or a norm; the
            first that fits wins. `check_geometry_rules` checks them beforehand.

    Returns:
        A pair whose steepest direction is known.

    Raises:
        ValueError: for a pair without a known direction, a size `"kept"`, and a vector
            with another geometry than `(Euclidean(), Max())`.

    Example:
        >>> geometry_of("up/kernel", "matrix", None, (4, 8))
        (Euclidean(), RmsToRms())
        >>> rules = {"matrix": Stiefel("rms")}
        >>> geometry_of("up/kernel", "matrix", None, (4, 8), rules)[0].scale
        'rms'

    Source: T. Large et al., "Scalable Optimization in the Modular Norm" (arXiv
    2405.14813, 2024), for linear maps and embeddings.
    """
    default = (Euclidean(), _norm_of_role(role, axes))
    rule = first_match(rules or {}, path, role)
    if rule is None:
        return default
    if isinstance(rule, Manifold):
        found = (rule, default[1])
    elif isinstance(rule, Norm):
        found = (default[0], rule)
    else:
        found = rule
    check_geometry(path, role, shape, found)
    return found


def check_geometry_rules(rules: Any) -> None:
    """Raises TypeError or ValueError unless `rules` are rules of manifolds and norms.

    Raises:
        TypeError: unless `rules` is a mapping from strings to pairs, manifolds, norms.
        ValueError: for a key that is neither a label nor a regular expression.
    """
    _check_mapping("geometry", rules, "(manifold, norm), a manifold or a norm")
    for key, value in rules.items():
        pair = isinstance(value, tuple) and len(value) == 2
        if pair and isinstance(value[0], Manifold) and isinstance(value[1], Norm):
            continue
        if not isinstance(value, Manifold | Norm):
            raise TypeError(
                f"The rule {key!r} must be a pair (manifold, norm), a manifold or a "
                "norm, for example (mo.Stiefel('rms'), mo.RmsToRms()); got "
                f"{value!r}."
            )


def check_geometry(
    path: str, role: str, shape: tuple[int, ...], geometry: Geometry
) -> None:
    """Raises ValueError for a manifold and a norm that no step can be made for."""
    manifold, norm = geometry
    what = f"The parameter {path!r} of shape {shape} (role {role!r})"
    if role == VECTOR or len(shape) < 2:
        if geometry != (Euclidean(), Max()):
            raise ValueError(
                f"{what} is no matrix: its geometry must be mo.Euclidean() with "
                f"mo.Max(), the largest entry; got {manifold} with {norm}. Name it "
                "'matrix' in the roles, with its axes, if it is one."
            )
        return
    if manifold.size == "kept":
        raise ValueError(
            f"{what} has the manifold {manifold}, whose size is that of the weights: "
            "a step on it is relative, but shares are lengths of steps in the norm. "
            "Give a size, a number or 'rms'."
        )
    try:
        steepest_direction(manifold, norm)
    except ValueError as error:
        raise ValueError(
            f"{what} has a manifold and a norm without a known direction; give both "
            f"in its rule, (manifold, norm). {error}"
        ) from None


def first_match(rules: Mapping[str, _V], path: str, role: str) -> _V | None:
    """The value of the first rule that fits; `None` if none does."""
    return next((v for key, v in rules.items() if fits(key, path, role)), None)


def fits(key: str, path: str, role: str) -> bool:
    """Whether the rule `key`, a label or a pattern, is about this parameter."""
    return key == role or (key not in LABELS and matches(key, path))


def plain_name(geometry: Manifold | Norm) -> str:
    """Name of a manifold or norm, without empty brackets: `RmsToRms`."""
    return str(geometry).removesuffix("()")


def idle_rules(rules: Mapping[str, Any], atoms: Iterable[Atom]) -> list[str]:
    """The keys that fit no atom."""
    known = tuple(atoms)
    return [k for k in rules if not any(fits(k, a.path, a.role) for a in known)]


def check_keys(name: str, rules: Any, atoms: Iterable[Atom], values: str) -> None:
    """Checks the keys of the argument `name` against the parameters that there are.

    Args:
        name: of the argument.
        rules: what was given for it.
        atoms: all parameters.
        values: what its values must be, in words.

    Raises:
        TypeError: unless `rules` is a mapping with strings as keys.
        ValueError: for invalid patterns, and for keys that fit no parameter.
    """
    _check_mapping(name, rules, values)
    known = tuple(atoms)
    idle = idle_rules(rules, known)
    if idle:
        labels = ", ".join(dict.fromkeys(atom.role for atom in known))
        paths = ", ".join(atom.path for atom in known)
        raise ValueError(
            f"The keys {idle} of {name} fit no parameter; a key is a label or a "
            f"pattern of whole components of a path. The labels are: {labels}. The "
            f"paths are: {paths}."
        )


def _check_mapping(name: str, rules: Any, values: str) -> None:
    if not isinstance(rules, Mapping):
        raise TypeError(
            f"{name} must be a dict {{label or pattern of paths: {values}}}, got "
            f"{rules!r}."
        )
    for key in rules:
        check_pattern(f"a key of {name}", key)


def _norm_of_role(role: str, axes: Axes | None) -> Norm:
    if role in (VECTOR, OTHER):
        # The gain of x ↦ g∘x in L2 is the largest |g|; and RMS(b) ≤ max |b|.
        return Max()
    if role != EMBEDDING:
        return RmsToRms()
    # Tables are stored [tokens, features]. Without axes they are read so that tokens
    # are rows; by axes that name tokens as inputs they are columns.
    return ColumnRms() if axes is not None and _reads_rows_as_inputs(axes) else RowRms()


def _reads_rows_as_inputs(axes: Axes) -> bool:
    """Whether the first of the two axes of a table is the input."""
    named = axes.axes if isinstance(axes, Split) else axes
    first, last = _first(named.reduction_axis), _first(named.output_axis)
    return first < last


def _first(axis: Any) -> int:
    return axis if isinstance(axis, int) else min(axis)
