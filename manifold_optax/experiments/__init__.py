"""Experiments that train: one folder each, and the harness that runs them.

Run them with `python -m manifold_optax.experiments <name>`. Nothing in the library
imports this package; it needs the `experiments` extra.
"""
