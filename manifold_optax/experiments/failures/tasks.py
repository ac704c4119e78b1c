"""The tasks: each has one known difficulty, and a threshold with its reason.

Thresholds, and how many of ten seeds must pass, were written before the first run. What
is judged is 1 at the start of most tasks; see the measures in `problems`.
"""

import dataclasses
from typing import Any

import jax

from manifold_optax.experiments.failures import networks, problems
from manifold_optax.experiments.failures.problems import ROWS

_EVERYWHERE = ("sphere", "stiefel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A training with one known difficulty.

    Attributes:
        draw: First parameters and data of a seed.
        loss: What a step descends.
        measure: What is judged.
        threshold: What the measured number must not exceed for a seed to pass.
        hard: What is hard.
        reason: Why the threshold is this number.
        manifolds: Where its matrices may live beside everywhere: "sphere", of the size
            that they begin with, and "stiefel", with orthonormal rows or columns.
        needed: How many of ten seeds must pass.
        guarded: Whether `optax.apply_if_finite` is around every optimizer.
    """

    draw: problems.Draw
    loss: problems.Loss
    measure: problems.Measure
    threshold: float
    hard: str
    reason: str
    manifolds: tuple[str, ...] = ()
    needed: int = 9
    guarded: bool = False


def _target(loss: problems.TargetLoss, threshold: float, **facts: Any) -> Task:
    """Returns a task of one matrix, which is judged by its distance from a target."""
    of_matrix = {
        "draw": problems.draw_target,
        "loss": problems.to_target(loss),
        "measure": problems.distance,
        "threshold": threshold,
        "manifolds": _EVERYWHERE,
    }
    return Task(**(of_matrix | facts))


def _factors(*shapes: tuple[int, int], scales: Any, rank: int, **facts: Any) -> Task:
    """Returns a task of factors, whose product is to reach a matrix of low rank."""
    return Task(
        draw=problems.draw_factors(shapes, scales, rank),
        loss=problems.product_loss,
        measure=problems.product_error,
        threshold=0.1,
        **facts,
    )


_TENTH = "a tenth of the way is left"

TASKS = {
    "easy": _target(
        problems.plain,
        0.01,
        hard="nothing: ½‖W − T‖²",
        reason="a control: 300 steps are enough for any method",
        needed=10,
    ),
    "ill-conditioned": _target(
        problems.curved,
        0.1,
        hard="curvatures from 1 to 1e-4 along directions of the input",
        reason="300 gradient steps of size 1 leave 0.6: curvatures below 1/300 stay",
    ),
    "ill-conditioned entries": _target(
        problems.curved_entries,
        0.1,
        hard="every entry has a curvature of its own, from 1 to 1e-4",
        reason="300 gradient steps of size 1 leave 0.6: curvatures below 1/300 stay",
    ),
    "sparse gradients": _target(
        problems.one_row,
        0.1,
        hard="one random row of 16 has a gradient at a time",
        reason="each row is seen 19 times; one exact step of each is enough",
    ),
    "rare rows": _target(
        problems.rare_rows,
        0.1,
        draw=problems.draw_table,
        manifolds=(),
        hard="an embedding of 32 words with frequencies 1/k, 8 words a step",
        reason="the rarest word is seen 18 times; one exact step of each is enough",
    ),
    "plateau": _target(
        problems.far_away,
        0.1,
        hard="gradients of 4e-11 per entry at the start: a Gaussian well",
        reason=_TENTH + ", which is inside the well",
    ),
    "saddle": _factors(
        (16, 4),
        (4, 16),
        scales=(1e-3, 1e-3),
        rank=4,
        hard="a product of two factors that begin at 1e-3",
        reason="one of the four singular values missing leaves 0.5",
    ),
    "signs": Task(
        draw=problems.draw_small,
        loss=problems.sign_loss,
        measure=problems.sign_error,
        threshold=0.1,
        hard="two minima per entry, and the start near the saddle between them",
        reason="2 of 128 entries at the saddle leave 0.125",
    ),
    "noise": _target(
        problems.noisy(jax.random.normal, 2.0),
        0.23,
        hard="Gaussian noise of twice the size of the first gradient",
        reason="twice the error of the mean of 300 gradients, 2/√300 = 0.115",
        needed=8,
    ),
    "heavy tails": _target(
        problems.noisy(jax.random.cauchy, 1.0),
        0.2,
        hard="Cauchy noise, which has no mean",
        reason="twice the error of the median of 300 gradients, (π/2)/√300 = 0.09",
        needed=8,
    ),
    "moving target": _target(
        problems.jump,
        0.1,
        hard="the target changes after 60 % of the steps, when the rate is at 35 %",
        reason=_TENTH,
    ),
    "scale jump": _target(
        problems.scale_jump,
        0.1,
        hard="for a third of the steps another target and gradients 100 times as large",
        reason=_TENTH,
    ),
    "poisoned batch": _target(
        problems.poisoned,
        0.01,
        hard="three losses are not a number; apply_if_finite is around the optimizer",
        reason="as the easy task, which it is but for 3 of 300 steps",
        needed=10,
        guarded=True,
    ),
    "bfloat16": _target(
        problems.plain,
        0.02,
        draw=problems.draw_bfloat16,
        hard="weights and gradients in bfloat16, no float32 copy",
        reason="five times the rounding of the weights, at most 2^-8 of each",
    ),
    "rank-deficient": _target(
        problems.regression,
        0.1,
        draw=problems.draw_regression(32, 4),
        manifolds=(),
        hard="inputs in 4 of 16 dimensions; weights of the others must stay zero",
        reason=_TENTH + ", all dimensions counted",
    ),
    "few examples": _target(
        problems.regression,
        0.1,
        draw=problems.draw_regression(14, ROWS),
        hard="14 examples for 16 inputs, and a target with orthonormal columns",
        reason="without the constraint 2 of 16 dimensions stay, which leaves 0.35",
    ),
    "small scale-free weights": Task(
        draw=problems.draw_direction,
        loss=problems.direction_loss,
        measure=problems.direction_error,
        threshold=0.1,
        manifolds=("sphere",),
        hard="only the direction counts, and the weights begin at length 0.01",
        reason=_TENTH,
    ),
    "wide and narrow": _factors(
        (32, 2),
        (2, 32),
        scales=(10.0, 0.1),
        rank=2,
        hard="a 32 x 2 and a 2 x 32 factor, one 100 times as large as the other",
        reason="one of the two singular values missing leaves 0.7",
    ),
    "deep factors": _factors(
        (16, 16),
        (16, 16),
        (16, 16),
        scales=(0.1, 0.1, 0.1),
        rank=2,
        hard="a product of three square factors that begin at 0.1, of rank 2",
        reason="one of the two singular values missing leaves 0.7",
    ),
    "curved valley": Task(
        draw=problems.draw_valley,
        loss=problems.valley_loss,
        measure=problems.valley_left,
        threshold=0.1,
        hard="Rosenbrock's function of two 8 x 8 matrices",
        reason=_TENTH,
    ),
    "exploding logits": Task(
        draw=networks.draw_classes,
        loss=problems.descends(networks.cross_entropy),
        measure=networks.cross_entropy,
        threshold=0.1,
        manifolds=_EVERYWHERE,
        hard="a softmax of logits of size 50, most of them wrong",
        reason="a twentieth of a guess among 8 classes, log 8 = 2.08 nats",
    ),
    "dead neurons": Task(
        draw=networks.draw_neurons,
        loss=problems.descends(networks.neurons_error),
        measure=networks.neurons_error,
        threshold=0.1,
        manifolds=_EVERYWHERE,
        hard="ReLU units of which each is silent on 98 % of the examples",
        reason="the best linear function leaves 0.27 of the variance",
    ),
    "attention logits": Task(
        draw=networks.draw_attention,
        loss=networks.attention_loss,
        measure=networks.attention_error,
        threshold=0.1,
        hard="attention with logits 64 times too large, so that the softmax saturates",
        reason="a tenth of the first error is left",
    ),
}
"""By name, in the order of the table."""
