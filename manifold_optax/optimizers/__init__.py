"""Optimizers: named chains of transformations, without arithmetic of their own."""

from manifold_optax.optimizers._hybrid import hybrid
from manifold_optax.optimizers._hyperball import hyperball
from manifold_optax.optimizers._hyperspherical import hyperspherical_descent
from manifold_optax.optimizers._manifold_muon import manifold_muon
from manifold_optax.optimizers._muon import muon
from manifold_optax.optimizers._muon_clip import muon_clip
from manifold_optax.optimizers._normuon import normuon
from manifold_optax.optimizers._scion import scion
from manifold_optax.optimizers._sign_descent import sign_descent
from manifold_optax.optimizers._spectral_sphere import spectral_sphere
from manifold_optax.optimizers._spel import spel

__all__ = (
    "hybrid",
    "hyperball",
    "hyperspherical_descent",
    "manifold_muon",
    "muon",
    "muon_clip",
    "normuon",
    "scion",
    "sign_descent",
    "spectral_sphere",
    "spel",
)
