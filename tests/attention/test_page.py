"""The Python of docs/muon_clip.md runs, from top to bottom, and does what it says."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import manifold_optax as mo
from attention.layouts import LAYOUTS, PAGE

if not hasattr(nnx, "capture"):
    pytest.skip("the page asks for a Flax with nnx.capture", allow_module_level=True)


@pytest.mark.slow
def test_python_blocks_run(unhooked: None, capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text("utf-8")
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, namespace)
        if "def train_step" in block:
            tokens = jnp.arange(2 * 9).reshape(2, 9) % 7
            arguments = namespace["model"], namespace["optimizer"], tokens
            first = namespace["train_step"](*arguments)
            assert namespace["train_step"](*arguments) < first
        if "output, largest =" in block:
            args = [namespace[name] for name in ("query", "key", "value")]
            reference = jax.nn.dot_product_attention(*args, is_causal=True)
            # Sums of 50 terms of order 1 in float32.
            np.testing.assert_allclose(namespace["output"], reference, atol=1e-5)
        if "for micro_batch" in block:
            # 0.9 of 1 is left by the step, of which the first micro-batch's 400 keeps
            # half.
            moved = namespace["params"]["key"] + namespace["updates"]["key"]
            np.testing.assert_allclose(moved[0, :, 0], [0.45, 0.9], rtol=1e-6)
        if "state.replace" in block:
            key = namespace["state"].params["key"]
            np.testing.assert_allclose(key[0, :, 0], [0.45, 0.9], rtol=1e-6)
        if "per_head = " in block:
            namespace["tx"].init(namespace["params"])
            mo.plan_matrices(namespace["params"]["qkv"], axes=namespace["per_head"])
    *described, bias = capsys.readouterr().out.splitlines()
    assert f"# {bias}" in page
    (query,) = (line for line in described if line.startswith("attention/query/kernel"))
    assert "qk_clip" in query
    assert set(namespace["specs"]) == {layout.name for layout in LAYOUTS} | {"stacked"}
