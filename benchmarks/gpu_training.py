"""What an optimizer takes of a training step, and what the step holds in memory."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import gpu_timing
import jax
import optax
import peers
from gpu_model import Attention, fastest_attention, Transformer
from gpu_timing import Deadline, rounds_of, spread
from stepping import head, row, Step

import manifold_optax as mo

TITLE = "Share of a training step"
COMMON_BATCH = 2**19
"""Tokens of a batch of GPT-2 small in common recipes (A. Karpathy, nanoGPT)."""

TEXT = f"""\
A decoder in plain JAX, products in bfloat16, weights in float32, layers stacked under
`jax.lax.scan`; 'remat': the backward pass computes each layer again.
Matrices by the optimizer that is named, all else by Adam. 'forward, backward': the
gradient alone. 'update': update and apply alone, donated. 'together': both as one
donated program. 'share': update / (forward, backward + update). 'share at 0.5 M': the
same, if a step takes {COMMON_BATCH} tokens by accumulation; computed from the others,
not measured. 'of peak': model FLOPs of forward and backward per second, over those of
one bfloat16 product. 'held': arguments, results and temporaries of the program
'together', by XLA's `memory_analysis`. 'peak': `peak_bytes_in_use` of the process
until then; '≤' where this row did not raise it."""


@dataclasses.dataclass(frozen=True)
class TrainingBudget:
    """Which models are trained, and for how long."""

    models: tuple[Transformer, ...]
    seconds: float
    """Of the whole table; shared by the models."""
    measure: float
    """Of one median."""


def _matrices_of_layers(params: Any) -> Any:
    """Matrices for `optax.contrib.muon`: the last two axes of three."""

    def axes(leaf: Any) -> Any:
        return optax.contrib.MuonDimensionNumbers(1, 2) if leaf.ndim == 3 else None

    return jax.tree.map(axes, params)


def optimizers() -> dict[str, Callable[[], optax.GradientTransformation]]:
    """The rows of a model, in the order in which time runs out."""
    return {
        peers.ADAMW: lambda: optax.adamw(peers.RATE),
        "mo.hybrid(muon), bf16 products": lambda: peers.whole_model(
            peers.bf16_muon(axes=mo.STACKED)
        ),
        "mo.hybrid(mo.muon)": lambda: peers.whole_model(
            mo.muon(peers.RATE, axes=mo.STACKED)
        ),
        peers.OPTAX: lambda: optax.contrib.muon(
            peers.RATE, muon_weight_dimension_numbers=_matrices_of_layers
        ),
    }


def table(budget: TrainingBudget, peak: float) -> Iterator[str]:
    """The table; `peak` is the rate of a bfloat16 product."""
    attention = fastest_attention()
    yield f"Attention: {attention}.\n"
    yield from head(
        *("model, tokens", "optimizer", "forward, backward ms", "of peak"),
        *("update ms, median [quartiles]", "together ms", "share", "share at 0.5 M"),
        *("held GB", "peak GB"),
    )
    for model in budget.models:
        deadline = Deadline(budget.seconds / len(budget.models))
        make = lambda m=model, d=deadline: _rows(m, attention, budget, peak, d)
        yield from deadline.rows(model.name, make)


def _rows(
    model: Transformer,
    attention: Attention,
    budget: TrainingBudget,
    peak: float,
    deadline: Deadline,
) -> Iterator[str]:
    params, tokens = model.init(), model.data()

    def gradient(params: Any, tokens: Any) -> Any:
        return jax.value_and_grad(model.loss)(params, tokens, attention)

    compiled = jax.jit(gradient).lower(params, tokens).compile()
    run = lambda: compiled(params, tokens)
    alone = statistics.median(rounds_of(run, seconds=budget.measure))
    of_peak = model.model_flops / alone / peak
    gradients = run()[1]
    first = f"{model.name}, {model.batch} x {model.context}"
    for name, make in optimizers().items():

        def cells(name: str = name, make: Any = make) -> Iterator[str]:
            step = Step(make(), params, gradients)
            update = rounds_of(step, seconds=budget.measure)
            # Before the next program is made: both would hold parameters and state.
            del step
            whole = _Whole(make(), gradient, params, tokens)
            together = gpu_timing.median_of(whole, seconds=budget.measure)
            seconds = statistics.median(update)
            share = seconds / (alone + seconds)
            common = alone * COMMON_BATCH / model.tokens
            yield row(
                [
                    *(first, name, f"{1e3 * alone:.3g}", f"{of_peak:.2f}"),
                    *(spread(update), f"{1e3 * together:.3g}", f"{share:.1%}"),
                    f"{seconds / (common + seconds):.2%}",
                    *(f"{gpu_timing.held_bytes(whole.compiled) / 1e9:.3g}", whole.peak),
                ]
            )

        yield from deadline.rows(f"{first}, {name}", cells)


class _Whole:
    """A training step as one donated program: gradient, update, apply."""

    def __init__(
        self, tx: optax.GradientTransformation, gradient: Any, params: Any, tokens: Any
    ):
        def step(params: Any, state: Any, tokens: Any) -> Any:
            loss, gradients = gradient(params, tokens)
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, loss

        self._before = gpu_timing.peak_bytes()
        # A copy, because the caller's own must outlive the donation.
        self._params = jax.tree.map(lambda x: x.copy(), params)
        self._state = jax.jit(tx.init)(self._params)
        self._tokens = tokens
        program = jax.jit(step, donate_argnums=(0, 1))
        self.compiled = program.lower(self._params, self._state, tokens).compile()

    def __call__(self) -> Any:
        """One step; the loss."""
        self._params, self._state, loss = self.compiled(
            self._params, self._state, self._tokens
        )
        return loss

    @property
    def peak(self) -> str:
        """Most gigabytes of the process until now, and whether they are this step's."""
        after = gpu_timing.peak_bytes()
        if after is None or self._before is None:
            return "–"
        bound = "" if after > self._before else "≤ "
        return f"{bound}{after / 1e9:.3g}"
