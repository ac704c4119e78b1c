"""The multilayer perceptron of the published experiment."""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from manifold_optax.integrations.flax import module_list

# Uniform on ±1/sqrt(fan_in): a variance of 1 / (3 fan_in).
_uniform_fan_in = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class MLP(nnx.Module):
    """Linear layers without biases, with ReLU between them.

    Kernels are `[fan_in, fan_out]` and start uniform on ±1/sqrt(fan_in).

    Args:
        sizes: Number of inputs, widths of the hidden layers, number of outputs.
        rngs: Source of the initial kernels.
    """

    def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs):
        self.layers = module_list(
            nnx.Linear(
                fan_in,
                fan_out,
                use_bias=False,
                kernel_init=_uniform_fan_in,
                rngs=rngs,
            )
            for fan_in, fan_out in itertools.pairwise(sizes)
        )

    def __call__(
        self, inputs: Float[Array, "*batch features"]
    ) -> Float[Array, "*batch classes"]:
        """Returns the logits."""
        *hidden, readout = self.layers
        for layer in hidden:
            inputs = nnx.relu(layer(inputs))
        return readout(inputs)
