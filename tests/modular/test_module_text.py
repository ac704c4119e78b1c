import pytest

from manifold_optax.geometry import Stiefel
from manifold_optax.modular import Atom, Bond, Identity, Repeat
from manifold_optax.modular._algebra._text import draw, Entry
from modular.expressions import gpt, mlp

GPT = """\
module                                          manifold   norm         mass  sensitivity  after it   share
embed/embedding                                 Euclidean  RmsToRms        1            1         1  0.1429
12 ×
│  sum
│  ├─ × 0.9583                                                                     0.9583
│  └─ tuple
│     ├─ blocks/0…11/attention/value/kernel     Euclidean  RmsToRms  0.06944            1   0.01389  0.7143
│     └─ tuple
│        ├─ blocks/0…11/attention/query/kernel  Euclidean  RmsToRms  0.06944            1   0.01389  0.7143
│        └─ blocks/0…11/attention/key/kernel    Euclidean  RmsToRms  0.06944            1   0.01389  0.7143
│        query · key                                                                 1, 1
│        softmax                                                                        1
│     apply                                                                          1, 1
│     × 0.3333                                                                     0.3333
│     blocks/0…11/attention/out/kernel          Euclidean  RmsToRms  0.06944            1   0.04167  0.2381
│     × 0.04167                                                                   0.04167
│  sum
│  ├─ × 0.9583                                                                     0.9583
│  └─ blocks/0…11/mlp/up/kernel                 Euclidean  RmsToRms  0.06944            1   0.04167  0.2381
│     gelu / 1.1289                                                                     1
│     blocks/0…11/mlp/down/kernel               Euclidean  RmsToRms  0.06944            1   0.04167  0.2381
│     × 0.04167                                                                   0.04167
head/kernel                                     Euclidean  RmsToRms        1            1         1  0.1429
mass 7, sensitivity 1"""  # noqa: E501


def test_a_gpt_of_twelve_layers_is_one_drawing():
    text = str(gpt(12, scanned=False))
    assert text == GPT
    assert len(text.splitlines()) == 24


def test_a_scanned_stack_is_drawn_as_its_unrolled_one():
    scanned = str(gpt(12, scanned=True)).splitlines()
    unrolled = GPT.replace("blocks/0…11/", "blocks/").splitlines()
    assert list(map(str.split, scanned)) == list(map(str.split, unrolled))


def test_layers_that_differ_in_their_numbers_show_the_range():
    layers = Repeat(2 * Atom("w", mass=0.5), 3)
    line = str(layers).splitlines()[2]
    assert " ".join(line.split()) == (
        "│ w Euclidean RmsToRms 0.5 1 2 to 8 0.04167 to 0.1667"
    )


def test_few_layers_stand_one_by_one():
    paths = [line.split()[0] for line in str(mlp(2)).splitlines()]
    assert paths == ["module", "layers/0/kernel", "relu", "layers/1/kernel", "mass"]
    folded = str(mlp(5))
    assert "4 ×" in folded
    assert "│  layers/0…3/kernel" in folded
    assert "\nlayers/4/kernel" in folded


def test_numbers_in_names_of_bonds_do_not_fold():
    module = Atom("w")
    for slope in (1.0, 2.0, 3.0, 4.0):
        module = Bond(f"slope {slope:g}", (slope,)) @ module
    assert len(str(module).splitlines()) == 7


def test_paths_that_do_not_count_up_are_listed():
    module = Atom("3/w") @ Atom("12/w") @ Atom("7/w")
    assert "│  {7,12,3}/w " in str(module)


def test_what_has_no_share_says_so():
    module = Bond("step", (float("inf"),)) @ Atom("w", manifold=Stiefel("rms"))
    lines = str(module).splitlines()
    assert lines[1].split()[-2:] == ["inf", "none"]
    assert "Stiefel(scale='rms')" in lines[1]
    assert lines[-1] == "mass 1, sensitivity inf"
    frozen = str(Atom("w", mass=0.0)).splitlines()
    assert frozen[1].split()[-1] == "0"


def test_modules_without_atoms_have_no_columns_for_them():
    lines = str(0.5 * Identity() + Bond("tanh")).splitlines()
    assert lines[0].split() == ["module", "sensitivity"]
    assert lines[1:3] == ["sum", "├─ × 0.5          0.5"]
    assert lines[3:] == ["└─ tanh             1", "mass 0, sensitivity 1.5"]


@pytest.mark.parametrize("repeats", [3, 200])
def test_the_shortest_period_is_folded(repeats):
    kinds = [Entry("a"), Entry("a"), Entry("b")] * repeats
    assert draw(kinds, ("module",)).splitlines()[1:] == [
        f"{repeats} ×", "│  a", "│  a", "│  b"
    ]  # fmt: skip


def test_long_chains_without_a_period_are_drawn_quickly():
    kinds = [Entry(f"{index**2 % 1009}") for index in range(2000)]
    assert len(draw(kinds, ("module",)).splitlines()) == 2001
