import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import manifold_optax as mo
from manifold_optax.command_line import main

MODEL = """
import jax.numpy as jnp
import optax
import manifold_optax as mo


def build():
    params = {"up": jnp.ones((4, 8)), "bias": jnp.ones(8), "head": jnp.ones((8, 3))}
    return forward, params, jnp.ones((2, 4))


def forward(params, x):
    return jnp.tanh(x @ params["up"] + params["bias"][None]) @ params["head"]


def optimizer():
    roles = mo.roles({"up": mo.STACKED})
    tx = mo.hybrid(mo.muon(0.02), others=optax.adamw(1e-3), labels=roles)
    return tx, build()[1]


def number():
    return 3


def unreadable():
    return forward, {**build()[1], "up": "a text"}, jnp.ones((2, 4))


attribute = 3
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> str:
    """The name of a module in the directory where the program runs."""
    name = f"model_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return name


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert isinstance(end.value.code, int)
    return end.value.code


def test_help_names_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    said = capsys.readouterr().out
    main(["--help"])
    assert said == capsys.readouterr().out
    for name in ("run", "describe", "bench", "doctor"):
        assert f"\n  {name} " in said
        assert f"\n  manifold-optax {name}" in said


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"manifold-optax {mo.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "there is no 'nothing', but run, describe, bench, doctor"),
        (["describe", "model"], "wanted MODULE:FACTORY, such as my_model:build"),
        (["describe", "no_such_module:build"], "no module 'no_such_module'"),
        (["bench", "--width", "0"], "--width must be at least 1, got 0"),
        (["bench", "--layers", "-1"], "--layers must be at least 1, got -1"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*words) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("manifold-optax: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("number", "returned int. It takes no arguments"),
        ("attribute", "has no function 'attribute'"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_factory_of_another_kind_is_an_error(
    model: str, factory: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("describe", f"{model}:{factory}") == 2
    assert message in capsys.readouterr().err


def test_a_network_that_cannot_be_read_is_an_error_of_the_reader(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("describe", f"{model}:unreadable") == 2
    assert "'up'" in capsys.readouterr().err


def test_describe_reads_a_network(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["describe", f"{model}:build"])
    text = capsys.readouterr().out
    main(["describe", f"{model}:build", "--json"])
    found = json.loads(capsys.readouterr().out)
    labels = {leaf["path"]: leaf["label"] for leaf in found["parameters"]}
    assert labels == {"up": "matrix", "bias": "vector", "head": "readout"}
    assert found["shares"].keys() == {"up", "head"}
    for path in labels:
        assert f"\n{path}" in f"\n{text}"
    assert "busiest device" in text


def test_describe_reads_an_optimizer(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["describe", f"{model}:optimizer", "--json"])
    found = json.loads(capsys.readouterr().out)
    links = {leaf["path"]: leaf["links"] for leaf in found["parameters"]}
    assert links["up"] == ["orthogonalize_via_newton_schulz", "scale_by_shape"]
    assert "shares" not in found


def test_run_is_the_program_of_experiments(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")  # restored after the test
    assert code_of("run", "nothing") == 2
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


@pytest.mark.slow
def test_bench_measures_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--width", "8", "--layers", "1", "--rounds", "2"]
    main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["matrices"] == 6
    assert found["parameters"] == 4 * 8 * 8 + 2 * 8 * 32 + 5 * 8 + 32
    assert all(step["milliseconds"] > 0 for step in found["steps"].values())
    states = {name: step["state_bytes"] for name, step in found["steps"].items()}
    # AdamW keeps two moments of 4 bytes, and a count.
    assert states["optax.adamw"] == pytest.approx(8, abs=0.1)
    assert found["steps"]["optax.adamw"]["ratio"] == 1
    main(words)
    assert "| mo.hybrid(mo.muon) " in capsys.readouterr().out


@pytest.mark.slow
def test_the_doctor_finds_this_machine_well_as_a_module() -> None:
    command = [sys.executable, "-m", "manifold_optax", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["versions"]["manifold-optax"] == mo.__version__
    assert len(found["checks"]) == 7
