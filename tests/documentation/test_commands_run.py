"""Every command of README and pages runs, at a size that takes seconds."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from documentation.commands import commands, PAGES, ROOT

PROGRAM = re.compile(r"benchmarks/\w+\.py|manifold_optax\.experiments|manifold-optax")

ELSEWHERE = {
    "benchmarks/guarantees.py": "runs the tests that are marked as promises; "
    "tests/test_guarantees.py compares its page with them",
    "benchmarks/mutants.py": "takes two hours; it was run by hand",
    "benchmarks/modular_peers.py": "needs modula, which is on no package registry",
    "benchmarks/soak.py": "tests/experiments/test_soak.py runs it for a minute",
}
"""What is not run here, and why."""

TRAINED = "--optimizers muon --learning-rates.muon 0.02 --seeds 1 --final-seeds"
LANGUAGE = f"""{TRAINED} --training.steps 4 --training.warmup-steps 1
    --training.evaluate-every 2 --training.batch-size 2 --training.context 16
    --model.layers 1 --model.width 16 --model.hidden 16 --model.heads 2
    --model.head-size 8"""
DIGITS = """--task.data digits --task.epochs 1 --task.hidden 16
    --task.batch-size 256 --task.validation-examples 100"""
SMALLER = {
    "benchmarks/certificates.py": "--only 'MLP, depth 3' --pairs 2 --layers 1",
    "benchmarks/gpu_step.py": "--small",
    "benchmarks/local_certificates.py": "'MLP 3072'",
    "benchmarks/monitor_cost.py": "--quick --pairs 2",
    "benchmarks/narrow_momentum_lm.py": "--steps 4",
    "benchmarks/optimizer_step.py": "--quick --pairs 2",
    "benchmarks/sharded_step.py": "--quick",
    "benchmarks/stiefel_solver.py": "--quick --pairs 2",
    "bench": "--width 32 --layers 1",
    "describe": "",
    "doctor": "",
    "failures": f"{TRAINED} --steps 4 --tasks 'wide and narrow'",
    "lm": LANGUAGE,
    "mlp": f"""{TRAINED} --data digits --epochs 1 --batch-size 256 --timing-rounds 0
        --validation-examples 100""",
    "modulewise": LANGUAGE,
    "precision": f"""{TRAINED} {DIGITS} --examples 4 --language.text FILE
        --language.optimizers muon --language.learning-rates.muon 0.02
        --language.training.steps 2 --language.training.evaluate-every 2
        --language.training.warmup-steps 1 --language.training.context 16""",
    "robustness": f"{TRAINED} {DIGITS} --attack.examples 4",
    # Without the files of CIFAR-10, of which only the official ones are read.
    "transfer": "--families transformer --text FILE --steps 2 --batch-size 2 "
    "--sizes 16 32 --other-size 16 --optimizers muon_width --seeds 1",
}
"""Options that make a program small, by its name; they follow those of the page."""

WORDS = {"OPTIMIZER": "muon_width"}
"""What stands for a word in capitals; FILE and DIR are names of the folder."""


def programs() -> list[list[str]]:
    """Programs of all pages with the words that follow them, each once.

    An experiment and a command of `manifold-optax` come without what is before their
    names.
    """
    found = {}
    for line in (line for page in PAGES for line in commands(page)):
        # A choice of names, or a name to fill in, is no command.
        if not PROGRAM.search(line) or re.search(r"[|…]|NAME", line):
            continue
        words = shlex.split(line, comments=True)
        while words and not PROGRAM.fullmatch(words[0]):
            words.pop(0)
        if words and not words[0].startswith("benchmarks/"):
            words = words[2:] if words[1:2] == ["run"] else words[1:]
        if words:
            found[" ".join(words)] = [WORDS.get(word, word) for word in words]
    return list(found.values())


def argv(words: list[str]) -> list[str]:
    """The command line of a program, in this environment and at a small size."""
    name = words[0]
    smaller = shlex.split(SMALLER.get(name, ""))
    if name.startswith("benchmarks/"):
        return [sys.executable, *words, *smaller]
    script = pathlib.Path(sys.executable).with_name("manifold-optax")
    run = [] if name in ("bench", "describe", "doctor") else ["run"]
    return [str(script), *run, *words, *smaller]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Where commands run: what they read is here, and what they write stays here."""
    for name in ("benchmarks", "configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "FILE").write_text("A text of some length, again and again. " * 400)
    # The model that docs/command_line.md describes.
    block = re.search(r"```python\n(.*?)```", read("docs/command_line.md"), re.DOTALL)
    assert block is not None
    (tmp_path / "my_model.py").write_text(block.group(1))
    return tmp_path


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


HERE = [words for words in programs() if words[0] not in ELSEWHERE]


@pytest.mark.slow
@pytest.mark.parametrize("words", HERE, ids=" ".join)
def test_a_command_runs(folder: pathlib.Path, words: list[str]) -> None:
    chosen = {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        argv(words),
        cwd=folder,
        env={**os.environ, **chosen},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout
    # How a benchmark names a row that it could not measure.
    assert "| failed: " not in done.stdout


def test_what_is_small_here_or_elsewhere_stands_on_a_page() -> None:
    assert {*SMALLER, *ELSEWHERE} <= {words[0] for words in programs()}
