"""One optimizer for the matrices of a model, another for everything else."""

from collections.abc import Callable

import optax

from manifold_optax._typing import ArrayTree
from manifold_optax.labels import label_matrices, MATRIX, OTHER


def hybrid(
    matrices: optax.GradientTransformation,
    *,
    others: optax.GradientTransformation | None = None,
    labels: Callable[[ArrayTree], ArrayTree] = label_matrices,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer for a whole model: `optax.partition` by two labels.

    `hybrid(muon(0.02))` stands where `optax.contrib.muon(0.02)` stood, with two
    differences: nothing is labelled by its rank alone (what the labels cannot tell is
    an error that names the parameter), and the other parameters have a learning rate of
    their own (Optax gives them Muon's by default).

    Args:
        matrices: for the leaves labelled `"matrix"`.
        others: for the leaves labelled `"other"`; `None`: `optax.adamw(3e-4)`.
        labels: params → tree of these two labels; `label_matrices` goes by path and
            shape, `label_by_path` by your own rules.

    Returns:
        A transformation over the whole model.

    Raises:
        ValueError: at init, when `labels` cannot tell what a leaf is, or gives another
            label.

    Example:
        >>> params = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
        >>> tx = hybrid(muon(0.02), others=optax.adamw(1e-3))
        >>> updates, _ = tx.update(params, tx.init(params), params)
    """
    others = optax.adamw(3e-4) if others is None else others
    return optax.partition({MATRIX: matrices, OTHER: others}, labels)
