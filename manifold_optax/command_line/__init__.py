"""The command line `manifold-optax`: what needs no program of one's own.

`run` starts an experiment, `describe` reads a model, `bench` measures this machine,
`doctor` says whether the numbers are right on it.
"""

from manifold_optax.command_line._main import main

__all__ = ("main",)
