"""Programs follow the platform that they are lowered for, not the host that traces."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import manifold_optax as mo
from conformance.case import Case, Tree, Tx
from conformance.steps import gradients
from conformance.table import each_case

ACCELERATORS = ("cuda", "tpu")
MOST_PRODUCTS = 256
"""What the dearest row writes, with a certificate, is 223: roots of some 20 rows each.
One more step of its solver would write 41, and one more matrix all of them."""

Programs = Callable[..., dict[str, str]]


@pytest.fixture
def programs() -> Iterator[Programs]:
    """Texts of the programs of a function for each platform, of one trace."""
    # As in a process that was not told to use one platform only.
    before = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_platforms", "")

    def lowered(function: Callable[..., Any], *arguments: Any) -> dict[str, str]:
        traced = jax.jit(function).trace(*arguments)
        return {
            platform: traced.lower(lowering_platforms=(platform,)).as_text()
            for platform in ("cpu", *ACCELERATORS)
        }

    yield lowered
    jax.config.update("jax_platforms", before)


def step_of(tx: Tx, *shapes: tuple[int, ...], like: Tree = None) -> tuple[Any, ...]:
    """The update, and what it is traced for: shapes without numbers."""
    tree = like or {str(k): jnp.ones(shape) for k, shape in enumerate(shapes)}
    tree = jax.eval_shape(lambda: tree)
    return tx.update, tree, jax.eval_shape(tx.init, tree), tree


def calls(text: str) -> set[str]:
    """Functions outside the program that it calls: LAPACK's and their like."""
    return set(re.findall(r"custom_call @(\w+)", text))


def products(text: str) -> int:
    return text.count("dot_general")


@pytest.mark.promise(
    "Programs",
    "For a GPU and a TPU: products alone, no float64, loops not unrolled",
    on="every transformation",
)
@each_case(abstract=True)
def test_programs_for_accelerators(case: Case, programs: Programs) -> None:
    found = programs(*step_of(case.make(), like=gradients(case)))
    for platform in ACCELERATORS:
        text = found[platform]
        assert "f64" not in text, platform
        # No eigendecomposition, SVD, QR or Cholesky: nothing of that kind is a product.
        assert calls(text) == set(), platform
        assert products(text) <= MOST_PRODUCTS, platform


def test_a_cpu_keeps_its_own_arithmetic(programs: Programs) -> None:
    """Otherwise the test above would pass of programs that ask nobody."""
    found = programs(*step_of(mo.dual_ascent_spectral(), (8, 2)))
    assert "lapack_dsyevd_ffi" in calls(found["cpu"])
    assert "f64" in found["cpu"]


def test_float64_on_a_gpu_only_where_it_was_asked_for(programs: Programs) -> None:
    tx = mo.dual_ascent_spectral(backend="products64")
    found = programs(*step_of(tx, (8, 2)))
    assert "f64" in found["cuda"]
    assert calls(found["cuda"]) == set()


@pytest.mark.parametrize(
    "make",
    [
        lambda steps: mo.dual_ascent_spectral(steps=steps),
        lambda steps: mo.add_spectral_weight_decay(0.1, steps=steps),
    ],
    ids=["dual ascent", "power iteration"],
)
def test_steps_are_a_loop(make: Any, programs: Programs) -> None:
    counts = []
    for steps in (3, 9):
        found = programs(*step_of(make(steps), (8, 2)))
        counts.append([products(text) for text in found.values()])
    assert counts[0] == counts[1]


def test_matrices_of_one_shape_are_one_batch(programs: Programs) -> None:
    counts = []
    for number in (2, 7):
        found = programs(*step_of(mo.manifold_muon(0.1), *[(6, 4)] * number))
        counts.append([products(text) for text in found.values()])
    assert counts[0] == counts[1]


def test_one_export_for_all_platforms_runs_here(programs: Programs) -> None:
    tree = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((8, 2)), "f4")}
    tx = mo.normuon(0.1)
    state, update = tx.init(tree), jax.jit(tx.update)
    exported = export.export(update, platforms=("cpu", *ACCELERATORS))
    found = exported(tree, state, tree).call(tree, state, tree)
    jax.tree.map(np.testing.assert_array_equal, found, update(tree, state, tree))


def test_a_process_of_one_platform_traces_for_it_alone(programs: Programs) -> None:
    x = jnp.ones((4, 2))
    both = str(jax.make_jaxpr(mo.Sphere("kept").project)(x))
    jax.config.update("jax_platforms", "cpu")
    one = str(jax.make_jaxpr(lambda x: mo.Sphere("kept").project(x))(x))
    assert "platform_index" in both
    assert "platform_index" not in one


def test_the_override_is_for_what_is_traced_in_it(programs: Programs) -> None:
    x = jnp.ones((4, 2))
    text = {}
    for platform in ("cpu", "tpu"):
        with mo.programs.arithmetic_for(platform):
            project = jax.jit(lambda x: mo.Sphere("kept").project(x))
            text[platform] = project.lower(x).as_text()
    assert "f64" in text["cpu"]
    assert "f64" not in text["tpu"]


def test_an_unknown_platform_is_named() -> None:
    block = mo.programs.arithmetic_for("gpu")
    with pytest.raises(ValueError, match=r"platform must be one of .*'gpu'"), block:
        pass
