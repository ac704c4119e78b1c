"""The examples of all docstrings run, and every public function has one."""

import doctest
import importlib
import inspect
import pkgutil
import types

import jax
import jax.numpy as jnp
import optax
import pytest

import manifold_optax as mo
from manifold_optax import geometry, matrices

LIBRARY = [
    module.name
    for module in pkgutil.walk_packages(mo.__path__, "manifold_optax.")
    if "experiments" not in module.name
]

NAMESPACE = {"jax": jax, "jnp": jnp, "optax": optax, "mo": mo}
for package in (mo, mo.linalg, mo.sharding, geometry, matrices):
    NAMESPACE |= {name: getattr(package, name) for name in package.__all__}


@pytest.mark.parametrize("name", LIBRARY)
def test_examples_run(name: str, unhooked: None) -> None:
    module = importlib.import_module(name)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    outcome = doctest.testmod(
        module, extraglobs=NAMESPACE | vars(module), optionflags=flags
    )
    assert outcome.failed == 0


def public_functions() -> list[object]:
    packages: list[types.ModuleType] = [mo, mo.sharding, mo.initializers, mo.states]
    found = [getattr(p, name) for p in packages for name in p.__all__]
    named = ("newton_schulz", "polar", "polar_svd", "spectral_norm", "solve_lyapunov")
    found += [getattr(mo.linalg, name) for name in named]
    named = ("attend", "dot_product_attention", "largest_logits")
    found += [getattr(mo.attention, name) for name in named]
    return [item for item in found if inspect.isfunction(item)]


@pytest.mark.parametrize("function", public_functions(), ids=lambda f: f.__name__)
def test_every_public_function_has_an_example(function: types.FunctionType) -> None:
    assert ">>> " in (inspect.getdoc(function) or "")
