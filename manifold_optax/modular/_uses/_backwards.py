"""Follows values backwards through a graph: which of them reach what."""

from collections.abc import Iterable, Sequence

from manifold_optax.modular._computation._graph import Graph, Operation, Value


class Backwards:
    """Follows values backwards from the outputs of a graph.

    Attributes:
        sources: operations whose operands are followed, too.
        stops: names of operations that are not passed.
        found: operations that have a result that is followed.
    """

    def __init__(self, sources: set[Operation], stops: frozenset[str] = frozenset()):
        self.sources = sources
        self.stops = stops
        self.found: set[Operation] = set()

    def run(self, graph: Graph, outputs: Sequence[bool]) -> list[bool]:
        """Which inputs are followed, if these outputs are."""
        known: dict[Value, bool] = {}

        def note(values: Iterable[Value], followed: Iterable[bool]) -> None:
            for value, one in zip(values, followed, strict=True):
                known[value] = known.get(value, False) or one

        note(graph.outputs, outputs)
        for operation in reversed(graph.operations()):
            results = [known.get(value, False) for value in operation.results]
            if any(results):
                self.found.add(operation)
            if operation.bodies:
                note(operation.operands, self._through(operation, results))
            elif operation.name not in self.stops:
                every = any(results) or operation in self.sources
                note(operation.operands, [every] * len(operation.operands))
        return [known.get(value, False) for value in graph.inputs]

    def _through(self, operation: Operation, results: list[bool]) -> list[bool]:
        """Which operands of a loop or of a branch are followed."""
        params, body = operation.params, operation.bodies[-1]
        if operation.name == "cond":
            every = [self.run(branch, results) for branch in operation.bodies]
            return [False, *map(any, zip(*every, strict=True))]
        if operation.name == "scan":
            first, count, tests = params["num_consts"], params["num_carry"], 0
        elif operation.name == "while":
            first, tests = params["body_nconsts"], params["cond_nconsts"]
            count = len(results)
        else:
            return self.run(body, results)
        while True:
            inputs = self.run(body, results)
            carried = inputs[first : first + count]
            new = [a or b for a, b in zip(results, carried, strict=False)]
            new += results[count:]
            if new == results:
                return [False] * tests + inputs
            results = new
