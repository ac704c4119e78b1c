"""What can be asked of a manifold and a norm: its direction, and what that needs."""

from collections.abc import Callable, Sequence

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._certified import CertifiedDirection
from manifold_optax.geometry._manifold import Manifold
from manifold_optax.geometry._norm import Norm
from manifold_optax.geometry._pairs import Pair, PAIRS, Request

_COLUMNS = ("manifold", "norm", "direction", "certified", "optimizer")


def steepest_direction(manifold: Manifold, norm: Norm) -> Callable[..., Matrix]:
    """Steepest unit tangent direction as a function of point and gradient.

    On a set with a boundary (Ball, Band) a direction is allowed if its negative, along
    which the step goes, does not lead out.

    Args:
        manifold: the constraint. Its size is left to the caller: the function returned
            is for the unit manifold.
        norm: the norm in which the direction has length 1.

    Returns:
        `(point, gradient, axis_name=None) -> direction` for one matrix `[m, n]` in at
        least float32: `m ≥ n` where manifold and norm are `transposable`, else
        `fan_out × fan_in`. The inner product with the gradient is ≥ 0. A gradient
        without a tangent part gives zero. Not differentiable in reverse mode where the
        direction is searched for (JAX names the `while_loop` that is in the way).

    Raises:
        TypeError: if `manifold` or `norm` is a class, a string or another object.
        ValueError: for a pair that is not in the table; the message prints the table.

    Example:
        >>> direction = steepest_direction(Euclidean(), Max())
        >>> direction(jnp.zeros((2, 1)), jnp.array([[0.5], [-2.0]]))
        Array([[ 1.],
               [-1.]], dtype=float32)

    Source: the table of J. Bernstein, "Modular Manifolds", Thinking Machines Lab
    (2025), extended.
    """
    pair = _pair_of(manifold, norm)

    def direction(
        point: Matrix, gradient: Matrix, axis_name: AxisName = None
    ) -> Matrix:
        request = Request(axis_name=axis_name)
        found = pair.solve(manifold, norm, point, gradient, request)
        return found.direction if isinstance(found, CertifiedDirection) else found

    return direction


def certified_direction(
    manifold: Manifold, norm: Norm, *, tolerance: float | None = None
) -> Callable[..., CertifiedDirection]:
    """The steepest direction together with a bound on what it loses.

    Args:
        manifold: the constraint, as for `steepest_direction`.
        norm: the norm in which the direction has length 1.
        tolerance: relative duality gap at which the solver stops, > 0; `None`: after a
            fixed number of steps. Only `Stiefel` has a solver that stops. It takes at
            most 64 steps, and the gap returned shows whether the tolerance was met.

    Returns:
        `(point, gradient, axis_name=None) -> CertifiedDirection` for one matrix, as for
        `steepest_direction`. `gap` is a number in at least float32; `tangency` is one
        on `Stiefel` and `None` elsewhere.

    Raises:
        TypeError: if `manifold` or `norm` is a class, a string or another object.
        ValueError: for a pair without a certificate (the message lists those with one),
            or a tolerance for a solver that takes a fixed number of steps.

    Example:
        >>> direction = certified_direction(Sphere(), Spectral())
        >>> gradient = jnp.array([[5.0, 1.0], [2.0, 5.0]])
        >>> bool(direction(jnp.eye(2), gradient).gap < 1e-3)
        True

    Cost: that of the direction; on `Stiefel` two more eigendecompositions of the short
    side.
    """
    pair = _pair_of(manifold, norm)
    if not pair.certified:
        raise ValueError(
            f"The direction of {manifold} with {norm} has no certificate. These pairs "
            f"have one:\n{_table([p for p in PAIRS if p.certified])}"
        )
    if tolerance is not None and not pair.stops:
        known = ", ".join(dict.fromkeys(_words(p)[0] for p in PAIRS if p.stops))
        raise ValueError(
            f"tolerance={tolerance!r} cannot be honoured for {manifold} with {norm}: "
            "its solver takes a fixed number of steps. Leave tolerance out and read "
            f"the gap. Solvers that stop at a tolerance: {known.replace('`', '')}."
        )

    def direction(
        point: Matrix, gradient: Matrix, axis_name: AxisName = None
    ) -> CertifiedDirection:
        request = Request(True, tolerance, axis_name)
        found = pair.solve(manifold, norm, point, gradient, request)
        assert isinstance(found, CertifiedDirection)
        return found

    return direction


def has_certificate(manifold: Manifold, norm: Norm) -> bool:
    """Whether `certified_direction` exists for a pair.

    Example:
        >>> has_certificate(Sphere(), Spectral())
        True
    """
    return _pair_of(manifold, norm).certified


def needs_whole(manifold: Manifold, norm: Norm) -> bool:
    """Whether the direction of a pair needs matrices that are not split.

    Most directions that are searched for sum over the long side at every trial: for a
    split matrix each would cost messages.

    Example:
        >>> needs_whole(Sphere(), Spectral()), needs_whole(Stiefel(), Spectral())
        (True, False)
    """
    return _pair_of(manifold, norm).whole


def pair_table(*, markdown: bool = False) -> str:
    """Returns the table of all pairs, a line each.

    Args:
        markdown: whether as a Markdown table, else in columns of plain text.

    Example:
        >>> print(pair_table(markdown=True).splitlines()[0])
        | manifold | norm | direction | certified | optimizer |
    """
    if not markdown:
        return _table(PAIRS)
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_words, PAIRS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _pair_of(manifold: Manifold, norm: Norm) -> Pair:
    _check_kind("manifold", manifold, Manifold, "Stiefel")
    _check_kind("norm", norm, Norm, "Spectral")
    for pair in PAIRS:
        if pair.fits(manifold, norm):
            return pair
    raise ValueError(
        f"No direction is known for {manifold} with {norm}. The known pairs "
        f"are:\n{pair_table()}"
    )


def _check_kind(name: str, value: object, kind: type, example: str) -> None:
    """Raises TypeError unless `value` is of the class `kind`."""
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        raise TypeError(
            f"{name} must be a {kind.__name__} object, got the class "
            f"{value.__name__}: write {value.__name__}()."
        )
    raise TypeError(
        f"{name} must be a {kind.__name__} object, e.g. mo.{example}(), got {value!r}."
    )


def _words(pair: Pair) -> tuple[str, ...]:
    """The cells of a row, with names of code in backticks."""
    names = [
        ", ".join(f"`{kind.__name__}`" for kind in kinds)
        for kinds in (pair.manifolds, pair.norms)
    ]
    manifold, norm = (own or name for own, name in zip(pair.words, names, strict=True))
    certified = "yes" if pair.certified else ""
    return manifold, norm, pair.direction, certified, pair.optimizer


def _table(pairs: Sequence[Pair]) -> str:
    """Rows in columns of plain text."""
    lines = [_COLUMNS, *map(_words, pairs)]
    plain = [[cell.replace("`", "") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in plain
    )
