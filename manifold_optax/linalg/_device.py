"""Which platform a computation is for: chosen once, at its outside.

What is fast and what is exact differs: a CPU has fast eigendecompositions and float64,
an accelerator has fast batched products, and a TPU has no float64 worth the name. The
choice follows the platform for which a program is lowered, not the machine on which it
was traced: a function that needs it runs inside `by_platform`, and asks `on_cpu`.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import Mesh

from manifold_optax._checks import require_one_of
from manifold_optax._versions import trace_context

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""Platforms by the names that `jax.export` and `jax.lax.platform_dependent` use."""

_ANY_ACCELERATOR = "accelerator"
"""Every platform but a CPU: they share one arithmetic."""

_chosen = trace_context("platform")


def by_platform(function: Callable[..., Any], *arguments: Any, mesh: Any = None) -> Any:
    """Returns `function(*arguments)` in the arithmetic of the platform it will run on.

    Inside a computation whose platform is chosen it is a plain call. Otherwise the
    platform is that of the devices, where these are known: those of `mesh`, or those
    of the arrays outside `jit`. Where they are not, `function` is traced for a CPU and
    for accelerators, and the lowering to a platform keeps one of the two.

    Args:
        function: of trees of arrays. It may ask `on_cpu`, but not later, for example in
            a rule for its gradient: a rule is traced after the choice.
        *arguments: trees of arrays.
        mesh: the mesh on which `function` runs, if it is known.
    """
    platform = _chosen.value or _platform_of_mesh(mesh) or _only_platform()
    if platform is not None:
        with _chosen(platform):
            return function(*arguments)
    return jax.lax.platform_dependent(
        *arguments,
        cpu=functools.partial(_call, function, "cpu"),
        default=functools.partial(_call, function, _ANY_ACCELERATOR),
    )


def chosen_by_platform(
    cpu: Callable[..., Any], elsewhere: Callable[..., Any]
) -> Callable[..., Any]:
    """Returns the function of arrays that is `cpu` on a CPU, and `elsewhere` elsewhere.

    Args:
        cpu: of trees of arrays.
        elsewhere: another way to the same results.
    """

    def chosen(*arguments: Any) -> Any:
        return (cpu if on_cpu() else elsewhere)(*arguments)

    return functools.partial(by_platform, chosen)


def on_cpu() -> bool:
    """Returns whether the computation is for a CPU; for use inside `by_platform`."""
    assert _chosen.value is not None, "on_cpu() was called outside by_platform"
    return _chosen.value == "cpu"


@contextmanager
def arithmetic_for(platform: str) -> Iterator[None]:
    """Sets the platform for whose arithmetic programs are traced in a `with` block.

    The functions of this library choose between two arithmetics: eigendecompositions,
    float64 and one matrix at a time on a CPU; products, compensated float32 and
    batches of matrices on accelerators. By default the choice follows the platform for
    which a program is lowered, so that nothing has to be set. The block is for a
    comparison of the two on one machine, for a mesh of placeholder devices, and for an
    export from a process that was started for one platform alone
    (`JAX_PLATFORMS=cpu`), which traces for that one only.

    Args:
        platform: `"cpu"`, `"cuda"`, `"rocm"` or `"tpu"`.

    Raises:
        ValueError: for another name.

    What is jitted in the block is traced for it. Before JAX 0.8 a function that was
    traced outside the block keeps the arithmetic that it has: jit a new one.

    Example:
        >>> x = jnp.ones((4, 3))
        >>> with arithmetic_for("tpu"):
        ...     text = jax.jit(mo.Sphere("kept").project).lower(x).as_text()
        >>> "f64" in text
        False
    """
    require_one_of("platform", platform, PLATFORMS)
    with _chosen(platform):
        yield


def _call(function: Callable[..., Any], platform: str, *arguments: Any) -> Any:
    with _chosen(_platform_of_arrays(arguments) or platform):
        return function(*arguments)


def _platform_of_mesh(mesh: Any) -> str | None:
    return _named(mesh.devices.flat[0].platform) if isinstance(mesh, Mesh) else None


def _platform_of_arrays(arguments: Any) -> str | None:
    """The platform of the first array that lies on devices: of none under `jit`."""
    for leaf in jax.tree.leaves(arguments):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            return _named(next(iter(leaf.devices())).platform)
    return None


def _only_platform() -> str | None:
    """The platform that the process was told to use, if it is a single one."""
    given = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    return _named(given) if given and "," not in given else None


def _named(platform: str) -> str:
    return "cpu" if platform == "cpu" else _ANY_ACCELERATOR
