"""The Python of docs/checkpoints.md runs; docs/state_format.md shows the format."""

import re

import jax.numpy as jnp
import pytest

import manifold_optax as mo
from modular.pages import check_page, DOCS


@pytest.mark.slow
def test_checkpoints(unhooked: None) -> None:
    namespace = check_page("checkpoints.md", "train.py")
    namespace["manager"].close()
    namespace["directory"].cleanup()


def test_the_format_that_is_shown_is_that_of_muon() -> None:
    text = (DOCS / "state_format.md").read_text("utf-8")
    (shown,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    state = mo.muon(0.02).init({"w": jnp.ones((4, 2))})
    assert mo.states.state_format(state).to_json() == shown
