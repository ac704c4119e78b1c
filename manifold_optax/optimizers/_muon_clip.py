"""MuonClip: Muon for a whole model, with attention logits that stay bounded."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from manifold_optax import transforms
from manifold_optax._checks import require_instance
from manifold_optax._typing import ArrayTree
from manifold_optax.attention import Attention, locate
from manifold_optax.geometry import Euclidean, Manifold, Spectral
from manifold_optax.labels import label_by_path, label_matrices, MATRIX, OTHER
from manifold_optax.matrices import Axes, LAST_TWO, Placement
from manifold_optax.optimizers._hybrid import hybrid
from manifold_optax.optimizers._links import learning_rate_link, momentum_link
from manifold_optax.optimizers._muon import muon
from manifold_optax.trees import check_pattern, leaves_by_path, matches

_EUCLIDEAN = Euclidean()

_ADAM_B2 = 0.95
"""AdamW's second decay beside Muon: J. Liu et al., "Muon is Scalable for LLM Training"
(arXiv 2502.16982), reference code."""


class MatrixGroup(NamedTuple):
    """Weights of a model whose matrices lie differently, or that keep to a manifold."""

    paths: str
    """Regular expression that is found in their paths; the first group that finds one
    has the weight. End it with `/kernel$` where there are biases, which are vectors."""
    axes: Axes | None = LAST_TWO
    """Which axes are the matrix, or a `Split`; `None`: none, they go to AdamW."""
    manifold: Manifold = _EUCLIDEAN
    """Their constraint; the direction is then the steepest one under the spectral norm,
    and there is no weight decay."""


def muon_clip(
    learning_rate: Any,
    attention: Mapping[str, Attention],
    *,
    threshold: Any = 100.0,
    balance: Any = 0.5,
    momentum: Any = 0.95,
    weight_decay: Any = 0.1,
    groups: Mapping[str, MatrixGroup] | None = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """MuonClip for a whole model: Muon, AdamW beside it, and `qk_clip` at the end.

    The chain is `model → qk_clip`, and the model part `hybrid`: hidden matrices take
    `muon` with the scale `"rms"` (0.2·√max(fan_in, fan_out)) and decoupled weight
    decay; embeddings, head and vectors take AdamW with the same learning rate and
    decay, which that scale is made for. For another optimizer beside Muon chain
    `hybrid` and `qk_clip` yourself.

    Args:
        learning_rate: number ≥ 0 or schedule; that of AdamW.
        attention: as for `qk_clip`.
        threshold: largest logit that is left alone, > 0.
        balance: share of the clip that the queries take, in [0, 1].
        momentum: decay of the average in [0, 1), without Nesterov's look ahead as in
            the source, or a transformation in its place; `None` for none.
        weight_decay: ≥ 0, decoupled, times the learning rate; `None` for no link.
        groups: name → weights that `label_matrices` cannot tell, with their axes or
            their manifold. The names are keys of the state. Weights on a manifold must
            start there (`mo.project`).
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A named chain; `update` needs `params` and the extra argument `max_logits` (see
        `qk_clip`).

    Raises:
        ValueError: for numbers out of range; at init, for a leaf that no label is known
            of, and for a constrained weight that a clip would take off its manifold; at
            update, as `qk_clip`. The message names the leaf.

    Example:
        >>> params = {"query": jnp.ones((4, 2, 3)), "key": jnp.ones((4, 2, 3))}
        >>> per_head = optax.contrib.MuonDimensionNumbers(0, 2)
        >>> tx = muon_clip(
        ...     1e-3,
        ...     {"": Attention(2, query="query", key="key")},
        ...     groups={"heads": MatrixGroup(r"query|key", axes=per_head)},
        ... )
        >>> state = tx.init(params)
        >>> list(state)
        ['model', 'qk_clip']
        >>> largest = {"": jnp.array([400.0, 20.0])}
        >>> updates, state = tx.update(params, state, params, max_logits=largest)

    Source: Kimi Team, "Kimi K2: Open Agentic Intelligence" (arXiv 2507.20534, 2025),
    algorithm 1.
    """
    groups = {} if groups is None else groups
    _check(groups)
    named = {name: group for name, group in groups.items() if group.axes is not None}
    named[MATRIX] = MatrixGroup(paths="")

    def of_group(group: MatrixGroup) -> optax.GradientTransformation:
        places: dict[str, Any] = {"axes": group.axes, "placement": placement}
        if group.manifold != _EUCLIDEAN:
            return _on_manifold(learning_rate, momentum, group.manifold, places)
        return muon(
            learning_rate,
            momentum=momentum,
            nesterov=False,
            weight_decay=weight_decay,
            scale="rms",
            **places,
        )

    decay = 0.0 if weight_decay is None else weight_decay
    model = hybrid(
        {name: of_group(group) for name, group in named.items()},
        others=optax.adamw(learning_rate, b2=_ADAM_B2, weight_decay=decay),
        labels=label_by_path(
            {g.paths: name if name in named else OTHER for name, g in groups.items()},
            default=label_matrices,
        ),
    )
    clip = transforms.qk_clip(attention, threshold=threshold, balance=balance)
    chain = optax.named_chain(("model", model), ("qk_clip", clip))

    def init_fn(params: ArrayTree) -> Any:
        if jax.tree.leaves(params):
            _check_model(groups, attention, params)
        return chain.init(params)

    return optax.GradientTransformationExtraArgs(init_fn, chain.update)


def _on_manifold(
    learning_rate: Any, momentum: Any, manifold: Manifold, places: dict[str, Any]
) -> optax.GradientTransformationExtraArgs:
    """`muon_clip`'s links for weights on a manifold."""
    scale = transforms.scale_by_shape("rms", axes=places["axes"])
    return optax.named_chain(
        *momentum_link(momentum, nesterov=False),
        ("direction", transforms.steepest(manifold, Spectral(), **places)),
        ("scale_by_shape", scale),
        learning_rate_link(learning_rate),
        ("retraction", transforms.retract(manifold, **places)),
    )


def _check(groups: Any) -> None:
    if not isinstance(groups, Mapping):
        raise TypeError(
            f"groups must be a dict {{name: mo.MatrixGroup(…)}}, got {groups!r}."
        )
    for name, group in groups.items():
        require_instance(f"groups[{name!r}]", group, MatrixGroup)
        if group.axes is None and group.manifold != _EUCLIDEAN:
            raise ValueError(
                f"The group {name!r} has no matrices (axes=None) to keep on "
                f"{group.manifold}; name their axes."
            )
        check_pattern(f"the group {name!r}", group.paths)
    if MATRIX in groups:
        raise ValueError(
            f"The group {MATRIX!r} is that of the weights that no group matches; give "
            "yours another name."
        )


def _check_model(
    groups: Mapping[str, MatrixGroup], attention: Any, params: ArrayTree
) -> None:
    """Raises ValueError for a clip that leads off a manifold, and for idle groups."""

    def group_of(path: str) -> str | None:
        names = (name for name in groups if matches(groups[name].paths, path))
        return next(names, None)

    located = locate(attention, params).values()
    for path in (path for found in located for path in found.leaves):
        name = group_of(path)
        if name is not None and groups[name].manifold != _EUCLIDEAN:
            raise ValueError(
                f"qk_clip rescales {path!r}, and the group {name!r} keeps it on "
                f"{groups[name].manifold}: the clip would take it off. Leave queries "
                "and keys out of that group; values, outputs and feed-forward weights "
                "may stay."
            )
    idle = set(groups) - {group_of(path) for path in leaves_by_path(params)}
    if idle:
        raise ValueError(
            f"The groups {sorted(idle, key=str)} match no parameter that an earlier "
            "group has not taken. The paths are: "
            f"{', '.join(leaves_by_path(params))}."
        )
