"""What `diagnostics.write` writes, and what `collect` finds in restored states."""

import io
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo

INFO = {
    "angle": {"up/kernel": jnp.float32(41.5), "experts": jnp.asarray([40.1, jnp.nan])},
    "applied": {"hidden/total": jnp.float32(3.0)},
}
LINE = {
    "step": 7,
    "angle": {"up/kernel": 41.5, "experts": [40.1, None]},
    "applied": {"hidden/total": 3.0},
}


def test_a_line_of_json_is_appended_to_a_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    mo.diagnostics.write(INFO, 7, path)
    mo.diagnostics.write(INFO, np.int64(8), str(path))
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert lines == [LINE, LINE | {"step": 8}]


def test_an_open_file_gets_the_line() -> None:
    file = io.StringIO()
    mo.diagnostics.write(INFO, 7, file)
    assert json.loads(file.getvalue()) == LINE
    assert file.getvalue().endswith("\n")


class Writer:
    """A writer of TensorBoard that keeps what it is given."""

    def __init__(self, method: str) -> None:
        self.found: dict[str, float] = {}
        setattr(self, method, self._keep)

    def _keep(self, tag: str, value: float, step: int) -> None:
        assert step == 7
        self.found[tag] = value


@pytest.mark.parametrize("method", ["scalar", "add_scalar"])
def test_a_writer_gets_one_scalar_for_each_matrix(method: str) -> None:
    writer = Writer(method)
    mo.diagnostics.write(INFO, 7, writer)
    assert np.isnan(writer.found.pop("angle/experts/1"))
    # Of float32: seven digits.
    assert writer.found == pytest.approx(
        {"angle/up/kernel": 41.5, "angle/experts/0": 40.1, "applied/hidden/total": 3.0}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((INFO, 7, 3), "to must be the path of a file"),
        ((INFO, 7.5, "x"), "step must be an integer, got 7.5"),
        ((INFO, True, "x"), "step must be an integer"),
    ],
)
def test_other_targets_and_steps_are_refused(
    arguments: Any, message: str, unhooked: None
) -> None:
    with pytest.raises(TypeError, match=message):
        mo.diagnostics.write(*arguments)


def plain(node: Any) -> Any:
    """A state as Orbax restores it without a target: dictionaries and lists."""
    if hasattr(node, "_asdict"):
        return {name: plain(child) for name, child in node._asdict().items()} or None
    if isinstance(node, dict):
        return {name: plain(child) for name, child in node.items()}
    if isinstance(node, tuple):
        return [plain(child) for child in node]
    return node


def test_the_numbers_of_a_state_restored_as_dictionaries_are_found() -> None:
    params = {"gap": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
    watched = optax.chain(mo.monitor(), mo.muon(0.1))
    state = mo.hybrid(watched).init(params)
    found = mo.diagnostics.collect(plain(state))
    assert found
    assert found == mo.diagnostics.collect(state)


def test_the_gap_of_a_restored_state_is_found() -> None:
    restored = [None, {"gap": {"w": jnp.ones(())}, "tangency": {"w": jnp.zeros(())}}]
    assert set(mo.DualAscentState._fields) == set(restored[1] or ())
    assert mo.diagnostics.collect(restored)["gap"] == {"w": 1.0}
