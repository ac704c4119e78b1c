import math

import numpy as np
import pytest

from experiments.harness.quadratic import Result, Settings
from manifold_optax.experiments.harness import Cell, Metric
from manifold_optax.experiments.harness.protocol import (
    compare,
    pooled_deviation,
    threshold_factor,
)
from manifold_optax.experiments.harness.protocol_report import (
    describe_budgets,
    describe_comparisons,
    describe_edges,
)


def _last(result: Result):
    return result.distance[-1]


LOSS = Metric("loss", _last, lower_is_better=True)
ACCURACY = Metric("accuracy", _last, digits=1)


def _cell(optimizer, rate, numbers, condition=""):
    results = tuple(
        Result(Settings(optimizer, rate, seed, 1, 1, condition), (number,), 0.0)
        for seed, number in enumerate(numbers)
    )
    return Cell(optimizer, rate, results, condition)


def test_a_comparison_by_hand():
    groups = {"a": (1.0, 2.0, 3.0), "b": (2.0, 4.0, 6.0), "c": (10.0, 12.0)}
    # The variances are 1, 4 and 2, their mean 7/3; 2 + 2 + 1 degrees of freedom. The
    # quantile 0.995 of Student's distribution with 5 is 4.032 in printed tables.
    deviation = math.sqrt(7 / 3)
    pairs = {(pair.first, pair.second): pair for pair in compare(groups)}
    assert list(pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair in pairs.values():
        # A few roundings of float64.
        assert pair.deviation == pytest.approx(deviation, rel=1e-14)
        # The table has four digits.
        assert pair.threshold == pytest.approx(4.032 * deviation, rel=2e-4)
    assert pairs["a", "b"].difference == -2.0
    assert pairs["a", "b"].statistic == pytest.approx(2 / math.sqrt(2 / 3), rel=1e-14)
    assert pairs["b", "c"].statistic == pytest.approx(7 / math.sqrt(5 / 6), rel=1e-14)
    # 2.45 and 7.67 against 6.16, and 9.86 for a and c.
    assert [pair.differs for pair in pairs.values()] == [False, True, True]


def test_the_pooled_deviation_averages_variances():
    assert pooled_deviation([(1.0, 3.0), (5.0, 5.0)]) == 1.0


@pytest.mark.parametrize(
    ("freedom", "factor"), [(2, 9.925), (8, 3.355), (13, 3.012), (14, 3.0), (100, 3.0)]
)
def test_the_threshold_rises_where_the_deviation_is_known_from_few_runs(
    freedom, factor
):
    # Student's quantile 0.995 as printed in tables: three digits behind the point.
    assert threshold_factor(freedom) == pytest.approx(factor, abs=6e-4)


def test_equal_numbers_do_not_differ():
    [pair] = compare({"a": (1.0, 1.0), "b": (1.0, 1.0)})
    assert not pair.differs
    assert compare({"a": (1.0, 2.0)}) == []


def test_one_seed_is_refused():
    with pytest.raises(ValueError, match="at least 2 seeds per group, got 1 of b"):
        compare({"a": (1.0, 2.0), "b": (1.0,)})


@pytest.mark.promise(
    "Experiments",
    "Chance alone calls a pair of optimizers different in at most 1.5 percent",
    on="protocol",
)
@pytest.mark.slow
@pytest.mark.parametrize(("rows", "seeds"), [(2, 3), (4, 3), (5, 5)])
def test_chance_exceeds_the_threshold_in_at_most_one_percent(rows, seeds, measured):
    generator = np.random.default_rng(0)
    draws = 4000
    exceeded = np.zeros(rows * (rows - 1) // 2)
    for _ in range(draws):
        numbers = generator.standard_normal((rows, seeds)).tolist()
        pairs = compare({str(row): own for row, own in enumerate(numbers)})
        exceeded += [pair.differs for pair in pairs]
    # Each pair is a binomial of 1 % at most: three deviations of 4000 draws are 0.5 %.
    measured(exceeded.max() / draws, at_most=0.015)
    if (rows, seeds) == (5, 5):
        # 20 degrees of freedom and 3 σ: 0.7 %, by Student's distribution.
        assert exceeded.mean() / draws < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "difference", "power"), [(3, 3.0, 0.63), (3, 4.0, 0.90), (5, 3.0, 0.94)]
)
def test_the_power_is_what_the_documentation_states(seeds, difference, power):
    generator = np.random.default_rng(0)
    draws = 4000
    found = 0
    for _ in range(draws):
        numbers = generator.standard_normal((4, seeds))
        numbers[0] += difference
        groups = {str(row): own for row, own in enumerate(numbers.tolist())}
        found += compare(groups)[0].differs
    # Three deviations of a binomial of 4000 draws are at most 0.023; the digits that
    # are stated add 0.005.
    assert found / draws == pytest.approx(power, abs=0.028)


def test_equal_budgets_are_stated_once():
    cells = [_cell(name, rate, (1.0, 2.0)) for name in "ab" for rate in (0.1, 0.2)]
    [sentence] = describe_budgets(cells, LOSS)
    assert sentence == (
        "Equal tuning budgets: 2 learning rates and 4 runs for every optimizer. The "
        "best rate is chosen by loss. No run is stopped early."
    )


def test_unequal_budgets_name_who_had_more():
    cells = [_cell("a", 0.1, (1.0,)), _cell("a", 0.2, (1.0,)), _cell("b", 0.1, (1.0,))]
    [sentence] = describe_budgets(cells, LOSS)
    assert sentence.startswith(
        "Unequal tuning budgets: a 2 rates and 2 runs; b 1 rate and 1 run. Most had a."
    )


def test_budgets_that_depend_on_the_condition_are_stated_in_each():
    cells = [_cell(name, 0.1, (1.0,), "narrow") for name in "ab"]
    cells += [_cell(name, 0.1, (1.0, 2.0), "wide") for name in "ab"]
    [sentence] = describe_budgets(cells, LOSS)
    assert "In narrow: Equal tuning budgets: 1 learning rate and 1 run for" in sentence
    assert "In wide: Equal tuning budgets: 1 learning rate and 2 runs for" in sentence


def test_a_best_rate_at_an_end_of_its_grid_is_a_warning():
    grids = {"low": (1.0, 2.0, 3.0), "mid": (2.0, 1.0, 3.0), "high": (3.0, 2.0, 1.0)}
    cells = [
        _cell(name, rate, (loss,))
        for name, losses in grids.items()
        for rate, loss in zip((0.1, 0.2, 0.4), losses, strict=True)
    ]
    cells.append(_cell("one", 0.1, (1.0,)))
    warnings = [line for line in describe_edges(cells, LOSS) if line]
    assert warnings == [
        "Warning: the learning rate of low, 0.1, is the smallest that was tried, so "
        "that a smaller may be better.",
        "Warning: the learning rate of high, 0.4, is the largest that was tried, so "
        "that a larger may be better.",
        "Warning: the learning rate of one, 0.1, is the only one that was tried.",
    ]


@pytest.mark.parametrize("metric", [LOSS, ACCURACY])
def test_each_pair_has_a_verdict(metric):
    cells = [
        _cell("a", 0.1, (1.0, 2.0, 3.0)),
        _cell("b", 0.1, (1.5, 2.5, 3.5)),
        _cell("c", 0.1, (31.0, 32.0, 33.0)),
        _cell("d", 0.1, (1.0, None, 3.0)),
    ]
    lines = describe_comparisons(cells, metric)
    rows = [[x.strip() for x in line.split("|")[1:-1]] for line in lines[0].split("\n")]
    verdicts = {row[0]: row[-1] for row in rows[2:]}
    same = "no difference beyond the seeds"
    if metric is LOSS:
        assert verdicts == {
            "a - b": same,
            "a - c": "a is better",
            "b - c": "b is better",
        }
        # σ = 1 with 6 degrees of freedom: 3.707. Δ = -30 over √(2/3).
        assert rows[3][1:5] == ["-30.000", "36.742", "3.707", "1.000"]
    else:
        assert verdicts == {
            "c - b": "c is better",
            "c - a": "c is better",
            "b - a": same,
        }
    assert lines[-1] == "Not compared, because a run diverged: d."


def test_conditions_are_compared_on_their_own():
    cells = [
        _cell(name, 0.1, (shift, shift + spread), condition)
        for condition, spread in (("narrow", 0.01), ("wide", 5.0))
        for name, shift in (("a", 0.0), ("b", 2.0))
    ]
    table = describe_comparisons(cells, LOSS)[0].split("\n")
    narrow, wide = ([x.strip() for x in line.split("|")[1:-1]] for line in table[2:])
    assert (narrow[0], narrow[-1]) == ("narrow", "a is better")
    assert (wide[0], wide[-1]) == ("wide", "no difference beyond the seeds")


def test_what_cannot_be_compared_says_why():
    assert describe_comparisons([_cell("a", 0.1, (1.0, 2.0))], LOSS) == [
        "There is one optimizer, so there is nothing to compare."
    ]
    [sentence] = describe_comparisons([_cell("a", 0.1, (1.0,))], LOSS)
    assert "at least 2 final seeds, got 1" in sentence
