"""Where each matrix is computed: placements for training on several devices.

A placement is an argument of the transformations that work on matrices. On meshes with
Explicit axes (the default of `jax.make_mesh`) none is needed: the layout is read from
the arrays, and sharded matrices are `owned`. On meshes with Auto axes the layout is not
visible inside `jit`; give it as `specs`, or leave the program to the compiler.
"""

from manifold_optax.matrices import Placement
from manifold_optax.sharding._placements import owned, split

__all__ = ("Placement", "owned", "split")
