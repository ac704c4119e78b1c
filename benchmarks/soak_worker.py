"""One process of `soak.py`: trains from the last checkpoint until a step, or is killed.

It prints an event per line, as JSON. The number of its devices comes from `XLA_FLAGS`.
A checkpoint holds, beside the state after some steps, the parameters after one more.
The process that restores it makes that step again and compares.
"""

import argparse
import gc
import hashlib
import json
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, cast, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from soak_tasks import MOST_SKIPPED, poison, Task, TASKS

import manifold_optax as mo

WARM_UP = 100
"""Steps after which a process must need no more memory and no more programs."""

_PAGE = resource.getpagesize()


class Training(NamedTuple):
    """What a step changes.

    Attributes:
        step: Number of steps made.
        params: The parameters.
        state: The optimizer's state.
        worst: Largest distance of any matrix from its manifold after any step.
    """

    step: jax.Array
    params: Any
    state: Any
    worst: jax.Array


class Saved(NamedTuple):
    """A checkpoint.

    Attributes:
        training: The training.
        devices: On how many devices.
        after: The parameters one step later.
    """

    training: Training
    devices: jax.Array
    after: Any


class Program:
    """The compiled step of a task on all devices of this process.

    Attributes:
        traces: How often the step was traced.
    """

    def __init__(self, task: Task, seed: int):
        self._task, self._seed, self.traces = task, seed, 0
        axes = (AxisType.Auto,)
        self._mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=axes)
        self._everywhere = NamedSharding(self._mesh, P())
        params = jax.tree.map(
            lambda leaf: jax.device_put(leaf, self._layout(leaf)), task.first_params
        )
        placement = mo.sharding.owned(self._mesh, params)
        self._tx = optax.apply_if_finite(task.optimizer(placement), MOST_SKIPPED)
        state = jax.jit(
            self._tx.init,
            out_shardings=mo.sharding.state_shardings(self._tx, params),
        )(params)
        zero = lambda dtype: jax.device_put(jnp.zeros((), dtype), self._everywhere)
        self.start = Training(zero(jnp.int32), params, state, zero(jnp.float32))
        where = jax.tree.map(lambda leaf: leaf.sharding, self.start)
        self.step: Callable[[Training], Training] = jax.jit(
            self._step, out_shardings=where
        )
        self.final_loss = jax.jit(lambda params: task.loss(params, task.last))

    def abstract(self) -> Saved:
        """Returns the shapes and the layout of a checkpoint, to restore it."""
        abstract = lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding
        )
        return jax.tree.map(abstract, self.saved(self.start, self.start.params))

    def saved(self, training: Training, after: Any) -> Saved:
        """Returns a checkpoint."""
        devices = jax.device_put(jnp.int32(jax.device_count()), self._everywhere)
        return Saved(training, devices, after)

    def _layout(self, leaf: jax.Array) -> NamedSharding:
        cut = leaf.ndim > 1 and leaf.shape[0] % jax.device_count() == 0
        return NamedSharding(self._mesh, P("x") if cut else P())

    def _step(self, training: Training) -> Training:
        self.traces += 1
        step, params, state, worst = training
        batch = self._task.batch(jax.random.fold_in(jax.random.key(0), step))
        data = NamedSharding(self._mesh, P("x"))
        batch = jax.lax.with_sharding_constraint(batch, data)
        gradient = poison(self._seed, step, jax.grad(self._task.loss)(params, batch))
        updates, state = self._tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        worst = jnp.maximum(worst, self._task.residual(params))
        return Training(step + 1, params, state, worst)


class Meter:
    """Programs compiled, memory and arrays held since the process was warm."""

    def __init__(self) -> None:
        self.compiled = 0
        self._warm: tuple[int, float, int] | None = None
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        self.compiled += event.endswith("backend_compile_duration")

    def now(self) -> tuple[int, float, int]:
        """Returns programs compiled, MiB in memory, and number of arrays."""
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return self.compiled, pages * _PAGE / 2**20, len(jax.live_arrays())

    def mark(self) -> None:
        """Says that the process is warm."""
        gc.collect()
        self._warm = self.now()

    def grown(self) -> dict[str, float]:
        """Returns what came since; nothing where it never was warm."""
        if self._warm is None:
            return {}
        gc.collect()
        names = ("new_programs", "new_mib", "new_arrays")
        pairs = zip(self.now(), self._warm, strict=True)
        return dict(zip(names, (now - then for now, then in pairs), strict=True))


def say(event: str, **facts: Any) -> None:
    """Prints an event."""
    print(json.dumps({"event": event, **facts}), flush=True)


def difference(found: Any, expected: Any) -> float:
    """Returns the largest difference of two trees, relative to each leaf."""
    worst = 0.0
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
        worst = max(worst, float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)))
    return worst


def digest(training: Training) -> str:
    """Returns a hash of every bit of the parameters and of the state."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(training):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def restore(manager: ocp.CheckpointManager, program: Program) -> Training:
    """Returns the training of the last checkpoint, having made one step to compare."""
    last = manager.latest_step()
    if last is None:
        say("started", devices=jax.device_count())
        return program.start
    target = ocp.args.StandardRestore(program.abstract())
    saved = cast("Saved", manager.restore(last, args=target))
    after = program.step(saved.training).params
    say(
        "restored",
        step=last,
        devices=jax.device_count(),
        before=int(saved.devices),
        off=difference(after, saved.after),
    )
    return saved.training


def train(options: argparse.Namespace) -> None:
    """Trains, saves, and says what happens."""
    task, meter = TASKS[options.task](), Meter()
    program = Program(task, options.seed)
    settings = ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    with ocp.CheckpointManager(options.directory.absolute(), options=settings) as kept:
        training = restore(kept, program)
        leaves = len(jax.tree.leaves(program.abstract()))
        number = first = int(training.step)
        program.step(training)  # compiles, which is not counted in the seconds
        stop = time.monotonic() + options.seconds
        while number < options.until and time.monotonic() < stop:
            if number >= options.announce_step:
                say("step", step=number, traces=program.traces, **meter.grown())
                options.announce_step = sys.maxsize
            new = program.step(training)
            # Waits, so that no more than one step is ever under way.
            number = int(new.step)
            if number % options.every == 1 and number > first + 1:
                if number > options.announce_save:
                    say("save", step=number - 1, traces=program.traces)
                saved = program.saved(training, new.params)
                kept.save(number - 1, args=ocp.args.StandardSave(saved))
                del saved
            training = new
            del new
            # Behind the second save, which compiles no more than the first.
            if number == first + max(WARM_UP, 2 * options.every + 2):
                meter.mark()
        grown = meter.grown()
    say(
        "done",
        step=number,
        digest=digest(training),
        loss=float(program.final_loss(training.params)),
        skipped=int(training.state.total_notfinite),
        worst=float(training.worst),
        bound=task.bound,
        traces=program.traces,
        programs=meter.compiled,
        # A saved array also holds its part on each device.
        arrays_of_a_save=leaves * (1 + jax.device_count()),
        **grown,
    )


def main() -> None:
    """Reads the options and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--directory", type=pathlib.Path, required=True)
    parser.add_argument("--until", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--every", type=int, required=True)
    parser.add_argument("--announce-step", type=int, default=sys.maxsize)
    parser.add_argument("--announce-save", type=int, default=sys.maxsize)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
