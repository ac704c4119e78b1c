import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.geometry import RmsToRms, Stiefel
from manifold_optax.modular import (
    Atom,
    atoms,
    Bond,
    compose,
    Composition,
    Concat,
    factors,
    Identity,
    map_atoms,
    mass,
    Repeat,
    repeats,
    residual,
    sensitivities,
    sensitivity,
    shares,
    Sum,
    tare,
)
from modular.expressions import applied, gpt, mlp, pieces, random_module

# Products of at most a few hundred factors in float64, rounded each: below 1e-13.
EXACT = 1e-12
INF = math.inf


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=EXACT, atol=0)


def total(module):
    """Sum of share · sensitivity over atoms and slices."""
    after, each = sensitivities(module), shares(module)
    return math.fsum(
        a * b for path in after for a, b in zip(after[path], each[path], strict=True)
    )


def test_mlp_shares_its_rate_equally():
    assert shares(mlp(4)) == {f"layers/{i}/kernel": (0.25,) for i in range(4)}
    assert (mass(mlp(4)), sensitivity(mlp(4))) == (4, 1)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 6, 12])
def test_gpt_has_the_same_shares_at_every_depth(layers, scanned):
    module = gpt(layers, scanned=scanned)
    # By hand: embedding and head have 1/7 of the mass; each atom of a block has
    # 5/(7·6·layers), and after it 1/(2·layers), for query, key and value times 1/3.
    table = {"query": 5 / 7, "key": 5 / 7, "value": 5 / 7}
    table |= {"out": 5 / 21, "up": 5 / 21, "down": 5 / 21}
    table |= {"embed": 1 / 7, "head": 1 / 7}
    found = shares(module)
    assert len(found) == (8 if scanned else 2 + 6 * layers)
    for path, each in found.items():
        (name,) = set(path.split("/")) & set(table)
        assert len(each) == (layers if scanned and "blocks" in path else 1)
        close(each, table[name])
    close(mass(module), 7)
    close(sensitivity(module), 1)
    close(total(module), 1)


def test_scaled_and_added_maps():
    assert shares((2 * Atom("b")) @ Atom("a")) == {"a": (0.25,), "b": (0.25,)}
    both = Atom("a") + Atom("b")
    assert shares(both) == {"a": (0.5,), "b": (0.5,)}
    assert sensitivity(both) == 2
    assert sensitivity(-2 * Atom("a")) == 2
    assert sensitivity(residual(3 * Atom("a"), 0.75, -0.25)) == 1.5


def test_operands_of_a_bond_have_constants_of_their_own():
    module = (
        5 * Bond("product", (2.0, 3.0)) @ (Atom("a"), Atom("b") @ Bond("c", (7.0,)))
    )
    assert sensitivities(module) == {"a": (10.0,), "b": (15.0,)}
    assert sensitivity(module) == 5 * (2 + 3 * 7)
    # Alone it takes a tuple, whose size is the sum of the sizes.
    assert sensitivity(Bond("product", (2.0, 3.0))) == 3
    assert sensitivity(Atom("a") @ (Atom("b"), Identity())) == 2


@pytest.mark.parametrize("seed", range(30))
def test_sensitivities_are_those_of_the_network_applied_forwards(seed):
    module = random_module(np.random.default_rng(seed), depth=3)
    after = sensitivities(module)
    close(applied(module, 1.0, {}), sensitivity(module))
    for path, index in pieces(module):
        chain = factors(module, path, index)
        close(math.prod(f.sensitivity for f in chain), after[path][index])
        bump = [0.0] * len(after[path])
        bump[index] = 1.0
        change = applied(module, 0.0, {path: bump})
        close(change, after[path][index])
    close(total(module), 1)


def test_factors_name_what_comes_after_an_atom():
    def named(path, index=0):
        return [(f.module.label, f.sensitivity) for f in factors(module, path, index)]

    layer = Bond("pair", (2.0, 3.0)) @ (Atom("gate"), Bond("relu") @ Atom("up"))
    module = 5 * Repeat(layer, 3)
    # Each later layer multiplies by 2 + 3.
    assert named("up", 1) == [("relu", 1), ("pair", 3), ("1 ×", 5), ("× 5", 5)]
    assert named("gate", 2) == [("pair", 2), ("× 5", 5)]
    with pytest.raises(ValueError, match="no atom 'down'; its atoms are: 'gate', 'up'"):
        factors(module, "down")
    with pytest.raises(ValueError, match="'up' has 3 slices, got index 3"):
        factors(module, "up", 3)


def test_atoms_may_be_changed_by_a_rule():
    def rule(atom):
        own = dataclasses.replace(atom, mass=2.0)
        return {"tied": Bond("tied"), "own": own}.get(atom.path, atom)

    module = Repeat(Atom("own") + Atom("other"), 2) @ (Atom("tied"), Identity())
    changed = map_atoms(module, rule)
    assert {path: atom.mass for path, atom in atoms(changed).items()} == {
        "own": 2.0,
        "other": 1.0,
    }
    assert sensitivity(changed) == sensitivity(module)


def test_slices_of_nested_repeats_lie_as_their_leaf_does():
    inner = Repeat(2 * Atom("layers/kernel"), 3)
    module = Repeat(5 * inner, 2)
    assert repeats(module) == {"layers/kernel": (2, 3)}
    after = np.reshape(sensitivities(module)["layers/kernel"], (2, 3))
    # After each slice come its own factor 2, those of later slices, and the 5s.
    assert after.tolist() == [[40 * 40, 40 * 20, 40 * 10], [40, 20, 10]]


def test_tare_rescales_all_masses_by_one_factor():
    module = Repeat(Atom("a", mass=3.0), 2) @ Atom("b", mass=4.0)
    assert mass(module) == 10
    assert mass(tare(module, 5.0)) == 5
    found = atoms(tare(module, 5.0))
    assert (found["a"].mass, found["b"].mass) == (1.5, 2.0)
    assert mass(tare(module, relative=2.0)) == 20
    assert mass(module) == 10, "the module itself must not change"


def test_frozen_atoms_have_no_share():
    frozen = tare(Atom("a") @ Bond("step", (INF,)) @ Atom("b"), 0.0)
    module = Atom("head") @ frozen @ Atom("embedding", mass=0.0)
    expected = {"embedding": (0.0,), "b": (0.0,), "a": (0.0,), "head": (1.0,)}
    assert shares(module) == expected
    assert sensitivity(module) == INF
    assert shares(tare(module, relative=0.0))["head"] == (0.0,)


def test_modules_are_values(unhooked):
    module = gpt(2, scanned=True)
    assert module == gpt(2, scanned=True)
    assert hash(module) == hash(gpt(2, scanned=True))
    with pytest.raises(dataclasses.FrozenInstanceError):
        module.members = ()  # pyright: ignore[reportAttributeAccessIssue]
    numbers: Any = [1, 2]
    assert Bond("a", numbers).sensitivities == (1.0, 2.0)


def test_compositions_and_sums_are_flat():
    a, b, c = Atom("a"), Atom("b"), Atom("c")
    assert a @ (b @ c) == (a @ b) @ c == compose(c, b, a) == Composition((c, b, a))
    assert a + (b + c) == (a + b) + c == Sum((a, b, c))
    assert compose(a, Identity()) is a
    assert compose(Identity(), Identity()) == Identity()
    assert ((a, b), c) @ a == compose(a, Concat((Concat((a, b)), c)))


def test_a_thousand_layers_are_no_deep_recursion():
    module, sums = Atom("0"), Atom("0")
    for index in range(1, 1000):
        module = Atom(str(index)) @ module
        sums = sums + Atom(str(index))
    for each in (module, sums):
        close([share for (share,) in shares(each).values()], 1e-3)
        assert "999" in str(each)
        assert hash(each) == hash(each)


@pytest.mark.parametrize("two", [2, 2.0, np.float64(2), np.int32(2), jnp.float32(2)])
def test_factors_are_numbers_of_any_library(two):
    assert sensitivity(two * Atom("a")) == 2


def test_a_parameter_in_two_places_is_an_error():
    tied = Atom("table") @ (Atom("w") + Atom("table"))
    message = r"'table' stands in the module twice: as part 1, branch 2 of a sum, and "
    for function in (shares, sensitivities, atoms, repeats):
        with pytest.raises(ValueError, match=message + "as part 2"):
            function(tied)
    assert "table" in str(tied)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Atom("a") @ Bond("step", (INF,)) @ Atom("b"), r"after 'b' is inf.*'step'"),
        (
            Bond("cut", (0.0,)) @ Atom("b"),
            r"after 'b' is 0, because the constant of 'cut' is 0",
        ),
        (
            Bond("pair", (1.0, INF)) @ (Atom("a"), Atom("b")),
            r"after 'b' is inf.*'pair'",
        ),
        (
            Repeat(Bond("step", (INF,)) @ Atom("b"), 3) @ Atom("a", mass=0.0),
            r"after 'b' \(slice 0\) is inf, because 'step' has no finite",
        ),
        (Repeat(1e200 * Atom("b"), 3), r"'b' \(slice 0\).*constants overflows"),
        (Repeat(1e-200 * Atom("b"), 3), r"'b' \(slice 0\).*product underflows"),
    ],
)
def test_errors_name_what_leaves_no_step(module, message):
    with pytest.raises(ValueError, match=message):
        shares(module)
    assert "none" in str(module)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Atom(""), ValueError, "path of an Atom must not be empty"),
        (lambda: Atom(3), TypeError, "path of an Atom must be a string, got 3"),  # pyright: ignore[reportArgumentType]
        (lambda: Atom("w", role=""), ValueError, "role of the atom 'w'"),
        (lambda: Atom("w", axes="out_in"), TypeError, "axes must be named axes"),  # pyright: ignore[reportArgumentType]
        (lambda: Atom("w", manifold=Stiefel), TypeError, r"write Stiefel\(\.\.\.\)"),  # pyright: ignore[reportArgumentType]
        (lambda: Atom("w", norm=Stiefel()), TypeError, "norm of the atom 'w' must be"),  # pyright: ignore[reportArgumentType]
        (lambda: Atom("w", mass=-1), ValueError, r"mass of the atom 'w'.*\[0, inf\)"),
        (lambda: Atom("w", mass=INF), ValueError, "mass of the atom 'w'"),
        (lambda: Atom("w", mass="1"), TypeError, "mass of the atom 'w' must be a num"),  # pyright: ignore[reportArgumentType]
        (lambda: Atom("w", sensitivity=math.nan), ValueError, "sensitivity of the ato"),
        (lambda: Bond(""), ValueError, "name of a Bond must not be empty"),
        (lambda: Bond("b", 1.0), TypeError, "tuple of numbers, one per operand"),  # pyright: ignore[reportArgumentType]
        (lambda: Bond("b", ()), TypeError, "tuple of numbers, one per operand"),
        (lambda: Bond("b", (-1.0,)), ValueError, "sensitivity of the bond 'b'"),
        (lambda: Sum(()), ValueError, "Sum needs at least one module"),
        (lambda: Concat(Atom("w")), TypeError, "Concat needs a tuple of modules"),  # pyright: ignore[reportArgumentType]
        (lambda: Atom("w") @ 3, TypeError, "Modules combine with modules.*got 3"),
        (lambda: Atom("w") + "w", TypeError, "Modules combine with modules"),
        (lambda: 0 * Atom("w"), ValueError, r"0 \* 'w' would cut its atoms off"),
        (lambda: INF * Atom("w"), ValueError, "factor of a module"),
        (lambda: residual(Atom("w"), 1, 0), ValueError, r"0 \* 'w'"),
        (lambda: Repeat(Atom("w"), 0), ValueError, "at least 1, got 0"),
        (lambda: Repeat(Atom("w"), 2.0), TypeError, "must be an int, got 2.0"),  # pyright: ignore[reportArgumentType]
        (lambda: tare(Atom("w")), TypeError, "either the new mass"),
        (lambda: tare(Atom("w"), 1, relative=1), TypeError, "either the new mass"),
        (lambda: tare(Atom("w"), -1), ValueError, "The mass must be in"),
        (lambda: tare(Bond("b"), 1), ValueError, "'b' has mass 0 and no atom"),
        (lambda: Bond("p", (1, 1)) @ Atom("w"), ValueError, "'w' before it does not"),
        (
            lambda: Bond("p", (1, 1, 1)) @ (Atom("w"), Atom("v")),
            ValueError,
            "'p' takes 3 operands, but 'tuple'",
        ),
        (
            lambda: sensitivity(Bond("p", (1, 1)) @ Repeat(Atom("w"), 2)),
            ValueError,
            "takes 2 operands, but '2 ×' before it",
        ),
        (
            lambda: sensitivity(
                compose((Bond("p", (1, 1)), Atom("w")), Bond("q", (1, 1)))
                + Bond("r", (1, 1, 1))
            ),
            ValueError,
            "Members of a sum take 2 and 3 operands",
        ),
        (
            lambda: jax.jit(lambda x: sensitivity(x * Identity()))(2.0),
            TypeError,
            "known before anything is traced",
        ),
    ],
)
def test_arguments_are_checked(unhooked, make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_atom_keeps_what_it_is_given(unhooked):
    atom = Atom("w", mass=2)
    assert atom == Atom("w", "matrix", None, atom.manifold, RmsToRms(), 2.0, 1.0)
    assert isinstance(atom.mass, float)
