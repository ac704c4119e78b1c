"""Experiments that train: data, models, training loop, command line, figures.

Run them with `python -m manifold_optax.experiments <name>`. Nothing in the library
imports this package; it needs the `experiments` extra.
"""
