"""What changes of the inputs, and steps of the parameters, do to an output."""

import math
from collections.abc import Callable, Iterator

from manifold_optax.modular._bounds._gains import Gains
from manifold_optax.modular._bounds._mixed_norm import MixedNorm, natural_norm, ratio
from manifold_optax.modular._bounds._number import (
    reference,
    Size,
    smallest,
    symbol,
    total,
)
from manifold_optax.modular._bounds._sizes import times
from manifold_optax.modular._certificates._domains import example_norm
from manifold_optax.modular._certificates._reading import (
    assumed_size,
    LiveNetwork,
    StepNorm,
)
from manifold_optax.modular._computation._graph import Graph, Value
from manifold_optax.modular._explain import chain
from manifold_optax.modular._primitives import slice_gains


def gain_of_inputs(network: LiveNetwork, output: Value | None = None) -> Size:
    """The largest change of an output, for changes of all inputs of norm 1.

    Float inputs are measured example by example. Of integers (tokens) all may be
    exchanged for others: what is made of them changes by no more than its diameter.
    """
    sizes, gains = network.analysis(output)
    rest = network.graph.inputs[len(network.paths) :]
    floats = [_gain_of_input(gains, value)[0] for value in rest if value.is_float]
    exchanged = []
    for value in _made_of_integers(gains.graph, rest):
        norm = natural_norm(value.shape)
        diameter = 2.0 * sizes.bound(value, norm)
        exchanged.append(times(diameter, gains.gain(value, norm)))
    return total([*floats, *exchanged])


def _gain_of_input(gains: Gains, value: Value) -> tuple[Size, MixedNorm]:
    """The gain of one example, and the norm by way of which it is least.

    A position changes by no more than its example: attention joins positions by
    averages, which are bounded in the norm of the largest.
    """
    example = example_norm(value.shape)
    norms = dict.fromkeys((example, natural_norm(value.shape)))
    ways = [(ratio(norm, example) * gains.gain(value, norm), norm) for norm in norms]
    return smallest(ways, key=lambda way: way[0])


def _made_of_integers(graph: Graph, inputs: tuple[Value, ...]) -> Iterator[Value]:
    """The floats that operations make of integers which depend on the inputs."""
    integers = {value for value in inputs if not value.is_float}
    for operation in graph.operations():
        taken = [x for x in operation.operands if x in integers]
        if not taken:
            continue
        for result in operation.results:
            if result.is_float:
                yield result
            else:
                integers.add(result)


def gain_of_step(network: LiveNetwork) -> Size:
    """The largest change of the output, to first order, for a step of the parameters.

    Steps are symbols, each in the norm in which its gain is least.
    """
    _, gains = network.analysis(affine=True)
    return total(
        _gain_of_leaf(gains, leaf, norms) for leaf, norms in network.norms.items()
    )


def _gain_of_leaf(gains: Gains, leaf: Value, norms: tuple[MixedNorm, ...]) -> Size:
    if not leaf.is_float or (
        leaf not in gains.uses and leaf not in gains.graph.outputs
    ):
        return 0.0
    ways = []
    for norm in norms:
        slices = slice_gains(gains, leaf, norm)
        if len(slices) == 1:
            size = symbol(StepNorm(leaf, norm), assumed_size(leaf.shape, norm))
            ways.append(times(size, slices[0]))
            continue
        inner = MixedNorm(norm.axes[1:])
        assumed = assumed_size(leaf.shape[1:], inner)
        ways.append(
            total(
                times(symbol(StepNorm(leaf, inner, k), assumed), gain)
                for k, gain in enumerate(slices)
            )
        )
    return smallest(ways)


def unbounded(network: LiveNetwork, kind: str) -> str:
    """The step at which a change of the inputs, or of parameters, has no bound."""
    _, gains = network.analysis(affine=kind == "step")
    values = network.leaves if kind == "step" else network.graph.inputs
    for value in values:
        for norm in network.norms.get(value, (natural_norm(value.shape),)):
            if value.is_float and reference(gains.gain(value, norm)) == math.inf:
                return _where(gains, value, norm)
    return "Tokens without a bound of what is made of them."


def _where(gains: Gains, value: Value, norm: MixedNorm) -> str:
    """The first step on the way of a change whose factor is infinite."""
    while True:
        link = gains.links(value, norm)[0]
        if link.operation is None or reference(link.gain) < math.inf:
            what = link.move.reason or "the factor"
            return (
                f"{link.operation}: {what} is not bounded. Declare the inputs as a set "
                "(mo.modular.Box, L2Ball, RmsBall), or what enters norm layers by "
                "floor=."
            )
        value, norm = link.operation.results[link.move.result], link.move.norm


def explained_inputs(network: LiveNetwork, number: Callable[[Size], float]) -> str:
    """One line for each step from each float input to the output."""
    _, gains = network.analysis()
    lines = []
    for place, value in enumerate(network.graph.inputs[len(network.paths) :]):
        if value.is_float:
            gain, norm = _gain_of_input(gains, value)
            gain = number(gain)
            lines.append(
                f"input {place}: a change of norm 1 becomes at most {gain:.6g}"
            )
            lines += chain(gains, value, norm, number)
    return "\n".join(lines)
