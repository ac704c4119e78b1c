"""Wrong values of every public argument, by its name, and calls that are else right."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import manifold_optax as mo
from manifold_optax.modular._algebra._module import Atom
from modular.handmade import handmade

NAN = float("nan")
MESH = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
MODULE = handmade(
    {"head": jnp.ones((4, 2)), "up": jnp.ones((4, 4))},
    (Atom("head", "readout"), Atom("up")),
    function=lambda params, inputs: inputs @ params["up"] @ params["head"],
)
ATTENTION = {"": mo.Attention(2, query="query", key="key")}
QUERY = jnp.ones((1, 3, 2, 4))
ATTEND = {"query": QUERY, "key": QUERY}
LEAF = {"w": jnp.ones((4, 2))}
LAID_OUT = {"w": jax.device_put(LEAF["w"], jax.NamedSharding(MESH, jax.P()))}

NOT_NUMBERS = (True, "0.1", None, 1j, jnp.ones(2), float)
NOT_RATES = ("0.1", True, jnp.ones(2), float, -0.1, NAN)
NOT_FLAGS = ("true", 1, None)
NOT_DECAYS = (*NOT_NUMBERS, 1.0, -0.1, NAN)
NOT_MANIFOLDS = (mo.Stiefel, mo.Sphere, "Stiefel", None, mo.Spectral())
NOT_NORMS = (mo.Spectral, "spectral", None, mo.Sphere())
NOT_LAYOUTS = ("in", -1, (-2, -1), mo.Roles, mo.roles, mo.Split, {"w": mo.STACKED})
NOT_PLACEMENTS = ("owned", MESH, mo.sharding.owned, jax.P("data"), True)
NOT_DTYPES = (jnp.int32, "int8", complex, "wide", 16)
NOT_STEPS = (True, 2.0, "2", jnp.asarray(2), -1)
NOT_TRANSFORMATIONS = ("adamw", 0.9, mo.muon, optax.adamw)
NOT_SPECS = (
    "query",
    None,
    {},
    {"a": "query"},
    {1: ATTENTION[""]},
    {"(": ATTENTION[""]},
)
NOT_TREES = ("w", {"w": "x"}, {"w": 1.0})
NOT_MESHES = ("data", None, jax.devices()[0], jax.P("data"))

WRONG: Mapping[str, tuple[Any, ...]] = {
    "absolute": NOT_FLAGS,
    "allow_missing": NOT_FLAGS,
    "attention": NOT_SPECS,
    "axes": NOT_LAYOUTS,
    "backend": ("svd", 1, True),
    "balance": (*NOT_NUMBERS, -0.1, 1.1, NAN),
    "budget": ("worst", 1.0, None),
    "base": ("normal", 1.0, jnp.ones(2)),
    "certify": NOT_FLAGS,
    "chunk": (True, 2.0, "2", None, 0),
    "compute_dtype": NOT_DTYPES,
    "debias": NOT_FLAGS,
    "decay": NOT_DECAYS,
    "default": (1, ("matrix",), mo.Roles),
    "dropout": (0.5, "0.5"),
    "bias": ("x", 1, jnp.ones((3, 3), bool), jnp.ones((3, 3), jnp.complex64)),
    "dtype": NOT_DTYPES,
    "precision": ("fine", 3),
    "eps": (*NOT_NUMBERS, 0.0, -1e-8, NAN),
    "every": (True, 2.0, "2", None, 0, -1),
    "factor": (2.0, "2", True),
    "form": ("fast", None, 1),
    "heads": (0, -1, 2.0, "2", True, None),
    "inner": NOT_TRANSFORMATIONS,
    "is_causal": NOT_FLAGS,
    "kernel": ("kernel", None),
    "key": (None, 3, ()),
    "key_heads": (0, 2.0, "2", True),
    "labels": ("matrix", 1, {"w": "matrix"}),
    "layers": ("0", 1.5, None),
    "learning_rate": (*NOT_RATES, None),
    "manifold": NOT_MANIFOLDS,
    "mask": ("causal", jnp.ones((3, 3)), True),
    "masses": (("up", 1.0), {"new": 1.0}, {"up": -1.0}, {"up": "1"}, {"(": 1.0}),
    "matrices": (*NOT_TRANSFORMATIONS, None, {}, {"vector": optax.sgd(1.0)}),
    "max_logits": (None, 3.0, {}, {"": 3.0}, {"other": jnp.ones(2)}),
    "mesh": NOT_MESHES,
    "module": (None, "module", mo.roles(), type(MODULE)),
    "momentum": ("0.9", True, jnp.ones(2), 1.0, -0.1, NAN, optax.trace),
    "nesterov": NOT_FLAGS,
    "norm": NOT_NORMS,
    "numbers_in": ("x", 1, None),
    "orientation": ("long", None, 1),
    "others": NOT_TRANSFORMATIONS,
    "params": NOT_TREES,
    "placement": NOT_PLACEMENTS,
    "preconditioner": ("nuclear", None, 1),
    "query": (None, 3, ()),
    "query_rope": (None, 3),
    "radius": (mo.Sphere, "large", True, None, -1.0, NAN),
    "rate": NOT_RATES,
    "replicas": ("both", None, 2),
    "returns": ("matrix", ("matrices",), (), None),
    "roles": ("matrix", mo.roles, mo.STACKED, {"w": mo.STACKED}),
    "routers": ("moe", None, {}, {"moe": 1}, {1: "bias"}, {"(": "bias"}),
    "row_decay": NOT_DECAYS,
    "rule": ("unknown", None, 1),
    "rules": ("w", [("w", mo.STACKED)], {"(": "vector"}, {1: "vector"}, {"w": 1}),
    "scale": ("large", True, 1j, -1.0),
    "schedule": ("jordan", None, 5, (), ((1.0, 2.0),), ((1.0, 2.0, NAN),)),
    "scores": (None, "causal"),
    "sensitivity": ("worst", 1.0, None),
    "size": (2.0, "2", True),
    "specs": ("data", {"w": "data"}, 1),
    "steps": NOT_STEPS,
    "subject": ("muon", None, mo.muon),
    "tare": (("up", 1.0), {"new": 1.0}, {"up": 0.0}, {"up": "1"}, {"(": 1.0}),
    "threshold": (*NOT_NUMBERS, 0.0, -1.0, NAN),
    "tolerance": ("0.1", True, jnp.ones(2), 0.0, 1.0, NAN),
    "transport": NOT_MANIFOLDS[:3],
    "tree": NOT_TREES,
    "trees": ((), {"w": 1.0}, "w", None),
    "tx": NOT_TRANSFORMATIONS,
    "vectors": NOT_FLAGS,
    "weight_decay": ("0.1", True, jnp.ones(2), float, -0.1, NAN),
    "wire": NOT_DTYPES,
}
"""What is no value of an argument of this name, anywhere."""


class Odd:
    """What is an argument of nothing, whatever its name."""

    def __repr__(self) -> str:
        return "Odd()"


ODD = (
    Odd(),
    Ellipsis,
    b"x",
    frozenset({1}),
    1 + 2j,
    np.datetime64("2020-01-01"),
    float("-inf"),
)


class Call(NamedTuple):
    """A public function, and arguments with which it does not fail."""

    function: Callable[..., Any]
    right: Mapping[str, Any] = {}
    wrong: Mapping[str, tuple[Any, ...]] = {}
    """Wrong values where those of `WRONG` are right here, or not all of them."""

    @property
    def name(self) -> str:
        return self.function.__name__


RATE = {"learning_rate": 0.1}
MANIFOLD = {"manifold": (*NOT_MANIFOLDS[:3], mo.Max())}
"""Where `None` is a manifold of its own."""
SCALE = {"scale": ("large", True, jnp.ones(2))}
NOT_ARRAYS = ("x", None, 1.0, jnp.ones((3, 4)), jnp.ones((1, 3, 2, 4), jnp.int32))
ARRAYS = {"query": NOT_ARRAYS, "key": NOT_ARRAYS, "value": NOT_ARRAYS}

TRANSFORMS = [
    Call(
        mo.add_spectral_weight_decay, {"weight_decay": 0.1}, {"steps": (0, *NOT_STEPS)}
    ),
    Call(mo.balance_router_bias, {"routers": {"moe": "bias"}}),
    Call(mo.dual_ascent_spectral, wrong=MANIFOLD),
    # An average may be kept in dtypes in which nothing is computed.
    Call(mo.momentum, {"decay": 0.9}, {"dtype": (jnp.int32, "int4", complex, "wide")}),
    Call(mo.orthogonalize_via_newton_schulz),
    Call(mo.qk_clip, {"attention": ATTENTION}),
    Call(mo.retract, {"manifold": mo.Ball(mo.Spectral())}),
    Call(mo.retract_polar, wrong=MANIFOLD),
    Call(mo.scale_by_modular_budget, {"module": MODULE}),
    Call(mo.scale_by_row_rms),
    Call(mo.scale_by_shape, {"rule": "rms"}),
    Call(mo.scale_by_size, {"manifold": mo.Sphere()}),
    Call(mo.shrink_norm, {"norm": mo.Spectral(), "rate": 0.1}),
    Call(mo.steepest, {"manifold": mo.Stiefel(), "norm": mo.Spectral()}),
    Call(mo.tangent_project, {"manifold": mo.Sphere()}),
]

OPTIMIZERS = [
    Call(mo.hybrid, {"matrices": optax.sgd(0.1)}),
    Call(mo.hyperball, RATE, MANIFOLD),
    Call(mo.hyperspherical_descent, RATE, MANIFOLD),
    Call(mo.manifold_muon, RATE, MANIFOLD),
    Call(
        mo.modular_optimizer,
        RATE | {"module": MODULE},
        {"schedule": ("jordan", 5, (), ((1.0, 2.0),))},
    ),
    Call(mo.muon, RATE),
    Call(mo.muon_clip, RATE | {"attention": ATTENTION}),
    Call(mo.normuon, RATE),
    Call(mo.scion, RATE, {"norm": NOT_NORMS[:2]}),
    Call(mo.sign_descent, RATE),
    Call(mo.spectral_sphere, RATE, MANIFOLD),
    Call(mo.spel, RATE, MANIFOLD),
]

FUNCTIONS = [
    Call(
        mo.apply_qk_clip,
        {
            "params": {"query": jnp.ones((4, 2, 3)), "key": jnp.ones((4, 2, 3))},
            "max_logits": {"": jnp.ones(2)},
            "attention": ATTENTION,
        },
        {"params": ({}, LEAF, {"query": 1.0, "key": jnp.ones((4, 2, 3))})},
    ),
    Call(mo.describe, {"subject": mo.muon(0.1), "params": LEAF}),
    Call(mo.map_matrices, {"kernel": lambda x, axis_name=None: x, "trees": (LEAF,)}),
    Call(mo.plan_matrices, {"tree": LEAF}),
    Call(mo.project, {"params": LEAF, "manifold": mo.Sphere()}),
    Call(mo.roles),
    Call(mo.steepest_direction, {"manifold": mo.Stiefel(), "norm": mo.Spectral()}),
    Call(mo.diagnostics.residual, {"params": LEAF, "manifold": mo.Sphere()}),
    Call(mo.modular.budget, {"module": MODULE}),
    Call(mo.initializers.on_manifold, {"manifold": mo.Sphere()}),
    Call(mo.initializers.stiefel),
    Call(mo.initializers.sphere),
    Call(mo.sharding.owned, {"mesh": MESH}),
    Call(mo.sharding.sliced, {"mesh": MESH}),
    Call(mo.sharding.auto, {"mesh": MESH}),
    Call(
        mo.sharding.state_shardings,
        {"tx": mo.muon(0.1), "params": LAID_OUT},
        # Without a mesh it is that of the parameters.
        wrong={"mesh": tuple(mesh for mesh in NOT_MESHES if mesh is not None)},
    ),
    Call(mo.Attention, {"heads": 2, "query": "query", "key": "key"}),
    Call(mo.attention.Scores, {}, SCALE),
    Call(mo.attention.largest_logits, ATTEND, SCALE | ARRAYS),
    Call(mo.attention.dot_product_attention, ATTEND | {"value": QUERY}, SCALE | ARRAYS),
    Call(
        mo.attention.attend,
        ATTEND | {"value": QUERY, "scores": mo.attention.Scores()},
        ARRAYS,
    ),
]

CALLS = (*TRANSFORMS, *OPTIMIZERS, *FUNCTIONS)

NAMED: Mapping[tuple[str, str], str] = {
    ("apply_qk_clip", "params"): "query|key|no layer|paths",
    ("map_matrices", "trees"): "trees|leaf",
    ("plan_matrices", "tree"): "leaf",
    ("project", "params"): "leaf",
    ("roles", "rules"): "rules?",
}
"""Arguments whose errors name something nearer: the leaf, or the rule."""

MOMENTA = "hyperball hyperspherical_descent manifold_muon muon muon_clip normuon scion"
OPEN: frozenset[tuple[str, str]] = frozenset(
    {
        # Any tree is a tree of parameters, of numbers.
        ("describe", "params"),
        ("residual", "params"),
        ("map_matrices", "numbers_in"),
        # No more than part of an error's text.
        ("on_manifold", "path"),
        # JAX reads it where it multiplies.
        ("Scores", "precision"),
    }
)
"""Arguments without such an error of ours."""
