"""Bounds that hold for the parameters as they are: numbers inside `jax.jit`."""
