"""The Python of the README runs, from top to bottom."""

import pathlib
import re
from typing import Any

import jax.numpy as jnp

import manifold_optax as mo
from manifold_optax.geometry import pair_table

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_table_of_pairs_is_that_of_the_library() -> None:
    assert pair_table(markdown=True) in README.read_text("utf-8")


def test_python_blocks_run(unhooked: None) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert blocks
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(block, namespace)
        if "train_step" in block:
            images, labels = jnp.ones((8, 64)), jnp.arange(8)
            model, optimizer = namespace["model"], namespace["optimizer"]
            first = namespace["train_step"](model, optimizer, images, labels)
            assert namespace["train_step"](model, optimizer, images, labels) < first
            assert mo.Stiefel().residual(model.kernel[...]) < 1e-6
