"""Formats of states: what is written, what is read back, and what a check says."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import manifold_optax as mo
from manifold_optax.states import (
    check_state_format,
    FORMAT_VERSION,
    LeafFormat,
    state_digest,
    state_format,
    StateFormat,
)

PARAMS = {"up": {"kernel": jnp.ones((4, 2))}}
COUNT = LeafFormat((), "int32")


def format_of(tx: Any, params: Any = PARAMS) -> StateFormat:
    return state_format(jax.eval_shape(tx.init, params))


def said(saved: StateFormat, tx: Any, params: Any = PARAMS) -> str:
    with pytest.raises(ValueError, match="does not fit") as raised:
        check_state_format(saved, jax.eval_shape(tx.init, params))
    return str(raised.value)


def test_places_without_an_array_belong_to_the_format() -> None:
    found = state_format({"a": optax.EmptyState(), "b": (None, jnp.ones(2)), "c": {}})
    one = LeafFormat((2,), "float32")
    assert found.leaves == {"a": None, "b/0": None, "b/1": one, "c": None}
    assert state_format(()).leaves == {"": None}


@pytest.mark.slow
def test_paths_are_those_of_the_library_in_flax_too() -> None:
    model = nnx.Linear(4, 2, use_bias=False, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, mo.muon(0.1), wrt=nnx.Param)
    average = state_format(optimizer.opt_state).leaves["momentum/average/kernel"]
    assert average == LeafFormat((4, 2), "float32")


@pytest.mark.parametrize("state", [{}, {"w": jnp.ones((2, 0), jnp.bfloat16)}, None])
def test_json_is_read_back(state: Any) -> None:
    found = state_format(state)
    assert StateFormat.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        (10**5 * "[", "not JSON"),
        ("3", "'version' and 'leaves'.* got 3"),
        ('{"version": 1}', "'version' and 'leaves'"),
        ('{"version": true, "leaves": {}}', "whole number from 1; got True"),
        ('{"version": 0, "leaves": {}}', "whole number from 1; got 0"),
        ('{"version": 1, "leaves": []}', "must be a JSON object, path"),
        ('{"version": 1, "leaves": {"w": 3}}', "leaf 'w'.* got 3"),
        (
            '{"version": 1, "leaves": {"w": {"shape": [-1], "dtype": "f"}}}',
            "leaf 'w'.*whole numbers",
        ),
        (
            '{"version": 1, "leaves": {"w": {"shape": [1], "dtype": 4}}}',
            r"leaf 'w'.*\(a string\)",
        ),
    ],
)
def test_what_is_no_format_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StateFormat.from_json(text)


def test_leaves_that_cannot_be_described_name_their_path(unhooked: None) -> None:
    with pytest.raises(TypeError, match="leaf 'w/1' of the state is 'three'"):
        state_format({"w": (jnp.ones(1), "three")})
    with pytest.raises(ValueError, match="one path, 'a/b'; rename"):
        state_format({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


HYPERPARAMETERS = {
    "rate": lambda: mo.muon(0.3),
    "coefficients": lambda: mo.muon(0.1, schedule=mo.linalg.YOU),
    "steps": lambda: mo.muon(0.1, schedule=mo.linalg.JORDAN[:2]),
    "decays": lambda: mo.muon(0.1, momentum=0.5, weight_decay=0.3),
    "scale": lambda: mo.muon(0.1, scale="rms", nesterov=False),
}


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_hyperparameters_are_no_part_of_the_format(name: str) -> None:
    check_state_format(
        format_of(mo.muon(0.1)),
        jax.eval_shape(HYPERPARAMETERS[name]().init, PARAMS),
    )


def test_another_schedule_is_the_same_format() -> None:
    saved = format_of(mo.muon(optax.constant_schedule(0.1)))
    other = mo.muon(optax.linear_schedule(0.1, 0.0, 9))
    check_state_format(saved, other.init(PARAMS))


SCHEDULED = mo.muon(optax.constant_schedule(0.1))
CLIPPED = optax.chain(optax.clip_by_global_norm(1.0), mo.muon(0.1))
# What was saved, what is wanted, the lines between the first and the last, and advice.
CHANGES = {
    "a schedule": (
        mo.muon(0.1),
        SCHEDULED,
        [
            "not in the checkpoint: 'scale_by_learning_rate/count' int32[]",
            "only in the checkpoint: 'scale_by_learning_rate' (no array)",
        ],
        "a number was replaced by a schedule",
    ),
    "no schedule": (
        SCHEDULED,
        mo.muon(0.1),
        [
            "not in the checkpoint: 'scale_by_learning_rate' (no array)",
            "only in the checkpoint: 'scale_by_learning_rate/count' int32[]",
        ],
        "or a schedule by a number",
    ),
    "another optimizer": (
        mo.muon(0.1),
        mo.normuon(0.1),
        [
            "not in the checkpoint: "
            "'scale_by_row_rms/mean_square/up/kernel' float32[1, 2]",
        ],
        "this is another optimizer",
    ),
    "no decay": (
        mo.muon(0.1),
        mo.muon(0.1, weight_decay=None),
        ["only in the checkpoint: 'weight_decay' (no array)"],
        "a link without an array was added or removed",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_names_each_leaf_and_what_to_do(name: str) -> None:
    saved, wanted, lines, advice = CHANGES[name]
    first, *differences, last = said(format_of(saved), wanted).splitlines()
    assert first.endswith("this optimizer and these parameters.")
    assert [line.strip() for line in differences] == lines
    assert last.startswith("What to do: ")
    assert advice in last


@pytest.mark.parametrize(
    ("wrapped", "where"),
    [
        (CLIPPED, "'1'"),
        (optax.MultiSteps(mo.muon(0.1), 2), "'inner_opt_state'"),
        (optax.apply_if_finite(mo.muon(0.1), 3), "'inner_state'"),
        (mo.hybrid(mo.muon(0.1)), "'inner_states/matrix/inner_state'"),
    ],
    ids=["chain", "MultiSteps", "apply_if_finite", "hybrid"],
)
def test_wrapping_and_unwrapping_say_where_the_state_is(
    wrapped: Any, where: str
) -> None:
    bare = mo.muon(0.1)
    added = said(format_of(bare), wrapped).splitlines()[-1]
    assert "the optimizer was wrapped. Restore" in added
    assert f"put that state at {where} of" in added
    removed = said(format_of(wrapped), bare).splitlines()[-1]
    assert "a wrapper was removed. Restore" in removed
    assert f"take what is at {where} of" in removed


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_link_more_or_less_in_a_chain_says_where(place: int) -> None:
    links = [optax.trace(0.9), mo.muon(0.1)]
    chain = optax.chain(*links)
    old: Any
    new: Any
    longer = optax.chain(*links[:place], optax.scale_by_adam(), *links[place:])
    old, new = chain.init(PARAMS), longer.init(PARAMS)
    assert f"new link at {place}. " in said(state_format(old), longer)
    check_state_format(
        state_format((*old[:place], new[place], *old[place:])), longer.init(PARAMS)
    )
    assert f"lost its link at {place}. " in said(state_format(new), chain)
    check_state_format(state_format((*new[:place], *new[place + 1 :])), old)


def test_other_parameters_are_told_from_another_optimizer() -> None:
    saved = format_of(optax.adamw(0.1))
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    told = said(saved, optax.adamw(0.1), halves)
    assert (
        "different: '0/mu/up/kernel': saved float32[4, 2], wanted bfloat16[4, 2]"
        in told
    )
    assert "the parameters have other shapes or dtypes" in told


def test_a_message_stays_readable() -> None:
    many = {f"w{number}": jnp.ones((2, 2)) for number in range(50)}
    lines = said(format_of(mo.muon(0.1)), mo.muon(0.1), many).splitlines()
    assert "  not in the checkpoint: and 30 more" in lines
    assert len(lines) == 24


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (FORMAT_VERSION + 1, "Install the version"),
        (FORMAT_VERSION - 1, "how to convert"),
    ],
)
def test_another_version_says_so(version: int, advice: str) -> None:
    saved = StateFormat(version, {"count": COUNT})
    with pytest.raises(ValueError, match=f"state format {version}, and.*{advice}"):
        check_state_format(saved, {"count": jnp.zeros((), jnp.int32)})


def test_a_format_of_another_kind_is_refused(unhooked: None) -> None:
    with pytest.raises(TypeError, match="saved"):
        check_state_format(json.loads("{}"), {})


def test_a_digest_sees_every_bit() -> None:
    state = {
        "w": jnp.arange(3.0),
        "half": jnp.ones(2, jnp.bfloat16),
        "key": jax.random.key(3),
        "host": np.arange(2),
        "none": None,
    }
    changed = [
        state | {"w": state["w"].at[2].set(np.nextafter(np.float32(2), 3))},
        state | {"w": -state["w"]},
        state | {"w": state["w"][None]},
        state | {"half": jnp.ones(2, jnp.float16)},
        state | {"key": jax.random.key(4)},
        state | {"host": np.arange(2).astype(np.int32)},
        state | {"none": ()} | {"extra": ()},
        {"v": state["w"]} | {k: v for k, v in state.items() if k != "w"},
    ]
    digests = {state_digest(tree) for tree in (state, *changed)}
    assert len(digests) == 1 + len(changed)
    copied = jax.tree.map(lambda leaf: leaf.copy(), state)
    assert state_digest(copied) == state_digest(state)
