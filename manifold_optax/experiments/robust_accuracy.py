"""Certified and attacked decisions of one network on test images."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Key

from manifold_optax.experiments.adversary import attack_decisions, Effort, Function
from manifold_optax.experiments.input_sets import InBox

# Images still to be attacked come in multiples of this number, so that the attack is
# compiled for a few sizes only.
_BUCKET = 128


class Curves(NamedTuple):
    """Decisions of a network against the L2 distance at which they are asked.

    Attributes:
        certified: Share of the images decided rightly that no input within the distance
            can change, as is proved.
        attacked: Share decided rightly for which the attack found no such input.
        violations: Images whose decision the attack changed within the distance up to
            which it is proved to be constant; 0, or the proof is wrong.
    """

    certified: tuple[float, ...]
    attacked: tuple[float, ...]
    violations: int


def robustness_curves(
    certified_radii: Float[np.ndarray, " n"],
    standing: Bool[np.ndarray, "radii n"],
    radii: tuple[float, ...],
) -> Curves:
    """Compares what is proved with what was attacked.

    Args:
        certified_radii: Distance up to which the decision of each image is proved; 0
            where it is wrong.
        standing: Which decisions are right and withstood the attack at each radius;
            the first row is at 0, without an attack.
        radii: The distances of the other rows.

    Returns:
        Shares at 0 and at each radius.
    """
    asked = np.array([0.0, *radii])
    # An attack may be off by a rounding of the distance: the norm of float32 numbers.
    proved = certified_radii[None, :] >= asked[:, None] * (1 + 1e-5)
    proved &= standing[:1]
    return Curves(
        certified=tuple(proved.mean(1).tolist()),
        attacked=tuple(standing.mean(1).tolist()),
        violations=int((proved & ~standing).sum()),
    )


def attack_standing(
    function: Function,
    params: Any,
    examples: tuple[Float[Array, "n d"], Int32[np.ndarray, " n"]],
    radii: tuple[float, ...],
    key: Key[Array, ""],
    *,
    effort: Effort,
    box: InBox,
) -> Bool[np.ndarray, "radii n"]:
    """Attacks images at rising distances; a decision once changed stays so.

    Args:
        function: (params, inputs) → logits.
        params: Its parameters.
        examples: Inputs and labels.
        radii: L2 distances, rising.
        key: Of the random starts.
        effort: How many steps and restarts.
        box: Where all inputs must lie.

    Returns:
        Which decisions are right: without an attack, then at each distance.
    """
    inputs, labels = examples
    decided = np.asarray(jnp.argmax(function(params, inputs), -1))
    rows = [decided == labels]
    for number, radius in enumerate(radii):
        standing = rows[-1].copy()
        [left] = np.nonzero(standing)
        if len(left):
            # Filled up with repetitions of the same images.
            chosen = np.resize(left, -(-len(left) // _BUCKET) * _BUCKET)
            found = attack_decisions(
                function,
                params,
                inputs[chosen],
                jnp.asarray(labels[chosen]),
                jnp.float32(radius),
                jax.random.fold_in(key, number),
                effort=effort,
                box=box,
            )
            standing[chosen[np.asarray(found.changed)]] = False
        rows.append(standing)
    return np.stack(rows)
