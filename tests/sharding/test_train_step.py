"""Whole training steps of Flax nnx models, data × FSDP × tensor parallel; stacks."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from conformance.steps import on_manifold
from conformance.table import CASES
from manifold_optax.integrations.flax import module_list
from sharding.layouts import assert_close, points_on

pytestmark = pytest.mark.devices

if "out_sharding" not in inspect.signature(nnx.Embed.__call__).parameters:
    pytest.skip(
        "the layers of Flax < 0.12.3 are for Auto axes", allow_module_level=True
    )

VOCABULARY, WIDTH, LAYERS = 32, 16, 2
ROWS = ("data", "fsdp")
"""Mesh axes over which a batch is spread; FSDP shards the weights over `fsdp` too."""

# The page of `test_docs` trains on both.
KINDS = pytest.mark.parametrize(
    "kind", [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.slow)]
)


def mesh_of(kind: AxisType, shape: tuple[int, ...] = (2, 2, 2)) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, (*ROWS, "tensor"), axis_types=(kind,) * 3)


def layout(*names: Any) -> P | None:
    """Sharding of an activation, which Explicit axes ask for and Auto axes refuse."""
    explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    return P(*names) if explicit else None


def linear(
    size: tuple[int, int],
    names: tuple[str, str],
    rngs: nnx.Rngs,
    **options: Any,
) -> nnx.Linear:
    metadata = {"out_sharding": names}
    return nnx.Linear(
        *size, use_bias=False, kernel_metadata=metadata, rngs=rngs, **options
    )


class Block(nnx.Module):
    """A residual MLP block, its hidden units spread over `tensor`."""

    def __init__(self, rngs: nnx.Rngs, **options: Any) -> None:
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.up = linear((WIDTH, 4 * WIDTH), ("fsdp", "tensor"), rngs, **options)
        self.down = linear((4 * WIDTH, WIDTH), ("tensor", "fsdp"), rngs, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.up(self.norm(x), out_sharding=layout(ROWS, None, "tensor"))
        return x + self.down(jax.nn.relu(hidden), out_sharding=layout(ROWS, None, None))


class Model(nnx.Module):
    """Embedding, blocks in a list or stacked for a scan, head."""

    def __init__(
        self, rngs: nnx.Rngs, *, stacked: bool = False, **options: Any
    ) -> None:
        metadata = {"out_sharding": ("tensor", "fsdp")}
        self.embed = nnx.Embed(
            VOCABULARY, WIDTH, embedding_metadata=metadata, rngs=rngs
        )
        if stacked:
            # The layer axis is the first of every parameter, and is not sharded.
            make = nnx.vmap(
                Block,
                in_axes=0,
                out_axes=0,
                transform_metadata={nnx.PARTITION_NAME: None},
            )
            self.blocks: Any = nnx.split_rngs(splits=LAYERS)(make)(rngs)
        else:
            self.blocks = module_list([Block(rngs, **options) for _ in range(LAYERS)])
        self.stacked = stacked
        self.head = linear((WIDTH, VOCABULARY), ("fsdp", "tensor"), rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens, out_sharding=layout(ROWS, None, None))
        if self.stacked:
            scan = nnx.scan(
                lambda x, block: block(x),
                in_axes=(nnx.Carry, 0),
                out_axes=nnx.Carry,
                transform_metadata={nnx.PARTITION_NAME: None},
            )
            x = scan(x, self.blocks)
        else:
            for block in self.blocks:
                x = block(x)
        return self.head(x, out_sharding=layout(ROWS, None, "tensor"))


def cross_entropy(model: Any, tokens: jax.Array) -> jax.Array:
    wanted = jax.nn.one_hot(jnp.roll(tokens, -1, axis=1), VOCABULARY)
    return -(jax.nn.log_softmax(model(tokens)) * wanted).sum(-1).mean()


def shardings(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)


def train(make: Callable[[Any], Any], mesh: jax.sharding.Mesh, **options: Any) -> Any:
    """Three steps of one compiled program; losses, last state, first state.

    A compiled program takes only the layouts that it was compiled for: that the second
    call accepts what the first returned is the proof that state and parameters keep
    theirs, and that nothing compiles again.
    """
    with jax.set_mesh(mesh):
        # Under jit: one program instead of one per initializer and shape.
        model = nnx.jit(lambda: Model(nnx.Rngs(0), **options))()
        specs = nnx.get_partition_spec(nnx.state(model, nnx.Param))
        automatic = mesh.size > 1 and AxisType.Auto in mesh.axis_types
        placement = mo.sharding.owned(mesh, specs) if automatic else None
        optimizer = nnx.Optimizer(model, make(placement), wrt=nnx.Param)
        definition, state = nnx.split((model, optimizer))
        tokens = jax.random.randint(jax.random.key(1), (8, 4), 0, VOCABULARY)
        tokens = jax.device_put(tokens, NamedSharding(mesh, P(ROWS, None)))

        def step(state: Any, tokens: jax.Array) -> Any:
            model, optimizer = nnx.merge(definition, state)
            loss, gradient = nnx.value_and_grad(cross_entropy)(model, tokens)
            optimizer.update(model, gradient)
            return nnx.state((model, optimizer)), loss

        # On Auto axes the compiler would choose the layout of the norms' scales anew.
        jitted = jax.jit(step, out_shardings=(shardings(state), None))
        compiled = jitted.lower(state, tokens).compile()
        losses, last = [], state
        for _ in range(3):
            last, loss = compiled(last, tokens)
            losses.append(float(loss))
    return losses, last, state


MATRIX_CASES = [c for c in CASES if not (c.whole_model or c.names_leaves)]

OPTIMIZERS = {
    "muon": lambda placement: mo.hybrid(mo.muon(0.02, placement=placement)),
    "manifold_muon": lambda placement: mo.hybrid(
        mo.manifold_muon(0.02, placement=placement)
    ),
}
# Its weights start on the manifold.
OPTIONS = {"manifold_muon": {"kernel_init": mo.initializers.stiefel()}}


@pytest.mark.parametrize("case", MATRIX_CASES, ids=lambda case: case.name)
def test_a_laid_out_model_gets_a_state(case: Any) -> None:
    # The metadata of a parameter names mesh axes for its own axes, not for those of
    # a number per matrix.
    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        point = lambda key, shape, dtype: on_manifold(
            case.manifold, jax.random.normal(key, shape, dtype)
        )
        model = linear((16, 8), ("fsdp", "tensor"), nnx.Rngs(0), kernel_init=point)
        optimizer = nnx.Optimizer(model, case.make(), wrt=nnx.Param)
    for leaf in jax.tree.leaves(nnx.state(optimizer, nnx.OptState)):
        if leaf.shape == (16, 8):
            assert leaf.sharding.spec == P("fsdp", "tensor")


@functools.cache
def on_one_device(name: str) -> Any:
    one = mesh_of(AxisType.Auto, (1, 1, 1))
    losses, state, _ = train(OPTIMIZERS[name], one, **OPTIONS.get(name, {}))
    return losses, jax.device_get(state)


@KINDS
@pytest.mark.parametrize(
    "name", ["muon", pytest.param("manifold_muon", marks=pytest.mark.slow)]
)
def test_three_steps_equal_those_of_one_device(name: str, kind: AxisType) -> None:
    expected_losses, expected = on_one_device(name)
    losses, last, first = train(
        OPTIMIZERS[name], mesh_of(kind), **OPTIONS.get(name, {})
    )
    assert losses[-1] < losses[0]
    # The tolerance of one update; three of them and the model's own sums over eight
    # parts differ by 5e-7.
    assert_close(losses, expected_losses)
    assert_close(last, expected)
    assert shardings(last) == shardings(first)
    moments = [
        leaf.sharding.spec
        for path, leaf in jax.tree.leaves_with_path(last[1]["opt_state"])
        if jax.tree_util.keystr(path).endswith("['up']['kernel'].value")
        and leaf.ndim == 2
    ]
    assert moments == [P("fsdp", "tensor")] * len(moments)


# `[layers, fan_in, fan_out]`: said by path, because names do not tell layers from
# experts or convolutions.
ROLES = mo.roles({r"blocks/\w+/kernel": mo.STACKED})


def stacked_muon(placement: Any) -> Any:
    return mo.hybrid(mo.muon(0.02, axes=ROLES, placement=placement), labels=ROLES)


@pytest.mark.slow
@KINDS
def test_scanned_layers_equal_those_of_one_device(kind: AxisType) -> None:
    # The same key gives other weights to stacked layers, so the comparison is with the
    # stacked model on one device.
    one = mesh_of(AxisType.Auto, (1, 1, 1))
    expected_losses, expected, _ = train(stacked_muon, one, stacked=True)
    losses, last, first = train(stacked_muon, mesh_of(kind), stacked=True)
    assert losses[-1] < losses[0]
    assert_close(losses, expected_losses)
    assert_close(last, jax.device_get(expected))
    assert shardings(last) == shardings(first)
    up = last[0]["blocks"]["up"]["kernel"][...]
    assert up.shape == (LAYERS, WIDTH, 4 * WIDTH)
    assert up.sharding.spec == P(None, "fsdp", "tensor")


def update_once(make: Callable[..., Any], mesh: Any, spec: P, *shape: int) -> Any:
    """The compiled update of `[batch, fan_in, fan_out]`, checked with one device."""
    keys = jax.random.split(jax.random.key(0))
    point = points_on(mo.Stiefel(), jax.random.normal(keys[0], shape))
    gradient = jax.random.normal(keys[1], shape)
    placement = None
    if AxisType.Auto in mesh.axis_types:
        placement = mo.sharding.owned(mesh, {"kernel": spec})
    tx = make(0.02, axes=mo.STACKED, placement=placement)
    put = lambda x: {"kernel": jax.device_put(x, NamedSharding(mesh, spec))}
    params, gradients = put(point), put(gradient)
    layout = mo.sharding.state_shardings(tx, params)
    state = jax.jit(tx.init, out_shardings=layout)(params)
    compiled = jax.jit(tx.update).lower(gradients, state, params).compile()
    updates, _ = compiled(gradients, state, params)
    alone = {"kernel": point}
    tx = make(0.02, axes=mo.STACKED)
    expected, _ = jax.jit(tx.update)({"kernel": gradient}, tx.init(alone), alone)
    assert_close(updates, jax.device_get(expected))
    assert updates["kernel"].sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
    return compiled


UPDATES = pytest.mark.parametrize(
    "make", [mo.muon, pytest.param(mo.manifold_muon, marks=pytest.mark.slow)]
)


@pytest.mark.promise(
    "Layouts and devices",
    "Stacks sharded along their batch, such as experts, send nothing",
    on="8 devices",
)
@KINDS
@UPDATES
def test_experts_sharded_by_expert_communicate_nothing(
    make: Any, kind: AxisType
) -> None:
    experts = P((*ROWS, "tensor"), None, None)
    compiled = update_once(make, mesh_of(kind), experts, 16, 16, 8)
    assert mo.programs.collectives(compiled).count() == 0
