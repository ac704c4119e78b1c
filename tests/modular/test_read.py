"""Networks read from their computation: the oracles of the theory, and the messages."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import manifold_optax as mo
from manifold_optax import modular
from modular.models import gpt2, MODELS
from modular.models.gpts import well_normed_gpt

# Slopes of scalar functions are right to 2e-4 from above, a whole network has a few.
SLOPES = 1e-3


def mlp(depth: int, function: Callable[[Any], Any] = jax.nn.relu) -> Any:
    def forward(params: Any, x: Any) -> Any:
        for layer in range(depth - 1):
            x = function(x @ params[f"w{layer}"])
        return x @ params[f"w{depth - 1}"]

    params = {f"w{layer}": jnp.zeros((8, 8)) for layer in range(depth)}
    return forward, params, jnp.zeros((3, 8))


def test_an_mlp_shares_equally() -> None:
    network = modular.read(*mlp(4))
    shares = modular.budget(network).shares
    assert shares == {f"w{k}": pytest.approx((0.25,), rel=1e-12) for k in range(4)}


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_well_normed_gpt_has_the_shares_of_the_theory(blocks: int) -> None:
    model = well_normed_gpt(blocks=blocks)
    network = modular.read(model.forward, model.params, *model.inputs)
    budget = modular.budget(network, tare={"^blocks": 5.0})
    wanted = {
        "embed": 1 / 7, "head": 1 / 7, "q": 5 / 7, "k": 5 / 7, "v": 5 / 7,
        "o": 5 / 21, "up": 5 / 21, "down": 5 / 21,
    }  # fmt: skip
    assert len(budget.shares) == 6 * blocks + 2
    for path, share in budget.shares.items():
        # GELU / 1.1289 has a slope of 1.0001, once in each block.
        assert share == pytest.approx((wanted[path.split("/")[-1]],), rel=SLOPES)


def test_the_tree_and_the_analysis_agree_where_nothing_is_lost() -> None:
    model = well_normed_gpt(blocks=2)
    network = modular.read(model.forward, model.params, *model.inputs)
    by_hand = modular.sensitivities(network.tree)
    for path, sensitivity in network.sensitivities().items():
        assert by_hand[path] == pytest.approx(sensitivity, rel=1e-12), path


def test_sums_and_multiples() -> None:
    x, w = jnp.zeros((2, 4)), jnp.zeros((4, 4))
    params = {"w": w, "v": w}
    # (2 · L) ∘ L: the first is doubled, so is the step of the second.
    chain = modular.read(lambda p, x: 2.0 * ((x @ p["w"]) @ p["v"]), params, x)
    assert modular.budget(chain).shares == {"v": (0.25,), "w": (0.25,)}
    # A weight that is doubled itself is the same.
    chain = modular.read(lambda p, x: (x @ p["w"]) @ (2.0 * p["v"]), params, x)
    assert modular.budget(chain).shares == {"v": (0.25,), "w": (0.25,)}
    both = modular.read(lambda p, x: x @ p["w"] + x @ p["v"], params, x)
    assert modular.budget(both).shares == {"v": (0.5,), "w": (0.5,)}
    assert modular.sensitivity(both.tree) == pytest.approx(2.0)


def test_a_scanned_stack_is_read_as_its_layers() -> None:
    def block(x: Any, up: Any, down: Any) -> Any:
        return x + jax.nn.relu(x @ up) @ down

    def scanned(params: Any, x: Any) -> Any:
        def step(x: Any, layer: Any) -> Any:
            return block(x, layer["up"], layer["down"]), None

        x, _ = jax.lax.scan(jax.checkpoint(step), x, params["layers"])
        return x @ params["head"]

    def unrolled(params: Any, x: Any) -> Any:
        for layer in range(4):
            x = block(x, *(params["layers"][name][layer] for name in ("up", "down")))
        return x @ params["head"]

    params = {
        "layers": {"up": jnp.zeros((4, 8, 16)), "down": jnp.zeros((4, 16, 8))},
        "head": jnp.zeros((8, 3)),
    }
    x = jnp.zeros((2, 8))
    once = modular.read(scanned, params, x).sensitivities()
    # x + f(x) doubles; the first layer passes three more, the last none.
    assert once["layers/up"] == pytest.approx((8.0, 4.0, 2.0, 1.0))
    assert once["layers/down"] == pytest.approx((8.0, 4.0, 2.0, 1.0))
    long = modular.read(unrolled, params, x).sensitivities()
    # Slices taken one by one are changed all at once: the sum of what they do.
    assert sum(long["layers/up"]) == pytest.approx(sum(once["layers/up"]))


def test_a_long_scan_is_read_like_a_short_one() -> None:
    def operations(length: int) -> int:
        def forward(params: Any, x: Any) -> Any:
            step = lambda x, w: (jnp.tanh(x @ w), None)
            return jax.lax.scan(step, x, params["w"])[0]

        params = {"w": jax.ShapeDtypeStruct((length, 4, 4), jnp.float32)}
        network = modular.read(forward, params, jnp.zeros((2, 4)))
        assert network.sensitivities()["w"] == pytest.approx((1.0,) * length)
        return len(network.graph.operations())

    assert operations(3) == operations(3000)


def test_attention_is_bounded_alike_for_all_lengths() -> None:
    attention = nnx.eval_shape(
        lambda: nnx.MultiHeadAttention(4, 16, decode=False, rngs=nnx.Rngs(0))
    )
    graphdef, state = nnx.split(attention)

    def forward(params: Any, x: Any) -> Any:
        return nnx.merge(graphdef, params)(x)

    def read(tokens: int) -> dict[str, tuple[float, ...]]:
        x = jax.ShapeDtypeStruct((2, tokens, 16), jnp.float32)
        return modular.read(forward, nnx.to_pure_dict(state), x).sensitivities(
            "derived"
        )

    first = read(4)
    assert all(math.isfinite(s) for found in first.values() for s in found)
    for tokens in (16, 64):
        for path, found in read(tokens).items():
            assert found == pytest.approx(first[path], rel=1e-12), (tokens, path)


def test_side_outputs_do_not_refuse_a_model() -> None:
    def forward(params: Any, x: Any) -> Any:
        hidden = x @ params["up"]
        return hidden @ params["down"], {"top": jax.lax.top_k(hidden, 2)[0]}

    params = {"up": jnp.zeros((4, 8)), "down": jnp.zeros((8, 2))}
    network = modular.read(forward, params, jnp.zeros((3, 4)))
    assert network.sensitivities()["up"] == pytest.approx((1.0,))


def test_the_output_is_chosen_by_its_path() -> None:
    def forward(params: Any, x: Any) -> Any:
        return {"first": x @ params["v"], "second": x @ params["w"] * 3.0}

    params = {"v": jnp.zeros((4, 4)), "w": jnp.zeros((4, 4))}
    x = jnp.zeros((3, 4))
    network = modular.read(forward, params, x, output="second")
    assert network.sensitivities() == {"v": (0.0,), "w": pytest.approx((3.0,))}
    with pytest.raises(ValueError, match=r"floats at 'c'.*'first'.*'second'"):
        modular.read(forward, params, x, output="c")


@pytest.mark.parametrize("name", ["top_k_experts", "switched_experts"])
def test_what_jumps_is_named_with_the_line(name: str) -> None:
    model = MODELS[name]()
    network = modular.read(model.forward, model.params, *model.inputs)
    assert network.roles  # known all the same
    with pytest.raises(
        ValueError, match=r"No sensitivity of '.*' is known\. "
    ) as error:
        network.sensitivities()
    assert model.refuses
    assert model.refuses in str(error.value)
    assert ".py:" in str(error.value)
    assert "mo.modular.declare" in str(error.value)
    assert "No budget" in str(network)


def test_a_declared_function_is_one_step() -> None:
    @modular.declare(slope=3.0, size=1.0)
    def route(x: Any) -> Any:
        return jnp.where(x > x.mean(), x, 0.0)

    def forward(params: Any, x: Any) -> Any:
        return route(x @ params["up"]) @ params["down"]

    params = {"up": jnp.zeros((4, 8)), "down": jnp.zeros((8, 2))}
    network = modular.read(forward, params, jnp.zeros((3, 4)))
    for kind in ("nominal", "derived"):
        found = network.sensitivities(kind)
        assert found["up"] == pytest.approx((3.0,))
        assert found["down"] == pytest.approx((1.0,))


def test_a_declared_function_says_what_its_parameters_are() -> None:
    @modular.declare(slope=(1.0, 2.0), roles=(None, mo.OUT_IN))
    def routed(x: Any, table: Any) -> Any:
        return x[:, jnp.argsort(jnp.sum(table, axis=0))]

    def forward(params: Any, x: Any) -> Any:
        return routed(x, params["table"]) @ params["down"]

    params = {"table": jnp.zeros((8, 4)), "down": jnp.zeros((4, 2))}
    network = modular.read(forward, params, jnp.zeros((3, 4)))
    assert network.roles.role_of("table", (8, 4)) == mo.Role("matrix", mo.OUT_IN)
    # A step of norm 1 has rows of length √(8/4) at most, of RMS 1/√2; twice that.
    assert network.sensitivities()["table"] == pytest.approx((2 * math.sqrt(0.5),))


def test_derived_sizes_follow_the_declared_inputs() -> None:
    forward, params, x = mlp(2)
    network = modular.read(forward, params, x, input_rms=4.0)
    assert network.sensitivities("derived") == {
        "w0": pytest.approx((4.0,)), "w1": pytest.approx((4.0,)),
    }  # fmt: skip


def test_a_norm_layer_has_the_slope_of_its_floor() -> None:
    def forward(params: Any, x: Any) -> Any:
        h = x @ params["up"]
        h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6)
        return h @ params["down"]

    params = {"up": jnp.zeros((4, 8)), "down": jnp.zeros((8, 2))}
    x = jnp.zeros((3, 4))
    without = modular.read(forward, params, x)
    assert without.sensitivities("nominal")["up"] == pytest.approx((1.0,))
    assert without.sensitivities("derived")["up"] == pytest.approx((1e3,), rel=1e-6)
    assert "1/√ε" in without.explain("up", "derived")
    floor = modular.read(forward, params, x, floor=0.5).sensitivities("derived")
    assert floor["up"] == pytest.approx((1 / math.sqrt(0.25 + 1e-6),))


def test_explain_multiplies_to_the_sensitivity() -> None:
    network = modular.read(*mlp(3, jnp.tanh))
    lines = network.explain("w0").splitlines()
    factors = [float(line.split()[0]) for line in lines[1:]]
    # Printed to four digits.
    assert math.prod(factors) == pytest.approx(1.0, rel=2e-3)
    assert "test_read.py:" in lines[2]
    with pytest.raises(ValueError, match="path must be one of"):
        network.explain("w9")


@pytest.mark.parametrize(
    "layers", [1, pytest.param(12, marks=pytest.mark.slow, id="small")]
)
def test_gpt2_is_read_in_one_pass(layers: int) -> None:
    model = gpt2(layers=layers)
    network = modular.read(
        model.forward, model.params, *model.inputs, roles={"wte": "embedding"}
    )
    assert len(modular.budget(network).shares) >= layers * 4
    # Each step of the fused graph is read once forwards and once back.
    assert len(network.analysis("nominal").graph.operations()) <= 50 + 60 * layers


def test_stiefel_by_a_rule() -> None:
    forward, params, x = mlp(3)
    network = modular.read(forward, params, x, geometry={"^w0$": mo.Stiefel("rms")})
    manifolds = {atom.path: repr(atom.manifold) for atom in network.atoms}
    assert manifolds["w0"] == "Stiefel(scale='rms')"
    assert manifolds["w1"] == "Euclidean()"


def test_weights_are_as_large_as_their_manifold() -> None:
    def forward(params: Any, x: Any) -> Any:
        return (x @ params["up"]) @ params["down"]

    params = {"up": jnp.zeros((4, 16)), "down": jnp.zeros((16, 4))}
    x = jnp.zeros((3, 4))
    # All singular values 1: from 16 entries to 4 the RMS may double.
    unit = {"down": (mo.Stiefel(), mo.RmsToRms())}
    network = modular.read(forward, params, x, geometry=unit)
    assert network.sensitivities("derived")["up"] == pytest.approx((2.0,))
    unit = {"down": (mo.Stiefel("rms"), mo.RmsToRms())}
    network = modular.read(forward, params, x, geometry=unit)
    assert network.sensitivities("derived")["up"] == pytest.approx((1.0,))
