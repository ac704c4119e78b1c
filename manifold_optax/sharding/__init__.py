"""Where each matrix is computed: placements for training on several devices.

A placement is an argument of the transformations that work on matrices. On meshes with
Explicit axes (the default of `jax.make_mesh`) none is needed: the layout is read from
the arrays, and sharded matrices are `owned`. On meshes with Auto axes the layout is not
visible inside `jit`; give it as `specs`, or leave the program to the compiler. `auto`
takes for each stack the cheaper one of `owned` and `sliced`.

`state_shardings` lays the state of an optimizer out as its parameters are. What a
compiled program sends and multiplies is counted by `mo.programs`.
"""

from manifold_optax.matrices import Placement
from manifold_optax.sharding._placements import auto, owned, sliced
from manifold_optax.sharding._states import state_shardings

__all__ = (
    "Placement",
    "auto",
    "owned",
    "sliced",
    "state_shardings",
)
