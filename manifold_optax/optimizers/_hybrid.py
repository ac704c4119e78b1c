"""One optimizer for the matrices of a model, another for everything else."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import optax

from manifold_optax._reports import listening, report
from manifold_optax._typing import ArrayTree
from manifold_optax._versions import without_variables
from manifold_optax.matrices._report import MatrixReport
from manifold_optax.matrices._view import View, views_of
from manifold_optax.roles import (
    LabelReport,
    MATRIX,
    NOT_MATRICES,
    OTHER,
    Roles,
    roles,
)
from manifold_optax.trees import is_absent, leaves_by_path

Labels = Roles | Callable[[ArrayTree], ArrayTree]


def hybrid(
    matrices: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
    *,
    others: optax.GradientTransformation | None = None,
    labels: Labels | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gives the matrices of a model one optimizer, and everything else another.

    It is `optax.partition` by the labels of `mo.roles`. `hybrid(muon(0.02))` stands
    where `optax.contrib.muon(0.02)` stood, with two differences: no leaf is labelled by
    its rank alone (what a name does not tell is an error that lists the parameters),
    and the other parameters have a learning rate of their own.

    Say once what the parameters are, and give it to both sides:

        model = mo.roles({"query|key|value": mo.HEADS, r"conv\d+": mo.CONV})
        tx = hybrid(muon(0.02, axes=model), labels=model)

    Args:
        matrices: for the leaves labelled `"matrix"`; or a dict with one transformation
            for each label of matrices.
        others: for the leaves with any other label; `None`: `optax.adamw(3e-4)`. AdamW
            divides by the square root of second moments, which float16 cannot hold:
            keep such parameters in float32 or bfloat16.
        labels: the `Roles` of the model, or any function from the parameters to their
            labels; `None`: `mo.roles()`, the strict reading of names.

    Returns:
        A transformation over the whole model.

    Raises:
        TypeError: if a transformation or `labels` is of another kind.
        ValueError: for a mapping that is empty or has a label of `others`. At init,
            naming the leaf: for a label that has no transformation, a
            transformation whose label no leaf has, and a transformation that reads a
            leaf along other axes than `labels` say.

    Example:
        >>> params = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
        >>> tx = hybrid(muon(0.02), others=optax.adamw(1e-3))
        >>> updates, _ = tx.update(params, tx.init(params), params)
    """
    named: dict[Hashable, optax.GradientTransformation] = (
        {**matrices} if isinstance(matrices, Mapping) else {MATRIX: matrices}
    )
    labels = roles() if labels is None else labels
    _check(named, labels)
    named[OTHER] = optax.adamw(3e-4) if others is None else others
    for label, transformation in named.items():
        if not isinstance(transformation, optax.GradientTransformation):
            name = "others" if label == OTHER else "matrices"
            raise TypeError(
                f"{name}: the transformation for the label {label!r} must be an "
                f"optax.GradientTransformation, got {transformation!r}."
            )
    partition = optax.partition(
        named, lambda params: jax.tree.map(_shared, labels(params))
    )

    def init_fn(params: ArrayTree) -> Any:
        if not jax.tree.leaves(params):
            return partition.init(params)
        by_path = leaves_by_path(labels(params))
        _check_labels(by_path, named)
        with listening() as facts:
            state = partition.init(without_variables(params))
        if isinstance(labels, Roles):
            _check_axes(labels, by_path, leaves_by_path(params), facts)
        report(LabelReport(by_path, others=True))
        return state

    return optax.GradientTransformationExtraArgs(init_fn, partition.update)


def _shared(label: str) -> str:
    """The label in the partition: all that are no matrices share one transformation."""
    return OTHER if label in NOT_MATRICES else label


def _check(named: Mapping[Hashable, Any], labels: Any) -> None:
    if not named or set(named) & set(NOT_MATRICES):
        raise ValueError(
            "The mapping of labels to transformations must have labels of matrices, "
            f"and none of {NOT_MATRICES}, whose transformation is the argument others; "
            f"got the labels {list(named)}."
        )
    if not callable(labels):
        raise TypeError(
            "labels must be mo.roles(...) or a function from the parameters to their "
            f"labels, got {labels!r}."
        )


def _check_labels(by_path: Mapping[str, Any], named: Mapping[Hashable, Any]) -> None:
    """Raises ValueError unless labels and transformations belong to each other."""
    found = {path: label for path, label in by_path.items() if not is_absent(label)}
    own = [label for label in named if label != OTHER]
    known = (*own, *NOT_MATRICES)
    unknown = {path: label for path, label in found.items() if label not in known}
    if unknown:
        raise ValueError(
            "There is no transformation for the labels of these parameters: "
            f"{unknown}. The labels with a transformation are {own}; "
            f"{list(NOT_MATRICES)} go to others."
        )
    idle = [label for label in own if label not in found.values()]
    if idle:
        raise ValueError(
            f"No parameter has the label {', '.join(map(repr, idle))}, for which there "
            f"is a transformation. The labels are: {found}."
        )


def _check_axes(
    known: Roles,
    labels: Mapping[str, Any],
    leaves: Mapping[str, Any],
    facts: list[Any],
) -> None:
    """Raises ValueError where a transformation reads a leaf otherwise than its role."""
    for fact in facts:
        for path, views in fact.views.items() if isinstance(fact, MatrixReport) else ():
            if path not in labels:
                continue
            leaf = leaves[path]
            role = known.role_of(path, tuple(leaf.shape))
            declared = None if role is None else role.axes
            wanted = views if declared is None else views_of(leaf, path, declared)
            if wanted != views:
                raise ValueError(
                    f"By its role {path!r} of shape {tuple(leaf.shape)} is "
                    f"{_sizes(wanted)} (fan_out × fan_in), but {fact.name} reads it as "
                    f"{_sizes(views)}. Give the roles to the transformation too: "
                    "axes=roles."
                )


def _sizes(views: tuple[View, ...]) -> str:
    return ", ".join(f"{view.fan_out} × {view.fan_in}" for view in views)
