import dataclasses
import importlib
import importlib.metadata
import importlib.resources
import inspect
import pathlib
import re
import subprocess
import sys
import types

import optax
import pytest

import manifold_optax as mo

PACKAGES = [
    "manifold_optax",
    "manifold_optax.attention",
    "manifold_optax.diagnostics",
    "manifold_optax.geometry",
    "manifold_optax.initializers",
    "manifold_optax.linalg",
    "manifold_optax.matrices",
    "manifold_optax.modular",
    "manifold_optax.optimizers",
    "manifold_optax.programs",
    "manifold_optax.roles",
    "manifold_optax.sharding",
    "manifold_optax.states",
    "manifold_optax.transforms",
    "manifold_optax.trees",
]

# The tree of names is written step by step, while a graph is walked.
MADE_IN_STEPS = {"manifold_optax.modular": {"_Tree"}}

PRESETS = (
    "hyperball",
    "hyperspherical_descent",
    "manifold_muon",
    "muon",
    "normuon",
    "scion",
    "sign_descent",
    "spectral_sphere",
    "spel",
)


def public(module):
    """Names without an underscore that a module defines or re-exports."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


def order(name):
    """Constants, then classes, then the rest, as ruff sorts `__all__`."""
    bare = name.strip("_")
    kind = 0 if bare.isupper() and len(bare) > 1 else 1 if bare[0].isupper() else 2
    return kind, name.lower() if kind < 2 else name


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_sorted_importable_and_without_underscores(name):
    module = importlib.import_module(name)
    names = list(module.__all__)
    assert len(set(names)) == len(names)
    # The flat API stands in groups by purpose, each of them sorted by ruff.
    assert name == "manifold_optax" or names == sorted(names, key=order)
    assert all(hasattr(module, item) for item in names)
    assert not [n for n in names if n.startswith("_") and n != "__version__"]


@pytest.mark.parametrize(
    "name", [name for name in PACKAGES if not name.endswith(("sharding", "zers"))]
)
def test_all_is_complete(name):
    module = importlib.import_module(name)
    assert public(module) <= set(module.__all__)


@pytest.mark.parametrize("name", ["initializers", "sharding"])
def test_a_module_lists_what_it_defines(name):
    module = importlib.import_module(f"manifold_optax.{name}")
    own = {
        item
        for item in public(module)
        if getattr(getattr(module, item), "__module__", "") == module.__name__
    }
    assert own <= set(module.__all__)


@pytest.mark.parametrize("name", ["transforms", "optimizers"])
def test_the_flat_api_has_every_building_block_and_preset(name):
    floor = importlib.import_module(f"manifold_optax.{name}")
    # Constants and aliases of types are for those who write transformations.
    functions = {
        item for item in floor.__all__ if not item.isupper() and item != "ShapeRule"
    }
    assert functions <= set(mo.__all__)
    assert all(getattr(mo, item) is getattr(floor, item) for item in functions)


@pytest.mark.parametrize("name", mo.__all__)
def test_every_public_name_is_documented(name):
    item = getattr(mo, name)
    if isinstance(item, types.ModuleType | types.FunctionType | type):
        assert inspect.getdoc(item)


def test_the_version_is_that_of_the_package():
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", mo.__version__)
    assert importlib.metadata.version("manifold-optax") == mo.__version__


def test_the_types_are_published():
    assert (importlib.resources.files("manifold_optax") / "py.typed").is_file()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_the_learning_rate_and_then_keywords_of_one_vocabulary(name):
    preset = getattr(mo, name)
    first, *others = inspect.signature(preset).parameters.values()
    assert first.name == "learning_rate"
    assert first.default is inspect.Parameter.empty
    assert {parameter.kind for parameter in others} == {inspect.Parameter.KEYWORD_ONLY}
    shared = {"momentum", "nesterov", "weight_decay", "axes", "placement"}
    assert shared <= {parameter.name for parameter in others}


def test_manifolds_and_norms_are_static_and_no_schedules():
    for static in (mo.Euclidean(), mo.Sphere(2.0), mo.Stiefel("rms"), mo.Spectral()):
        # Optax would call a callable hyperparameter with the step count.
        assert not callable(static)
        assert hash(static) == hash(type(static)(**vars(static)))


def test_transformations_are_those_of_optax():
    for tx in (mo.muon(0.1), mo.momentum(0.9), mo.hybrid(mo.muon(0.1))):
        assert isinstance(tx, optax.GradientTransformationExtraArgs)


def test_the_library_imports_no_framework():
    program = (
        "import sys, manifold_optax; "
        "print(sorted({'flax', 'orbax', 'equinox', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES[1:])
def test_records_are_frozen(package):
    """Plans, manifolds and reports are keys of caches, and facts about a program."""
    records = {
        value
        for name, module in sys.modules.items()
        if name.startswith(f"{package}.")
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == name
        and dataclasses.is_dataclass(value)
    }
    # A frozen record with equality has a hash, an open one has none.
    open_ones = {r.__name__ for r in records if r.__hash__ is None}
    assert open_ones == MADE_IN_STEPS.get(package, set())


def test_the_citation_names_this_version():
    citation = pathlib.Path(__file__).parents[1] / "CITATION.cff"
    assert f"version: {mo.__version__}\n" in citation.read_text("utf-8")
