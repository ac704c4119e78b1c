"""Which kind of device the arithmetic is for: asked here and nowhere else."""

import jax


def on_cpu() -> bool:
    """Whether JAX's default backend is a CPU.

    What is fast differs: a CPU has fast eigendecompositions and float64, an accelerator
    has fast batched products.
    """
    return jax.default_backend() == "cpu"
