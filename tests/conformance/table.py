"""Every public transformation, once, and the small model on which all are checked.

A `Case` is one public factory with arguments. A new factory in `mo.__all__` without a
case fails `test_completeness.py`; a new case runs through every check.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
import pytest

import manifold_optax as mo
from conformance.case import Case, KERNELS, Tx, VECTOR
from manifold_optax.geometry import RowRms, SpectralSphere
from manifold_optax.modular._algebra._module import Atom
from modular.handmade import Handmade


def hybrid(learning_rate: Any, momentum: Any, weight_decay: Any) -> Tx:
    """`mo.hybrid` of numbers alone, and by path: `third` has three axes."""
    return mo.hybrid(
        mo.muon(
            learning_rate, momentum=momentum, weight_decay=weight_decay, axes=_ROLES
        ),
        others=optax.adamw(learning_rate),
        labels=_ROLES,
    )


_ROLES = mo.roles({"kernel": mo.STACKED})


def _modular() -> Handmade:
    """The model of the cases as a network that was read, with a scanned stack."""
    shapes = {
        f"{module}/{name}": shape
        for module, leaves in (KERNELS | VECTOR).items()
        for name, shape in leaves.items()
    }
    atoms = tuple(
        Atom(path, "vector", norm=mo.Max())
        if path.endswith("bias")
        else Atom(path, axes=mo.STACKED)
        for path in shapes
    )
    numbers = dict.fromkeys(shapes, (1.0,)) | {"third/kernel": (1.0, 2.0)}
    return Handmade(atoms, shapes, numbers)


_MODULE = _modular()


def modular_optimizer(learning_rate: Any, momentum: Any) -> Tx:
    """`mo.modular_optimizer` of numbers alone."""
    return mo.modular_optimizer(_MODULE, learning_rate, momentum=momentum)


# Two heads: one above the threshold of the cases below.
_ATTENTION = {
    "": mo.Attention(
        2,
        query=mo.HeadPart("first/kernel", axis=-1),
        key=mo.HeadPart("second/kernel", axis=0),
    )
}
_LARGEST = {"max_logits": {"": jnp.asarray([40.0, 1.0])}}


def muon_clip(
    learning_rate: Any, momentum: Any, weight_decay: Any, threshold: Any, balance: Any
) -> Tx:
    """`mo.muon_clip` of numbers alone."""
    return mo.muon_clip(
        learning_rate,
        _ATTENTION,
        threshold=threshold,
        balance=balance,
        momentum=momentum,
        weight_decay=weight_decay,
        roles=_ROLES,
    )


def _steepest(manifold: mo.Manifold, norm: mo.Norm, **facts: Any) -> Case:
    name = f"steepest-{type(manifold).__name__}-{type(norm).__name__}"
    arguments = {"manifold": manifold, "norm": norm}
    return Case(name, mo.steepest, arguments, manifold=manifold, **facts)


def _scale(rule: str) -> Case:
    name = f"scale_by_shape-{rule}"
    return Case(name, mo.scale_by_shape, {"rule": rule}, needs_params=False)


def _tangent(manifold: mo.Manifold) -> Case:
    name = f"tangent_project-{type(manifold).__name__}"
    arguments = {"manifold": manifold}
    return Case(name, mo.tangent_project, arguments, manifold=manifold)


def _retract(
    name: str, manifold: mo.Manifold, start: mo.Manifold, **times: Any
) -> Case:
    arguments = {"manifold": manifold} | times
    facts: dict[str, Any] = {"retracts": True, "covered": manifold != mo.Sphere("kept")}
    return Case(name, mo.retract, arguments, manifold=start, **facts)


def _shrink(norm: mo.Norm) -> Case:
    name = f"shrink_norm-{type(norm).__name__}"
    facts: dict[str, Any] = {"decays": True, "covered": norm != mo.Spectral()}
    return Case(name, mo.shrink_norm, {"norm": norm}, {"rate": 0.1}, **facts)


_STIEFEL, _SPHERE = mo.Stiefel("rms"), mo.Sphere(2.0)
_FREE: Mapping[str, Any] = {"needs_params": False}
_MOMENTUM: Mapping[str, Any] = {"needs_params": False, "any_shape": True}
_RATES = {"learning_rate": 0.1, "momentum": 0.9}
_INT8 = {"momentum": mo.Average(0.9, dtype="int8")}
_DECAYED = _RATES | {"weight_decay": 0.2}


def _kept_as(dtype: str) -> Case:
    arguments, numbers = {"dtype": dtype}, {"decay": 0.9}
    facts: dict[str, Any] = {**_MOMENTUM, "narrow": True, "covered": True}
    return Case(f"momentum-{dtype}", mo.momentum, arguments, numbers, **facts)


CASES = (
    Case("momentum", mo.momentum, numbers={"decay": 0.9}, **_MOMENTUM),
    Case(
        "momentum-debias",
        mo.momentum,
        {"debias": True, "nesterov": False},
        {"decay": 0.9},
        **_MOMENTUM,
        covered=True,
    ),
    Case(
        "momentum-transport",
        mo.momentum,
        {"transport": _STIEFEL},
        {"decay": 0.9},
        manifold=_STIEFEL,
        covered=True,
    ),
    *map(_kept_as, ("bfloat16", "bfloat16+int8", "int8")),
    Case("orthogonalize", mo.orthogonalize_via_newton_schulz, **_FREE, covered=True),
    _tangent(_STIEFEL),
    _tangent(_SPHERE),
    Case(
        "dual_ascent_spectral",
        mo.dual_ascent_spectral,
        {"steps": 0},
        manifold=mo.Stiefel(),
    ),
    Case(
        "dual_ascent_spectral-certify",
        mo.dual_ascent_spectral,
        {"manifold": _STIEFEL, "certify": True},
        manifold=_STIEFEL,
        covered=True,
    ),
    _steepest(mo.Euclidean(), mo.Frobenius(), **_FREE),
    _steepest(mo.Euclidean(), mo.Max(), **_FREE),
    _steepest(mo.Euclidean(), mo.Spectral(), **_FREE),
    _steepest(_SPHERE, mo.Frobenius()),
    _steepest(_STIEFEL, mo.Frobenius(), covered=True),
    _steepest(_STIEFEL, mo.Spectral(), covered=True),
    *map(_scale, ("none", "width", "spectral", "rms")),
    Case(
        "scale_by_size", mo.scale_by_size, {"manifold": mo.Sphere("kept")}, covered=True
    ),
    Case(
        "scale_by_row_rms",
        mo.scale_by_row_rms,
        numbers={"decay": 0.95, "eps": 1e-8},
        **_FREE,
    ),
    Case(
        "add_spectral_weight_decay",
        mo.add_spectral_weight_decay,
        {"steps": 2},
        {"weight_decay": 0.2},
        decays=True,
    ),
    _shrink(mo.Spectral()),
    _shrink(RowRms()),
    _retract("retract-Sphere", _SPHERE, _SPHERE),
    _retract(
        "retract-size",
        mo.Ball(mo.Frobenius(), 2.0),
        _SPHERE,
        factor=optax.constant_schedule(1.0),
    ),
    Case(
        "retract-every",
        mo.retract,
        {"manifold": _STIEFEL, "every": 2},
        manifold=_STIEFEL,
        covered=True,
    ),
    _retract("retract-Sphere-kept", mo.Sphere("kept"), _SPHERE),
    _retract("retract-Stiefel", _STIEFEL, _STIEFEL),
    Case(
        "retract_polar",
        mo.retract_polar,
        manifold=mo.Stiefel(),
        retracts=True,
        covered=True,
    ),
    Case("monitor", mo.monitor, {"groups": {".*": "all"}}, covered=True),
    Case(
        "monitor-inner",
        mo.monitor,
        {"inner": optax.sgd(0.1), "manifold": _SPHERE, "every": 2},
        manifold=_SPHERE,
        covered=True,
    ),
    Case("muon", mo.muon, numbers=_DECAYED),
    Case(
        "muon-int8",
        mo.muon,
        _INT8,
        {"learning_rate": 0.1, "weight_decay": 0.2},
        narrow=True,
        covered=True,
    ),
    Case(
        "manifold_muon",
        mo.manifold_muon,
        {"steps": 0},
        _RATES,
        manifold=mo.Stiefel(),
        retracts=True,
        covered=True,
    ),
    Case(
        "hyperspherical_descent",
        mo.hyperspherical_descent,
        numbers=_RATES,
        manifold=mo.Sphere(),
        retracts=True,
        covered=True,
    ),
    Case(
        "spel",
        mo.spel,
        numbers=_RATES,
        manifold=mo.Stiefel(),
        retracts=True,
        covered=True,
    ),
    Case(
        "spectral_sphere",
        mo.spectral_sphere,
        {"manifold": SpectralSphere(2.0)},
        _RATES,
        manifold=SpectralSphere(2.0),
        retracts=True,
        covered=True,
    ),
    Case(
        "hyperball",
        mo.hyperball,
        numbers=_RATES,
        manifold=_SPHERE,
        retracts=True,
        covered=True,
    ),
    Case("scion", mo.scion, numbers=_DECAYED, covered=True),
    Case(
        "normuon",
        mo.normuon,
        numbers=_DECAYED | {"row_decay": 0.95},
        covered=True,
    ),
    Case("sign_descent", mo.sign_descent, numbers=_DECAYED, covered=True),
    Case(
        "balance_router_bias",
        mo.balance_router_bias,
        {"routers": {"fourth": "bias"}},
        {"rate": 0.1},
        extra={"expert_load": {"fourth": jnp.asarray([1, 2, 6])}},
        names_leaves=True,
        **_MOMENTUM,
    ),
    Case(
        "qk_clip",
        mo.qk_clip,
        {"attention": _ATTENTION},
        {"threshold": 10.0, "balance": 0.5},
        extra=_LARGEST,
        names_leaves=True,
        any_shape=True,
        decays=True,
    ),
    Case("hybrid", hybrid, numbers=_DECAYED, whole_model=True),
    Case(
        "scale_by_modular_budget",
        mo.scale_by_modular_budget,
        {"module": _MODULE},
        names_leaves=True,
        **_FREE,
        covered=True,
    ),
    Case(
        "modular_optimizer",
        modular_optimizer,
        numbers=_RATES,
        whole_model=True,
        names_leaves=True,
        covered=True,
    ),
    Case(
        "muon_clip",
        muon_clip,
        numbers=_DECAYED | {"threshold": 10.0, "balance": 0.5},
        extra=_LARGEST,
        whole_model=True,
        names_leaves=True,
        decays=True,
        covered=True,
    ),
)


def each_case(
    keep: Callable[[Case], bool] = lambda case: True,
    *,
    compiles: bool = False,
    abstract: bool = False,
) -> pytest.MarkDecorator:
    """Parametrizes a test over the cases that `keep` keeps.

    A test that `compiles` a program of its own runs on `covered` cases nightly only.
    `narrow` cases are nightly but for `abstract` tests, which compute nothing.
    """

    def marks(case: Case) -> list[pytest.MarkDecorator]:
        nightly = (compiles and case.covered) or (case.narrow and not abstract)
        return [pytest.mark.slow] if nightly else []

    chosen = [pytest.param(c, id=c.name, marks=marks(c)) for c in CASES if keep(c)]
    return pytest.mark.parametrize("case", chosen)
