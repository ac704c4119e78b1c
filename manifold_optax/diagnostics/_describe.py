"""What will happen to each parameter, as a table to read before the first step."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import optax

from manifold_optax._reports import listening
from manifold_optax._typing import ArrayTree
from manifold_optax.attention import ClipReport
from manifold_optax.matrices import Placement, Plan, plan_matrices
from manifold_optax.matrices._report import check_matrices, MatrixReport
from manifold_optax.matrices._view import View
from manifold_optax.roles import (
    LabelReport,
    NOT_MATRICES,
    ReadRoles,
    role_by_name,
    Roles,
    UseReport,
)
from manifold_optax.trees import is_absent, leaf_path, leaves_by_path

_HEADER = (
    "path", "shape", "dtype", "label", "fan_out × fan_in", "matrices", "links",
    "by its use", "by its name",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DescribedLeaf:
    """What is known of one parameter before the first step."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    label: str
    """Empty if nothing labels it."""
    views: tuple[View, ...]
    """The batches of matrices that it is, one per block of a `Split`, where those that
    repeat are one; none where it is no matrix."""
    links: tuple[str, ...] = ()
    """The transformations that read it as matrices, and those that clip its heads;
    `"others"` for what `hybrid` gives to its argument of that name."""
    use: str = ""
    """How the computation uses it, where that was read."""
    name: str = ""
    """The label that its name alone would give, beside a use; empty if it says none."""

    @property
    def count(self) -> int:
        """Number of matrices."""
        return sum(math.prod(view.batch_shape) for view in self.views)

    @property
    def sizes(self) -> str:
        """`fan_out × fan_in` of its matrices, of each block its own."""
        blocks = (f"{view.fan_out} × {view.fan_in}" for view in self.views)
        return ", ".join(dict.fromkeys(blocks))


@dataclasses.dataclass(frozen=True)
class Description:
    """All parameters of a model, and the plans of its matrices; `str` is a table."""

    leaves: tuple[DescribedLeaf, ...]
    plans: tuple[Plan, ...]
    """One for each set of matrices that are stacked and placed together."""

    def __str__(self) -> str:
        """One line per parameter; then, where there are matrices, their plans."""
        rows = [_HEADER, *map(_row, self.leaves)]
        columns = [c for c in zip(*rows, strict=True) if any(c[1:]) or c[0] == "path"]
        widths = [max(map(len, column)) for column in columns]
        table = "\n".join(
            "  ".join(map(str.ljust, row, widths)).rstrip()
            for row in zip(*columns, strict=True)
        )
        return "\n\n".join([table, *filter(None, map(str, self.plans))])


def describe(
    subject: optax.GradientTransformation | Roles | ReadRoles,
    params: ArrayTree,
    *,
    placement: Placement | None = None,
) -> Description:
    """Describes what an optimizer, or `Roles`, make of a model; print it to read it.

    One line per parameter: its label, which matrices it is (`fan_out × fan_in`, and how
    many of them), and which transformations read them, or that it goes to `others` of
    `hybrid`. Then the plan of these matrices, as of `plan_matrices`: which share a
    stack, and by which recipe they are computed. A wrong label, fan-in taken for
    fan-out, and a layout that is not known are all seen here. It computes nothing: the
    time is that of one trace of `init`.

    Args:
        subject: an optimizer as it was built (also inside Optax's wrappers); the
            `Roles` that one would be built with; or what `modular.read` returns, whose
            table says how each parameter is used, and what its name says.
        params: tree of arrays or `jax.ShapeDtypeStruct`s of any shapes and dtypes.
            `None`, `optax.MaskedNode` and empty leaves are passed over, as they are by
            the optimizers.
        placement: for `Roles`: which device computes which matrix. An optimizer has its
            own.

    Returns:
        The table as an object: its `leaves` and its `plans`.

    Raises:
        TypeError: if `subject` is of another kind, or for matrices of a dtype that
            cannot be optimized.
        ValueError: as `init` of the optimizer, and for `placement` beside an optimizer.
            All name the leaf.

    Example:
        >>> params = {"w1": jnp.ones((4, 2)), "b1": jnp.ones(2)}
        >>> print(describe(hybrid(muon(0.02)), params))
        path  shape   dtype    label   fan_out × fan_in  matrices  links
        b1    (2,)    float32  vector                              others
        w1    (4, 2)  float32  matrix  2 × 4             1         orthogonalize_...
        <BLANKLINE>
        stack          matrices  recipe  FLOPs  bytes sent  leaves
        4 × 2 float32  1         local   ...    0           w1
        busiest device: ... FLOPs, 0 bytes sent
    """
    if isinstance(subject, Roles):
        facts = _facts_of_roles(subject, params, placement)
    elif isinstance(subject, ReadRoles) and not isinstance(subject, type):
        facts = _facts_of_roles(subject.roles, params, placement)
        facts.append(UseReport(subject.uses))
    elif isinstance(subject, optax.GradientTransformation):
        if placement is not None:
            raise ValueError(
                "An optimizer has a placement of its own, which describe shows; give "
                f"it to the optimizer, got placement={placement!r} here."
            )
        facts = _facts_of_optimizer(subject, params)
    else:
        raise TypeError(
            "subject must be an optax.GradientTransformation, mo.Roles, or what "
            f"mo.modular.read returns; got {subject!r}."
        )
    leaves = {
        path: leaf
        for path, leaf in leaves_by_path(params).items()
        if not is_absent(leaf) and math.prod(getattr(leaf, "shape", ()))
    }
    described = tuple(_described(path, leaf, facts) for path, leaf in leaves.items())
    return Description(described, tuple(_plans(facts, params)))


def _facts_of_optimizer(
    subject: optax.GradientTransformation, params: ArrayTree
) -> list[Any]:
    with listening() as facts:
        # A new function each time: what JAX has traced before reports nothing.
        jax.eval_shape(lambda tree: subject.init(tree), params)
    return facts


def _facts_of_roles(
    roles: Roles, params: ArrayTree, placement: Placement | None
) -> list[Any]:
    labels = leaves_by_path(roles(params))
    own = {label for label in labels.values() if not is_absent(label)}
    facts: list[Any] = [LabelReport(labels)]
    for label in sorted(own):

        def keep(keys: Any, leaf: Any, label: str = label) -> Any:
            if is_absent(leaf) or labels[leaf_path(keys)] != label:
                return None
            shape = tuple(getattr(leaf, "shape", ()))
            return None if roles.axes_of(leaf_path(keys), shape) is None else leaf

        matrices = jax.tree_util.tree_map_with_path(keep, params, is_leaf=is_absent)
        if jax.tree.leaves(matrices):
            facts.append(check_matrices("", matrices, roles, placement=placement))
    return facts


def _described(path: str, leaf: Any, facts: Iterable[Any]) -> DescribedLeaf:
    label, views, links, use, name = "", (), [], "", ""
    shape = tuple(getattr(leaf, "shape", ()))
    for fact in facts:
        if isinstance(fact, LabelReport):
            label = fact.labels.get(path, label)
            if fact.others and label in NOT_MATRICES:
                links.append("others")
        elif isinstance(fact, MatrixReport) and path in fact.views:
            views = fact.views[path]
            links.append(fact.name)
        elif isinstance(fact, ClipReport) and path in fact.paths:
            links.append(fact.name)
        elif isinstance(fact, UseReport):
            use, named = fact.uses.get(path, ""), role_by_name(path, shape)
            name = "" if named is None else named.label
    dtype = str(getattr(leaf, "dtype", type(leaf).__name__))
    distinct = tuple(dict.fromkeys(filter(None, links)))
    return DescribedLeaf(path, shape, dtype, label, views, distinct, use, name)


def _plans(facts: Iterable[Any], params: ArrayTree) -> Iterable[Plan]:
    """One plan for each different set of leaves, axes and placement."""
    seen: list[Any] = []
    for fact in facts:
        if not isinstance(fact, MatrixReport) or not fact.planned or not fact.views:
            continue
        # Placements hold dictionaries of specs, which have no hash.
        if (fact.views, fact.placement) in seen:
            continue
        seen.append((fact.views, fact.placement))

        def keep(keys: Any, leaf: Any, fact: MatrixReport = fact) -> Any:
            return leaf if leaf_path(keys) in fact.views else None

        tree = jax.tree_util.tree_map_with_path(keep, params, is_leaf=is_absent)
        yield plan_matrices(tree, axes=fact.axes, placement=fact.placement)


def _row(leaf: DescribedLeaf) -> tuple[str, ...]:
    count = str(leaf.count) if leaf.views else ""
    return (
        leaf.path,
        str(leaf.shape),
        leaf.dtype,
        leaf.label,
        leaf.sizes,
        count,
        ", ".join(leaf.links),
        leaf.use,
        leaf.name,
    )
