"""One optimizer for the matrices of a model, another for everything else."""

from collections.abc import Callable, Hashable, Mapping

import optax

from manifold_optax._typing import ArrayTree
from manifold_optax._versions import without_variables
from manifold_optax.labels import label_matrices, MATRIX, OTHER


def hybrid(
    matrices: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
    *,
    others: optax.GradientTransformation | None = None,
    labels: Callable[[ArrayTree], ArrayTree] = label_matrices,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer for a whole model: `optax.partition` by two labels, or by more.

    `hybrid(muon(0.02))` stands where `optax.contrib.muon(0.02)` stood, with two
    differences: nothing is labelled by its rank alone (what the labels cannot tell is
    an error that names the parameter), and the other parameters have a learning rate of
    their own (Optax gives them Muon's by default).

    Weights whose matrices lie differently (heads, experts, fused projections) need a
    label and a transformation with `axes` of its own each:

        hybrid(
            {"heads": muon(0.02, axes=per_head), "matrix": muon(0.02)},
            labels=label_by_path({r"query|key": "heads"}, default=label_matrices),
        )

    Args:
        matrices: for the leaves labelled `"matrix"`; or one transformation for each
            label but `"other"`.
        others: for the leaves labelled `"other"`; `None`: `optax.adamw(3e-4)`.
        labels: params → tree of these labels; `label_matrices` goes by path and shape
            and knows two, `label_by_path` by your own rules.

    Returns:
        A transformation over the whole model.

    Raises:
        TypeError: for something that is no transformation, naming its label.
        ValueError: for a mapping that is empty or has `"other"`; at init, when `labels`
            cannot tell what a leaf is, or gives another label.

    Example:
        >>> params = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
        >>> tx = hybrid(muon(0.02), others=optax.adamw(1e-3))
        >>> updates, _ = tx.update(params, tx.init(params), params)
    """
    named: dict[Hashable, optax.GradientTransformation] = (
        {**matrices} if isinstance(matrices, Mapping) else {MATRIX: matrices}
    )
    if not named or OTHER in named:
        raise ValueError(
            f"The mapping of labels to transformations must have labels, and not "
            f"{OTHER!r}, whose transformation is the argument others; got the labels "
            f"{list(named)}."
        )
    named[OTHER] = optax.adamw(3e-4) if others is None else others
    for label, transformation in named.items():
        if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
            raise TypeError(
                f"The transformation for the label {label!r} must be an "
                f"optax.GradientTransformation, got {transformation!r}."
            )
    partition = optax.partition(named, labels)
    return optax.GradientTransformationExtraArgs(
        lambda params: partition.init(without_variables(params)), partition.update
    )
