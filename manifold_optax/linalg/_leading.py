"""The largest singular value and its vectors, to rounding."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.linalg._reductions import dot, gram, matmul, near_one, nonzero


class LeadingTriple(NamedTuple):
    """Largest singular value of each matrix, and its singular vectors as columns."""

    norm: Float[Array, "*batch 1 1"]
    left: Float[Array, "*batch m 1"]
    right: Float[Array, "*batch n 1"]


def leading_triple(x: Matrix, axis_name: AxisName = None) -> LeadingTriple:
    """Largest singular value and vectors, by the Gram matrix of the short side.

    An eigendecomposition is exact to rounding also where the two largest singular
    values nearly agree, which Muon's steps make common and where a power iteration
    needs thousands of steps for 1e-6. Squaring loses digits of small values only.
    """
    if axis_name is None and x.shape[-2] < x.shape[-1]:
        turned = leading_triple(x.mT)
        return LeadingTriple(turned.norm, turned.right, turned.left)
    if 0 in x.shape:
        ends = [jnp.zeros((*x.shape[:-2], size, 1), x.dtype) for size in x.shape[-2:]]
        return LeadingTriple(jnp.zeros((*x.shape[:-2], 1, 1), x.dtype), *ends)
    scaled, scale = near_one(x, axis_name)
    right = jnp.linalg.eigh(gram(scaled, axis_name)).eigenvectors[..., -1:]
    image = matmul(scaled, right)
    norm = jnp.sqrt(dot(image, image, axis_name))
    return LeadingTriple(scale * norm, image / nonzero(norm), right)


def spectral_gradient(x: Matrix, axis_name: AxisName = None) -> Matrix:
    """The gradient `u vᵀ` of the spectral norm at each matrix."""
    found = leading_triple(x, axis_name)
    return matmul(found.left, found.right.mT)
