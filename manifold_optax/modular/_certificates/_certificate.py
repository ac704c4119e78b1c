"""`certificate`: what is proved of a function for the weights that it has."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from manifold_optax._checks import require_in_range
from manifold_optax._typing import ArrayTree
from manifold_optax.modular._bounds._number import least, reference, Size
from manifold_optax.modular._bounds._sizes import Unreadable
from manifold_optax.modular._certificates._change import (
    change_along,
    rate_before,
    symbols_of,
)
from manifold_optax.modular._certificates._domains import (
    is_domain,
    known_input,
    shape_of,
)
from manifold_optax.modular._certificates._evaluate import Evaluation
from manifold_optax.modular._certificates._formulas import (
    explained_inputs,
    gain_of_inputs,
    gain_of_step,
    unbounded,
)
from manifold_optax.modular._certificates._live_norms import live_norms
from manifold_optax.modular._certificates._pairs import (
    last_product,
    LastProduct,
    pair_norms,
)
from manifold_optax.modular._certificates._reading import (
    LiveNetwork,
    StepNorm,
    WeightNorm,
)
from manifold_optax.modular._certificates._skeleton import MapNorm, Skeleton
from manifold_optax.modular._certificates._together import (
    norms_of_maps,
    pairs_together,
)
from manifold_optax.modular._certificates._weights import computed, Weights
from manifold_optax.modular._computation._graph import Graph, Value
from manifold_optax.modular._computation._trace import trace
from manifold_optax.modular._network import Network, TOO_DEEP
from manifold_optax.modular._read import output_place


@dataclasses.dataclass(frozen=True, eq=False)
class Certificate:
    """Bounds of one function on one set of inputs, for any weights of its shapes.

    Made by `certificate`. Its methods take parameters that may be traced.

    Attributes:
        network: the function as it was read.
    """

    network: LiveNetwork

    def lipschitz(
        self, params: ArrayTree, *, together: bool = True
    ) -> Float32[Array, ""]:
        """A number that no ratio of changes of output and input exceeds.

        See `lipschitz_bound`.

        Args:
            params: the parameters.
            together: whether layers are also bounded together. Without, a bound costs
                half as much, as one that is logged in training should.
        """
        size = self._least if together else _or_infinite(self._inputs)
        return self._evaluation(params).value(size)

    def pairs(self, params: ArrayTree) -> Float32[Array, "classes classes"]:
        """The same for the difference of every two outputs.

        `|(fᵢ − fⱼ)(x) − (fᵢ − fⱼ)(y)| ≤ pairs[i, j] · ‖x − y‖`. If the last step is a
        product with a weight `w`, it is `‖wᵢ − wⱼ‖` times the bound of what enters;
        else, and where that is less, √2 times the bound of all outputs. Where layers
        are taken together (see `lipschitz_bound`), the differences of their rows count.
        """
        evaluation = self._evaluation(params)
        classes = self.network.graph.outputs[0].shape[-1]
        either = math.sqrt(2.0) * evaluation.value(self._least)
        bounds = jnp.broadcast_to(either, (classes, classes))
        found = self._last
        if found is not None:
            enters = _or_infinite(
                _bounded(lambda: gain_of_inputs(self.network, found.enters))
            )
            weight = computed(found.weight, self._arrays(params))
            norms = pair_norms(weight, found) * evaluation.value(enters)
            bounds = jnp.fmin(bounds, norms)
        together = pairs_together(self._skeleton, self._arrays(params), evaluation)
        if together is not None:
            bounds = jnp.fmin(bounds, together)
        return jnp.where(jnp.eye(classes, dtype=bool), 0.0, bounds)

    def change(
        self, params: ArrayTree, updates: ArrayTree, *, first_order: bool = False
    ) -> Float32[Array, ""]:
        """How far a step of the parameters moves the output at most.

        See `change_bound`.

        Args:
            params: the parameters.
            updates: what is added to them.
            first_order: only to first order in the step: no bound.
        """
        old, new, step = map(self._arrays, (params, _sum(params, updates), updates))
        rate = _or_infinite(self._step)
        names = symbols_of(rate)
        steps = [name for name in names if isinstance(name, StepNorm)]
        weights = [name for name in names if isinstance(name, WeightNorm)]
        found = live_norms([
            *((_slice(step[name.value], name.slice), name.norm) for name in steps),
            *((computed(name.value, old), name.norm) for name in weights),
            *((computed(name.value, new), name.norm) for name in weights),
        ])  # fmt: skip
        middle, last = len(steps), len(steps) + len(weights)
        ends = zip(found[middle:last], found[last:], strict=True)
        bound = rate_before if first_order else change_along
        return bound(
            rate,
            dict(zip(steps, found[:middle], strict=True)),
            dict(zip(weights, ends, strict=True)),
            [*self._used(old), *self._used(new)],
        )

    @functools.cached_property
    def _last(self) -> LastProduct | None:
        weights = Weights(self.network.norms, affine=False)
        return last_product(self.network.graph, weights.computable)

    def problem(self, kind: Literal["inputs", "step"]) -> str | None:
        """The step at which a change has no bound, and its line; `None` if it has one.

        Args:
            kind: of what a change is: `"inputs"`, or `"step"` of the parameters.
        """
        found = self._inputs if kind == "inputs" else self._step
        if isinstance(found, Unreadable):
            return str(found)
        if reference(found) == math.inf:
            return unbounded(self.network, kind)
        return None

    def explain(self, params: ArrayTree) -> str:
        """The factors from each input to the output, one line each."""
        if isinstance(self._inputs, Unreadable):
            return f"The inputs have no bound. {self._inputs}"
        evaluation = self._evaluation(params)
        lines = explained_inputs(self.network, evaluation.number)
        together = evaluation.number(self._skeleton.size)
        if together < evaluation.number(self._inputs):
            lines += f"\nlayers taken together: at most {together:.6g}"
        return lines

    @functools.cached_property
    def _inputs(self) -> Size | Unreadable:
        return _bounded(lambda: gain_of_inputs(self.network))

    @functools.cached_property
    def _skeleton(self) -> Skeleton:
        return Skeleton(self.network)

    @functools.cached_property
    def _least(self) -> Size:
        """The product of norms, or what layers do together."""
        if isinstance(self._inputs, Unreadable):
            return math.inf
        return least([self._inputs, self._skeleton.size])

    @functools.cached_property
    def _step(self) -> Size | Unreadable:
        return _bounded(lambda: gain_of_step(self.network))

    def _arrays(self, params: ArrayTree) -> dict[Value, Array]:
        """The parameters by their values in the graph."""
        leaves, _ = jax.tree.flatten(params)
        network = self.network
        if len(leaves) != len(network.paths):
            raise ValueError(
                f"The certificate was made for {len(network.paths)} parameters, got "
                f"{len(leaves)}: give a tree of the same structure."
            )
        pairs = zip(network.paths, network.leaves, leaves, strict=True)
        for path, value, leaf in pairs:
            if jnp.shape(leaf) != value.shape:
                raise ValueError(
                    f"{path}: the certificate was made for the shape {value.shape}, "
                    f"got {jnp.shape(leaf)}."
                )
        return dict(zip(network.leaves, map(jnp.asarray, leaves), strict=True))

    def _evaluation(self, params: ArrayTree) -> Evaluation:
        arrays = self._arrays(params)

        def norms_of(names: Sequence[WeightNorm | MapNorm]) -> list[Array]:
            weights = [name for name in names if isinstance(name, WeightNorm)]
            found = live_norms([(computed(x.value, arrays), x.norm) for x in weights])
            known: dict[Any, Array] = dict(zip(weights, found, strict=True))
            maps = [name for name in names if isinstance(name, MapNorm)]
            if maps:
                known.update(norms_of_maps(self._skeleton, maps, arrays))
            return [known[name] for name in names]

        return Evaluation(norms_of, self._used(arrays))

    def _used(self, arrays: dict[Value, Array]) -> list[Array]:
        """The parameters that the output depends on, those of them that are floats."""
        needed = self.network.needed
        return [x for value, x in arrays.items() if value in needed and value.is_float]


def _bounded(formula: Callable[[], Size]) -> Size | Unreadable:
    """A formula, or what stands in its way."""
    try:
        return formula()
    except Unreadable as error:
        return error
    except RecursionError:
        return Unreadable(TOO_DEEP)


def _or_infinite(found: Size | Unreadable) -> Size:
    return math.inf if isinstance(found, Unreadable) else found


def _sum(params: ArrayTree, updates: ArrayTree) -> ArrayTree:
    """The parameters after the step, in their dtypes."""
    return jax.tree.map(lambda p, u: p + u, params, updates)


def _slice(step: Array, place: int | None) -> Array:
    return step if place is None else step[place]


def certificate(
    function: Callable[..., Any] | Network,
    params: ArrayTree,
    *inputs: Any,
    output: str | None = None,
    floor: float = 0.0,
) -> Certificate:
    """Reads a function once, for bounds with any weights of its shapes.

    Args:
        function: pure function of the parameters and the inputs, or a `Network` that
            was read from one.
        params: pytree of arrays or `jax.ShapeDtypeStruct`s.
        *inputs: sets of inputs: `Box`, `L2Ball`, `RmsBall`; or arrays, which stand for
            all arrays of their shape. Integers are token indices, any in range.
        output: path of the output that counts; `None`: the first array of floats.
        floor: least RMS of what enters a norm layer, which the user vouches for; 0: the
            slope of a norm layer is 1/√ε.

    Returns:
        A `Certificate`.

    Raises:
        ValueError: for an output that does not exist.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from manifold_optax import modular
        >>> def mlp(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params = {"up": 2 * jnp.eye(4), "down": 3 * jnp.eye(4)}
        >>> proof = modular.certificate(mlp, params, jnp.ones((1, 4)))
        >>> print(f"{proof.lipschitz(params):.3f}")
        6.000

    Cost: that of `read`.
    """
    require_in_range("floor", floor, "[0, inf)")
    if isinstance(function, Network):
        function, output = function.function, None
    leaves, structure = jax.tree.flatten(inputs, is_leaf=is_domain)
    shapes = [shape_of(x) for x in leaves]
    abstract = jax.tree.map(shape_of, params)
    graph, paths, outputs = trace(function, abstract, *structure.unflatten(shapes))
    place = output_place(graph, outputs, output)
    known = tuple(map(known_input, leaves, shapes))
    graph = Graph(graph.inputs, (graph.outputs[place],))
    return Certificate(LiveNetwork(graph, paths, known, float(floor)))
