"""What the array functions accept, checked by name."""

import jax.numpy as jnp
from jaxtyping import Array


def require_floating_array(x: Array) -> None:
    """Raises TypeError unless `x` is real floating."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"Matrices must be real floating arrays, got dtype {x.dtype}; cast it, "
            "e.g. x.astype(jnp.float32)."
        )


def require_matrices(x: Array, function: str) -> None:
    """Raises TypeError or ValueError unless `x` holds real floating matrices.

    Args:
        x: the argument.
        function: who asks, for the message.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{function} needs a real floating array, got dtype {x.dtype}; cast it, "
            "e.g. x.astype(jnp.float32)."
        )
    if x.ndim < 2:
        raise ValueError(
            f"{function} needs matrices in the last two axes, got an array of shape "
            f"{tuple(x.shape)}; give a vector a second axis, e.g. x[:, None]."
        )
