"""Attacks on the rules: their bounds, against what small functions are measured at."""

import functools
import itertools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import numpy as np

from manifold_optax.modular._bounds._gains import Gains
from manifold_optax.modular._bounds._mixed_norm import MixedNorm, natural_norm
from manifold_optax.modular._bounds._number import reference, Size
from manifold_optax.modular._bounds._sizes import Fact, Unreadable
from manifold_optax.modular._computation._graph import Value
from modular.measured_norms import (
    Floats,
    largest_ratio,
    measured,
    normal,
    starts_of,
    steepest,
)
from modular.rule_cases import Case, norms_of, read

# Rounding of float64 through a few operations; the scalar analysis rounds up by 1e-12.
ROUNDING = 1 + 1e-7
# And of what is 0.
TINY = 1e-12

# How often a search for large values starts, and how many steps it takes: from corners
# of the sets of operands one or two steps reach most of the maximum.
TRIALS, ROUNDS = 3, 3


# Each case is compiled once and run a dozen times on a few numbers.
_QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


class Attack:
    """One case, attacked."""

    def __init__(self, the: Case, *, pairs: int, points: int) -> None:
        self.case = the
        self.graph, self.sizes = read(the)
        self.out = self.graph.outputs[0]
        self.rng = np.random.default_rng(sum(map(ord, the.name)))
        self.pairs, self.points = pairs, points
        self.moving = [k for k, x in enumerate(the.operands) if x.moves]
        self.found: list[Any] = []
        self.jacobians: list[list[Floats]] = []
        self.closest = {"size": 0.0, "gain": 0.0}  # Found over bound, the largest.
        self._gains: dict[MixedNorm, Gains] = {}

    def whole(self, moving: Sequence[Any]) -> list[Any]:
        """All operands, from those that move."""
        found = [x.fixed for x in self.case.operands]
        for k, x in zip(self.moving, moving, strict=True):
            found[k] = x
        return found

    def evaluated(self, moving: Sequence[Any]) -> Any:
        """The result, and its Jacobian by each operand that moves."""

        def function(*moving: Any) -> Any:
            return self.case.function(*self.whole(moving))

        jacobian = jax.jacfwd if self.case.ahead else jax.jacrev
        argnums = tuple(range(len(moving)))
        return function(*moving), jacobian(function, argnums)(*moving)

    def start(self, *, corner: bool) -> list[Floats]:
        """Operands of the largest size that is allowed, at random."""
        found = []
        for k in self.moving:
            x = self.case.operands[k]
            array = self.rng.standard_normal(x.shape)
            if self.rng.random() < 0.3:
                array = np.abs(array)
            array = steepest(x.norm, array) if corner else array
            found.append(array * (x.size / max(measured(x.norm, array), 1e-300)))
        return found

    def search(self) -> Generator[list[Floats], Any, None]:
        """Asks for values of the case, and notes norms that exceed their bounds."""
        norms = norms_of(self.out.shape, self.case.wanted)
        further = len(norms) - len(self.case.wanted)
        order = [
            *self.rng.permutation(further),
            *range(len(norms) - 1, further - 1, -1),
        ]
        for trial in range(TRIALS):
            norm = norms[order[-1 - trial % len(order)]]
            bound = self._noted(self.sizes.bound, self.out, norm)
            xs = self.start(corner=trial % 2 == 0)
            if trial == 1:  # Near 0, where norm layers and softmax are steepest.
                xs = [1e-3 * x for x in xs]
            for round_ in range(ROUNDS):
                value, jacobians = yield xs
                if trial < self.points and round_ == 0:
                    self.jacobians.append(jacobians)
                size = measured(norm, value)
                self._close("size", size, bound)
                if not size <= bound * ROUNDING + TINY:
                    self.found.append(("size", str(norm), size, bound))
                xs = self._further(normal(norm, value).reshape(-1), jacobians)
        self._attack_gains()

    def _further(self, up: Floats, jacobians: list[Floats]) -> list[Floats]:
        """The operands of largest size along the gradient."""
        found = []
        for k, jacobian in zip(self.moving, jacobians, strict=True):
            x = self.case.operands[k]
            gradient = (up @ jacobian).reshape(x.shape)
            found.append(x.size * steepest(x.norm, gradient))
        return found

    def _attack_gains(self) -> None:
        """Notes pairs of norms whose gain is exceeded."""
        for which, k in enumerate(self.moving):
            operand = self.case.operands[k]
            norms = norms_of(operand.shape, self.case.given if k == 0 else ())
            given = list(dict.fromkeys([operand.norm, *norms]))
            wanted = norms_of(self.out.shape, self.case.wanted)
            for inner, outer in self._pairs(given, wanted):
                bound = self._noted(self.gain, self.graph.inputs[k], inner, outer)
                for jacobians in self.jacobians:
                    found = self.steepest_found(jacobians[which], inner, outer)
                    self._close("gain", found, bound)
                    if not found <= bound * ROUNDING + TINY:
                        pair = str(inner), str(outer)
                        self.found.append((f"gain of {k}", *pair, found, bound))

    def _noted(self, bound: Callable[..., Size], *of: Any) -> float:
        """A bound; one that is refused is noted, so that other cases go on."""
        try:
            return reference(bound(*of))
        except Unreadable as error:
            self.found.append(str(error))
            return math.inf

    def _close(self, what: str, found: float, bound: float) -> None:
        if bound > 0:
            self.closest[what] = max(self.closest[what], found / bound)

    def gain(self, value: Value, inner: MixedNorm, outer: MixedNorm) -> float:
        """The bound."""
        if outer not in self._gains:
            wanted = {self.out: [Fact(outer, 1.0)]}
            self._gains[outer] = Gains(self.graph, self.sizes, wanted)
        return reference(self._gains[outer].gain(value, inner))

    def steepest_found(
        self, jacobian: Floats, inner: MixedNorm, outer: MixedNorm
    ) -> float:
        """What a change of norm 1 does at most, as far as a few steps find."""
        shape = self.out.shape
        starts = starts_of(inner.shape, self.rng)
        chosen = self.rng.choice(len(starts), 2, replace=False)
        return largest_ratio(
            outer, inner, [starts[k] for k in chosen], rounds=2,
            apply=lambda x: (jacobian @ x.reshape(-1)).reshape(shape),
            transposed=lambda y: (y.reshape(-1) @ jacobian).reshape(inner.shape),
        )  # fmt: skip

    def _pairs(
        self, given: list[MixedNorm], wanted: list[MixedNorm]
    ) -> list[tuple[MixedNorm, MixedNorm]]:
        natural = natural_norm(self.out.shape)
        first = [(given[0], natural), (natural_norm(given[0].shape), natural)]
        pairs = list(itertools.product(given, wanted))
        order = self.rng.permutation(len(pairs))[: self.pairs]
        return [*first, *(pairs[k] for k in order)]


@functools.cache
def attacked(
    cases: tuple[Case, ...], *, pairs: int = 3, points: int = 2
) -> dict[Case, Attack]:
    """All cases, attacked together: one compilation is several times cheaper.

    Args:
        cases: what to attack.
        pairs: how many pairs of norms for each operand.
        points: at how many points the gains are measured.

    Returns:
        The attacks. What exceeds its bound is in `found`: nothing, for sound rules.
    """
    attacks = [Attack(the, pairs=pairs, points=points) for the in cases]
    run = jax.jit(
        lambda points: [
            attack.evaluated(point)
            for attack, point in zip(attacks, points, strict=True)
        ],
        compiler_options=_QUICKLY,
    )
    searches = [attack.search() for attack in attacks]
    asked = [next(search) for search in searches]
    while asked:
        results = jax.device_get(run(asked))
        answers = [
            (value, [j.reshape(value.size, -1) for j in jacobians])
            for value, jacobians in results
        ]
        asked = list(map(_send, searches, answers))
        asked = [] if None in asked else asked
    return dict(zip(cases, attacks, strict=True))


def _send(search: Generator[Any, Any, None], answer: Any) -> Any:
    """What a search asks for next; `None` at its end."""
    try:
        return search.send(answer)
    except StopIteration:
        return None
