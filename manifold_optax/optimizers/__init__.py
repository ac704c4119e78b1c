"""Optimizers: named chains of transformations, without arithmetic of their own."""

from manifold_optax.optimizers._hybrid import hybrid
from manifold_optax.optimizers._hyperspherical import hyperspherical_descent
from manifold_optax.optimizers._manifold_muon import manifold_muon
from manifold_optax.optimizers._muon import muon
from manifold_optax.optimizers._sign_descent import sign_descent

__all__ = (
    "hybrid",
    "hyperspherical_descent",
    "manifold_muon",
    "muon",
    "sign_descent",
)
