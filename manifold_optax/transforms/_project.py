"""The projection of whole trees onto a manifold."""

from manifold_optax._checks import require_instance
from manifold_optax._typing import ArrayTree, AxisName, Matrix
from manifold_optax.geometry import Manifold
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.transforms._leaves import matrices_of, unit_map
from manifold_optax.transforms._start import check_layout
from manifold_optax.trees import fill_absent


def project(
    params: ArrayTree,
    manifold: Manifold,
    *,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> ArrayTree:
    """Nearest point of `manifold` for every matrix of a tree.

    For weights at the start of training, and for averages of weights, which leave the
    manifold, before they are evaluated.

    Args:
        params: tree of matrices; with `mo.Roles` a whole model.
        manifold: the constraint of every matrix.
        axes: which axes of a leaf are the matrix; all others are batch axes. With
            `mo.Roles` what is no matrix by its role is returned as it is.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A tree like `params`, in its dtypes; computed in at least float32.

    Raises:
        TypeError: if `manifold` is not a `Manifold`, or a matrix not real floating.
        ValueError: for a leaf that is not a batch of matrices. Both name the leaf.

    Example:
        >>> params = {"w1": jnp.array([[3.0, 4.0]]), "w2": jnp.eye(2), "b": jnp.ones(2)}
        >>> known = roles({"w1": STACKED})
        >>> found = project(params, Sphere(), axes=known)
        >>> print(found["w1"], found["b"])
        [[0.6 0.8]] [1. 1.]
    """
    require_instance("manifold of project", manifold, Manifold)
    check_layout(axes, placement)
    unit = manifold.unit()

    def kernel(point: Matrix, axis_name: AxisName = None) -> Matrix:
        return unit.project(point, axis_name=axis_name)

    project_all = unit_map(kernel, manifold, axes=axes, placement=placement)
    matrices = matrices_of(params, axes)
    projected = project_all((), (matrices,), like=matrices)
    # What is no matrix stays, and so does what was absent from the start.
    return fill_absent(projected, params)
