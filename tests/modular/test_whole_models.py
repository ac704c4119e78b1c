"""Every golden model is read, budgeted and trained as a user would."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from manifold_optax import modular
from modular.models import drawn, Model, MODELS, REFUSED

# What a user has to decide: parameters that are used in two ways, and names that say
# something else than the use.
DECISIONS: dict[str, dict[str, Any]] = {
    "fused_gpt": {"embed/embedding": "embedding"},
    "equinox_transformer": {"attention/output_proj/weight": mo.OUT_IN},
    "gemma": {"embedder": "embedding"},
    "lora": {"adapters/.*/b": mo.STACKED},
    "lora_merged": {"adapters/.*/b": mo.STACKED},
}
SLOW = pytest.mark.slow
TRAINED = (
    pytest.param("scanned_layers", marks=SLOW),
    pytest.param("conv_net", marks=SLOW),
    pytest.param("fused_gpt", marks=SLOW),
)
# One of each kind; all others run nightly.
GATE = (
    "mlp", "resnet_training", "fused_gpt", "llama", "scanned_layers", "lora",
    "plain_recurrence",
)  # fmt: skip


def read(name: str, **more: Any) -> tuple[Model, modular.Network]:
    model = MODELS[name]()
    roles = DECISIONS.get(name)
    return model, modular.read(
        model.forward, model.params, *model.inputs, roles=roles, **more
    )


@pytest.mark.parametrize(
    "name",
    [
        name if name in GATE else pytest.param(name, marks=SLOW)
        for name in MODELS
        if name not in REFUSED
    ],
)
def test_every_model_has_a_budget(name: str) -> None:
    model, network = read(name)
    budget = modular.budget(network)
    total = sum(
        share * sensitivity
        for path in budget.shares
        for share, sensitivity in zip(
            budget.shares[path], budget.sensitivities[path], strict=True
        )
    )
    assert total == pytest.approx(1.0, rel=1e-9)
    assert str(network).splitlines()[-1].startswith("mass ")
    for path in budget.shares:
        # The chain of factors starts at the parameter and ends at the output.
        lines = network.explain(path).splitlines()
        assert lines[0].startswith(f"{path}: ")
    described = mo.describe(network, model.params)
    assert all(leaf.use for leaf in described.leaves if leaf.label != "other")


@pytest.mark.parametrize("geometry", ["free", pytest.param("Stiefel", marks=SLOW)])
@pytest.mark.parametrize("name", TRAINED)
def test_models_train(name: str, geometry: str) -> None:
    rules = {} if geometry == "free" else {"matrix": mo.Stiefel("rms")}
    model, network = read(name, geometry=rules)
    params, inputs = jax.tree.map(jnp.asarray, drawn(model, 0)), model.inputs
    params = modular.project_parameters(network, params)
    tx = modular.modular_optimizer(network, 0.02)

    def loss(params: Any) -> Any:
        outputs = jax.tree.leaves(model.forward(params, *inputs))[0]
        return jnp.mean(jnp.square(outputs - 0.1))

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state, values = tx.init(params), []
    for _ in range(4):
        params, state, value = step(params, state)
        values.append(float(value))
    assert np.isfinite(values).all()
    assert values[-1] < values[0]
    assert math.isfinite(values[-1])
