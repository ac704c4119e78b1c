"""What the table of transformations says of each, and the model they are checked on."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

import manifold_optax as mo

Tree = Any
Tx = optax.GradientTransformationExtraArgs

# One tall, one wide and two stacked matrices of one shape: a single kernel to compile.
KERNELS = {
    "first": {"kernel": (8, 2)},
    "second": {"kernel": (2, 8)},
    "third": {"kernel": (2, 8, 2)},
}
VECTOR = {"fourth": {"bias": (3,)}}

EUCLIDEAN = mo.Euclidean()

# The same program, differently fused or batched, rounds differently: a few dozen
# float32 units (6e-8) of entries of order 1; eigenvectors amplify that tenfold.
ROUNDING = 2e-5


@dataclasses.dataclass(frozen=True)
class Case:
    """One public factory with arguments, and what holds for it."""

    name: str
    factory: Callable[..., Tx]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Arguments that may be injected as hyperparameters."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Extra arguments that every update is given: `make` binds them."""
    names_leaves: bool = False
    """Works on leaves that it names, which must be there, and passes all others."""
    manifold: mo.Manifold = EUCLIDEAN
    """Where the parameters lie at the start."""
    needs_params: bool = True
    any_shape: bool = False
    """Takes leaves of any rank, not only matrices."""
    whole_model: bool = False
    """Labels the leaves by their paths, and takes all of them."""
    retracts: bool = False
    """Lands on the manifold; updates come in the dtype of the parameter."""
    decays: bool = False
    """Shrinks the parameters where the gradient is zero, each in its own way."""
    narrow: bool = False
    """Keeps an average in fewer bytes than float32."""
    covered: bool = False
    """Its code is compiled in another case too: nightly only where that is dear."""

    def make(self, factory: Callable[..., Tx] | None = None) -> Tx:
        """The transformation, or what `factory` makes of the same arguments."""
        stacked = {"axes": mo.STACKED} if self.takes_axes else {}
        arguments = stacked | dict(self.arguments)
        tx = (factory or self.factory)(**arguments, **self.numbers)
        if not self.extra:
            return tx

        def update(
            updates: Tree, state: Tree, params: Tree = None, **extra: Any
        ) -> Any:
            return tx.update(updates, state, params, **(extra | dict(self.extra)))

        return optax.GradientTransformationExtraArgs(tx.init, update)

    @property
    def public_name(self) -> str:
        return self.factory.__name__

    @property
    def takes_axes(self) -> bool:
        return "axes" in inspect.signature(self.factory).parameters

    @property
    def shapes(self) -> Tree:
        return KERNELS | VECTOR if self.any_shape or self.whole_model else KERNELS

    def __hash__(self) -> int:
        return hash(self.name)
