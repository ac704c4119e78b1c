"""What one parameter is."""

from typing import NamedTuple

from manifold_optax.matrices import Axes

MATRIX = "matrix"
"""Label of the weights of hidden linear maps."""

EMBEDDING = "embedding"
"""Label of tables whose rows are looked up by tokens, positions or codes."""

READOUT = "readout"
"""Label of the last linear map, whose outputs are tokens or classes."""

VECTOR = "vector"
"""Label of biases, gains and the parameters of norms, stacked ones included."""

ROUTER = "router"
"""Label of the linear map that chooses experts."""

OTHER = "other"
"""Label of everything else that is not optimized as a matrix."""

NOT_MATRICES = (EMBEDDING, READOUT, VECTOR, ROUTER, OTHER)
"""Labels that need no transformation of their own: `hybrid` gives them to `others`."""


class Role(NamedTuple):
    """What one parameter is: its label, and how it is a batch of matrices.

    Example: experts `[experts, in, out]` with an optimizer of their own are
    `Role("expert", STACKED)`.
    """

    label: str
    """The key of its transformation in `hybrid` and `optax.partition`."""
    axes: Axes | None = None
    """Which axes are the matrix. `None`: the two axes of a matrix; no matrix at all for
    the labels `"embedding"`, `"readout"`, `"vector"`, `"router"` and `"other"`."""
