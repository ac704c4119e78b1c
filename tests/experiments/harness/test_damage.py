"""Damaged checkpoints, full disks and unwritable directories: a sentence, no loss."""

import contextlib
import gc
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.experiments.harness.checkpoint import open_checkpoints
from manifold_optax.experiments.harness.output import UnusableOutputError
from manifold_optax.experiments.harness.state import first_state, RunState
from manifold_optax.states import state_digest

resource = pytest.importorskip("resource", reason="limits are those of POSIX")


@pytest.fixture(autouse=True)
def orbax_may_leave_coroutines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After an error Orbax awaits not all that it began, of which Python complains."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    yield
    gc.collect()


def state_of(seed: int, rows: int = 64) -> RunState:
    """Arrays of more than a kilobyte, which Orbax writes to a file of their own."""
    draw = np.random.default_rng(seed).standard_normal((rows, 32))
    state = first_state({"w": jnp.asarray(draw, jnp.float32)}, (), jnp.zeros(3))
    return state._replace(round=jnp.asarray(seed, jnp.int32))


def save(directory: Path, *states: RunState) -> None:
    with open_checkpoints(directory) as checkpoints:
        for state in states:
            checkpoints.save(state)


def restore(directory: Path, like: RunState) -> RunState:
    with open_checkpoints(directory) as checkpoints:
        return checkpoints.restore_latest(like)


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


FINDS_DAMAGE = pytest.mark.promise(
    "State and checkpoints",
    "Damage of a checkpoint is found, or did no harm",
    on="missing, empty and truncated files, flipped bits; experiments",
)


@FINDS_DAMAGE
def test_a_flipped_bit_of_a_number_is_found(tmp_path: Path) -> None:
    state = state_of(1)
    save(tmp_path, state)
    largest = max(files_of(tmp_path), key=lambda path: path.stat().st_size)
    largest.write_bytes(flipped(largest.read_bytes(), random.Random(0)))
    said = f"{re.escape(str(tmp_path))}.*numbers are not those.*Delete that directory"
    with pytest.raises(UnusableOutputError, match=said):
        restore(tmp_path, state)


@FINDS_DAMAGE
@pytest.mark.slow
def test_no_damage_of_any_file_goes_unseen(tmp_path: Path) -> None:
    state, rng = state_of(1), random.Random(0)
    save(tmp_path, state)
    said: list[str] = []
    for path in files_of(tmp_path):
        data = path.read_bytes()
        damaged: list[bytes | None] = [None, b"", data[: len(data) // 2]]
        damaged += [flipped(data, rng) for _ in range(5)]
        for changed in damaged:
            if changed is None:
                path.unlink()
            else:
                path.write_bytes(changed)
            try:
                restored = restore(tmp_path, state)
                assert state_digest(restored) == state_digest(state), path
            except UnusableOutputError as error:
                said.append(str(error))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    # Half of the files are not read, or only say what is known without them.
    assert len(said) > 30
    assert max(map(len, said)) < 1000
    assert not any("\n" in line for line in said)


def test_the_state_of_another_optimizer_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, state_of(1))
    other = state_of(1)
    other = other._replace(
        trainable=other.trainable._replace(params={"v": jnp.ones(2)})
    )
    said = "not in the checkpoint: 'trainable/params/v'"
    with pytest.raises(UnusableOutputError, match=said):
        restore(tmp_path, other)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets this process write no file beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def unwritable(directory: Path) -> Iterator[None]:
    """Takes the right to write from this process, also where it is root."""
    directory.chmod(0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        directory.chmod(0o700)


@pytest.mark.promise(
    "State and checkpoints",
    "A save that fails leaves the checkpoint before it",
    on="a full disk, an unwritable directory; experiments",
)
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the faults are those of POSIX")
@pytest.mark.parametrize("fault", ["full", "unwritable"])
def test_a_save_that_fails_leaves_the_checkpoint_before_it(
    tmp_path: Path, fault: str
) -> None:
    first, second = state_of(1, rows=640), state_of(2, rows=640)
    save(tmp_path, first)
    # The numbers take 80 kB, everything else a few.
    failing: Any = largest_file(20_000) if fault == "full" else unwritable(tmp_path)
    with (
        open_checkpoints(tmp_path) as checkpoints,
        failing,
        pytest.raises(UnusableOutputError, match=r"cannot be written.*--resume"),
    ):
        checkpoints.save(second)
    assert state_digest(restore(tmp_path, second)) == state_digest(first)
    # The next one is written, and what was left by the failed one is cleaned up.
    save(tmp_path, second)
    assert state_digest(restore(tmp_path, first)) == state_digest(second)
    assert not list(tmp_path.glob("*tmp*"))
    assert jax.tree.leaves(first)
