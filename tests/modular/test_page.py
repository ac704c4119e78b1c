"""The Python of docs/modular_manifolds.md runs, and prints what the page shows."""

import re

import jax
import jax.numpy as jnp
import pytest

from manifold_optax.modular._bounds._sizes import RULES
from modular.pages import check_page, DOCS

PAGE = DOCS / "modular_manifolds.md"
# Names of the reader's own: patterns, shards, and functions that a user declared.
OWN = {
    "declared", "entrywise", "joined_shards", "linear", "log_softmax", "normalize",
    "shard", "softmax",
}  # fmt: skip
# What always jumps, and is refused where a parameter moves it.
JUMPS = {
    "argmax", "argmin", "ceil", "eq", "floor", "ge", "gt", "is_finite", "le", "lt",
    "ne", "random_bits", "round", "sign", "top_k",
}  # fmt: skip


@pytest.mark.slow
def test_blocks_run_and_print_what_the_page_shows(unhooked: None) -> None:
    namespace = check_page(PAGE.name, "model.py")
    params, x, tx = (namespace[name] for name in ("params", "x", "tx"))
    state, labels, losses = tx.init(params), jnp.arange(8), []
    with jax.numpy_rank_promotion("allow"):
        for _ in range(5):
            params, state, loss = namespace["train_step"](params, state, x, labels)
            losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_every_primitive_with_a_rule_is_listed() -> None:
    text = PAGE.read_text("utf-8")
    listed = set(re.findall(r"`(\w+)`", text))
    # The docstring of `register_rule` registers an example, if it ran before.
    assert set(RULES) - OWN - JUMPS - {"my_identity"} <= listed
    assert set(RULES) >= OWN | JUMPS
