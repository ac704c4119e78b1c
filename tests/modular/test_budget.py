"""Shares of one learning rate, and the table that shows them."""

import math
from typing import Any

import jax.numpy as jnp
import pytest

import manifold_optax as mo
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._budgets._budget import Budget, budget
from modular.handmade import Handmade, handmade

# Shares are quotients of a few float64 numbers: some rounding units of 1e-16.
ROUNDING = 1e-14


def of_atoms(atoms: Any, sensitivities: Any = None, **facts: Any) -> Handmade:
    params = {atom.path: jnp.zeros((2, 2)) for atom in atoms}
    return handmade(params, atoms, sensitivities, **facts)


def gpt(depth: int) -> Handmade:
    """The network of modula: attention and MLP, mixed by 1/(2·depth)."""
    mixed = 1 / (2 * depth)
    # After a block the residual stream has the sensitivity 1. W_o and the MLP's last
    # matrix see the mix alone; Q, K and V also the factor 1/3 of attention.
    after = {"query": 1 / 3, "key": 1 / 3, "value": 1 / 3, "out": 1.0}
    after |= {"up": 1.0, "down": 1.0}
    layers = {
        f"{i}/{name}": s * mixed for i in range(depth) for name, s in after.items()
    }
    paths = {"embed": 1.0, **layers, "head": 1.0}
    return of_atoms([Atom(path) for path in paths], paths)


def total(found: Budget) -> float:
    """Sum of share × sensitivity over all parameters and slices."""
    return math.fsum(
        share * number
        for path in found.shares
        for share, number in zip(
            found.shares[path], found.sensitivities[path], strict=True
        )
    )


def test_a_chain_shares_equally() -> None:
    atoms = [Atom(f"w{i}") for i in range(4)]
    assert budget(of_atoms(atoms)).shares == {f"w{i}": (0.25,) for i in range(4)}


@pytest.mark.parametrize("depth", [1, 2, 6, 12])
def test_shares_of_modulas_gpt(depth: int) -> None:
    """Source of the numbers: `modula` (T. Large et al.), six digits."""
    # All six matrices of a layer weigh the same, and all blocks together 5.
    found = budget(gpt(depth), tare={r"\d+": 5.0})
    part = 5 / 7 / (6 * depth)
    mixed = 1 / (2 * depth)
    assert found.share("embed")[0] == pytest.approx(1 / 7, rel=ROUNDING)
    assert found.share("head")[0] == pytest.approx(0.142857, abs=5e-7)
    for name, number in {"query": 0.714286, "out": 0.238095, "down": 0.238095}.items():
        share = found.share(f"0/{name}")[0]
        assert share == pytest.approx(number, abs=5e-7)  # six digits are published
    assert found.share("0/query")[0] == pytest.approx(3 * part / mixed, rel=ROUNDING)
    assert total(found) == pytest.approx(1, rel=ROUNDING)
    assert math.fsum(found.masses.values()) == pytest.approx(7, rel=ROUNDING)


def test_twice_a_layer_of_a_layer_and_the_sum_of_two() -> None:
    twice = of_atoms([Atom("a"), Atom("b")], {"a": 2.0, "b": 2.0})
    assert budget(twice).shares == {"a": (0.25,), "b": (0.25,)}
    assert budget(of_atoms([Atom("a"), Atom("b")])).shares == {"a": (0.5,), "b": (0.5,)}


def test_a_stack_counts_like_its_layers_written_out() -> None:
    numbers = [3.0, 2.0, 1.0]
    scanned = of_atoms([Atom("layers"), Atom("head")], {"layers": numbers})
    written = {f"{i}": number for i, number in enumerate(numbers)} | {"head": 1.0}
    flat = budget(of_atoms([Atom(path) for path in written], written))
    found = budget(scanned)
    assert found.share("layers") == tuple(flat.share(f"{i}")[0] for i in range(3))
    assert found.share("head") == flat.share("head")
    assert found.masses == {"layers": 3.0, "head": 1.0}
    assert total(found) == pytest.approx(1, rel=ROUNDING)


def test_vectors_have_a_share_when_asked_for() -> None:
    atoms = [Atom("w"), Atom("b", "vector", norm=mo.Max()), Atom("x", "other")]
    module = of_atoms(atoms)
    assert budget(module).shares == {"w": (1.0,)}
    assert budget(module, vectors=True).shares == {"w": (0.5,), "b": (0.5,)}


def test_masses_by_label_and_pattern() -> None:
    atoms = [Atom("embed", "embedding"), Atom("up"), Atom("down"), Atom("head")]
    masses = {"embedding": 0.5, "head": None, "up": 0.0}
    found = budget(of_atoms(atoms), masses=masses)
    assert found.masses == {"embed": 0.5, "up": 0.0, "down": 1.0}
    shares = {path: share for path, (share,) in found.shares.items()}
    wanted = {"embed": 1 / 3, "up": 0.0, "down": 2 / 3}
    assert shares == pytest.approx(wanted, rel=ROUNDING)
    assert total(found) == pytest.approx(1, rel=ROUNDING)


def test_a_group_has_its_mass_together() -> None:
    atoms = [Atom("blocks/a"), Atom("blocks/b", mass=3.0), Atom("head")]
    module = of_atoms(atoms, {"blocks/a": [1.0, 1.0]})
    found = budget(module, tare={"blocks": 5.0})
    assert found.masses == {"blocks/a": 2.0, "blocks/b": 3.0, "head": 1.0}
    assert budget(module, tare={"blocks/a": 1.0, "blocks": 3.0}).masses == {
        "blocks/a": 1.0,
        "blocks/b": 3.0,
        "head": 1.0,
    }


def test_derived_sensitivities() -> None:
    module = of_atoms([Atom("a"), Atom("b")], derived={"a": (4.0,), "b": (1.0,)})
    found = budget(module, sensitivity="derived")
    assert found.shares == {"a": (0.125,), "b": (0.5,)}
    assert found.kind == "derived"


@pytest.mark.parametrize(("number", "word"), [(0.0, "is 0"), (math.inf, "not finite")])
def test_sensitivities_without_a_share(number: float, word: str) -> None:
    module = of_atoms([Atom("up"), Atom("down")], {"up": [1.0, number]})
    with pytest.raises(ValueError, match=rf"{word}: \['up'\].*masses="):
        budget(module)
    assert budget(module, masses={"up": None}).shares == {"down": (1.0,)}
    frozen = budget(module, masses={"up": 0.0})
    assert frozen.shares == {"up": (0.0, 0.0), "down": (1.0,)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sensitivity": "worst"}, ValueError, "sensitivity must be one of"),
        ({"vectors": 1}, TypeError, "vectors"),
        ({"masses": {"uq": 1.0}}, ValueError, r"keys \['uq'\] of masses.*up, down"),
        ({"masses": {"up": -1.0}}, ValueError, "mass of 'up' in masses"),
        ({"masses": {"up": "1"}}, TypeError, "mass of 'up' in masses"),
        ({"masses": ["up"]}, TypeError, "masses must be a dict"),
        ({"masses": {"matrix": 0.0}}, ValueError, "mass 0"),
        ({"masses": {"matrix": None}}, ValueError, "No parameter has a share"),
        ({"tare": {"(": 1.0}}, ValueError, "regular expression"),
        ({"tare": {"up": 0.0}}, ValueError, "mass of 'up' in tare"),
        ({"tare": {"matrix": 1.0, "up": 1.0}}, ValueError, r"keys \['up'\] of tare"),
    ],
)
def test_wrong_arguments(
    arguments: Any, error: Any, message: str, unhooked: None
) -> None:
    with pytest.raises(error, match=message):
        budget(of_atoms([Atom("up"), Atom("down")]), **arguments)


@pytest.mark.parametrize("module", [None, "module", mo.roles(), Handmade])
def test_a_module_must_have_been_read(module: Any, unhooked: None) -> None:
    with pytest.raises(TypeError, match=r"module must be what mo\.modular\.read"):
        budget(module)


def test_an_unknown_path_lists_the_known() -> None:
    with pytest.raises(KeyError, match="'bias' has no share"):
        budget(of_atoms([Atom("up")])).share("bias")


def test_the_table() -> None:
    atoms = [
        Atom("embed", "embedding", norm=mo.RowRms()),
        Atom("layers", manifold=mo.Stiefel("rms")),
        Atom("head", "readout"),
    ]
    module = of_atoms(atoms, {"layers": [2.0, 1.0]})
    lines = str(budget(module)).splitlines()
    assert lines[0] == "nominal budget"
    assert lines[1].split() == [
        "path", "role", "manifold", "norm", "mass", "sensitivity", "share"
    ]  # fmt: skip
    assert lines[2].split()[-3:] == ["1", "1", "0.25"]
    assert lines[3].endswith("2     2 × 1 … 2    2 × 0.125 … 0.25")
    assert len({line.index("RmsToRms") for line in lines[3:]}) == 1
    equal = str(budget(of_atoms(atoms, {"layers": [1.0, 1.0]})))
    assert "2 × 0.25" in equal
    assert "…" not in equal
