"""The compared rules for the hidden matrices, and the point that all of them start at.

Every rule but AdamW steps by `rate · √(fan_out / fan_in)` in the spectral norm, and
every set holds the common start, so that the rules differ in the constraint alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32

import manifold_optax as mo
from manifold_optax.experiments.modulewise.config import OptimizerName
from manifold_optax.trees import leaves_by_path

GROUPS = ("attention", "feed-forward")

# As in the runs of arXiv:2606.13276, with Nesterov.
_MOMENTUM = 0.95

# Decay of AdamW's second moments, of the same source.
_SECOND_DECAY = 0.95

# All singular values of a matrix are √(fan_out / fan_in): its RMS→RMS norm is 1.
START = mo.Stiefel("rms")


def model_roles(*, tall: bool = False) -> mo.Roles:
    """Returns the group of each parameter, and how it is a matrix.

    Args:
        tall: Whether `down`, `[hidden, width]`, is read transposed, so that it has at
            least as many rows as columns.

    Returns:
        The roles; the names of the other parameters say what they are.
    """
    attention, feed_forward = GROUPS
    down = mo.OUT_IN if tall else mo.STACKED
    return mo.roles(
        {
            "attention/(query|key|value)/kernel": mo.Role(attention, mo.HEADS),
            "attention/output/kernel": mo.Role(attention, mo.HEADS_OUT),
            "feed_forward/(up|gate)/kernel": mo.Role(feed_forward, mo.STACKED),
            "feed_forward/down/kernel": mo.Role(feed_forward, down),
        }
    )


def start_orthogonal(params: Any) -> Any:
    """Moves the hidden matrices to the nearest orthogonal ones, of size `START`."""
    return mo.project(params, START, axes=model_roles())


@jax.jit
def singular_ranges(params: Any) -> Float32[Array, "groups 2"]:
    """Returns the smallest and the largest singular value of the matrices by group."""
    labels = leaves_by_path(model_roles()(params))
    found: dict[str, list[Array]] = {group: [] for group in GROUPS}
    for path, leaf in leaves_by_path(params).items():
        if labels[path] in found:
            # The heads of an output projection lie first, all others last.
            width = leaf.shape[-1] if "/output/" in path else leaf.shape[0]
            shape = (-1, width) if "/output/" in path else (width, -1)
            found[labels[path]].append(jnp.linalg.svdvals(leaf.reshape(shape)))
    values = [jnp.concatenate(found[group]) for group in GROUPS]
    return jnp.stack([jnp.stack([x.min(), x.max()]) for x in values])


def build_optimizer(
    optimizer: OptimizerName,
    rate: optax.ScalarOrSchedule,
    others_rate: optax.ScalarOrSchedule,
    decay: float,
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer of the comparison, for the whole model.

    Args:
        optimizer: Its name, which assigns a rule to each group of hidden matrices.
        rate: Learning rate of the hidden matrices.
        others_rate: Learning rate of AdamW for all other parameters.
        decay: Decoupled weight decay of AdamW and Muon.

    Returns:
        A transformation; it ignores extra arguments.
    """
    mixed = {
        "stiefel_dgram": ("stiefel", "dgram"),
        "dgram_stiefel": ("dgram", "stiefel"),
    }
    rules = mixed.get(optimizer, (optimizer, optimizer))
    return mo.hybrid(
        {
            group: _rule(rule, rate, decay)
            for group, rule in zip(GROUPS, rules, strict=True)
        },
        others=optax.adamw(others_rate, b2=_SECOND_DECAY, weight_decay=decay),
        # A function, not the roles: orthogonal columns are of a matrix that is tall.
        labels=lambda params: model_roles()(params),
    )


def _rule(
    rule: str, rate: optax.ScalarOrSchedule, decay: float
) -> optax.GradientTransformation:
    """One rule for one group; the manifolds have no use for a weight decay."""
    axes = model_roles()
    match rule:
        case "adamw":
            return optax.adamw(rate, b2=_SECOND_DECAY, weight_decay=decay)
        case "muon":
            return mo.muon(
                rate,
                momentum=_MOMENTUM,
                weight_decay=decay,
                scale="spectral",
                axes=axes,
            )
        case "stiefel":
            return mo.manifold_muon(
                rate, manifold=START, momentum=_MOMENTUM, nesterov=True, axes=axes
            )
        case "dgram":
            return _orthogonal_columns(rate)
        case "spectral_sphere":
            return mo.spectral_sphere(rate, momentum=_MOMENTUM, axes=axes)
        case _:
            return mo.hyperball(rate, momentum=_MOMENTUM, axes=axes)


def _orthogonal_columns(
    rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformation:
    """Manifold Muon where the columns are orthogonal and their lengths are free."""
    manifold, tall = mo.DiagonalGram(), model_roles(tall=True)
    return optax.named_chain(
        ("momentum", mo.momentum(_MOMENTUM, nesterov=True)),
        ("direction", mo.steepest(manifold, mo.Spectral(), axes=tall)),
        # The manifold has no size that would scale the step as on the others.
        ("scale_by_shape", mo.scale_by_shape("spectral", axes=model_roles())),
        ("learning_rate", optax.scale_by_learning_rate(rate)),
        ("retraction", mo.retract(manifold, axes=tall)),
    )
