"""MuonClip: Muon for a whole model, with attention logits that stay bounded."""

from collections.abc import Mapping

import optax

from manifold_optax import transforms
from manifold_optax._checks import require_instance
from manifold_optax._typing import Scalar
from manifold_optax.attention import Attention
from manifold_optax.matrices import Placement
from manifold_optax.optimizers import _links as links
from manifold_optax.optimizers._hybrid import hybrid
from manifold_optax.optimizers._muon import muon
from manifold_optax.roles import Roles, roles as read_roles

_ADAM_B2 = 0.95
"""AdamW's second decay beside Muon: J. Liu et al., "Muon is Scalable for LLM Training"
(arXiv 2502.16982), reference code."""


def muon_clip(
    learning_rate: optax.ScalarOrSchedule,
    attention: Mapping[str, Attention],
    *,
    threshold: Scalar = 100.0,
    balance: Scalar = 0.5,
    momentum: links.Momentum = 0.95,
    weight_decay: Scalar | None = 0.1,
    roles: Roles | None = None,
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
            the source; an `Average`, or a transformation in its place; `None` for none.
        weight_decay: ≥ 0, decoupled, times the learning rate; `None` for no link.
        roles: what each parameter is (`mo.roles`); `None`: the strict reading of names.
            A model with weights on a manifold, or with several optimizers of matrices,
            is `hybrid` followed by `qk_clip`, chained by hand.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A named chain; `update` needs `params` and the extra argument `max_logits` (see
        `qk_clip`).

    Raises:
        TypeError: if `roles` are not `Roles`.
        ValueError: for numbers out of range; at init, as `hybrid` and `qk_clip`; at
            update, as `qk_clip`. The message names the leaf.

    Example:
        >>> params = {"query": jnp.ones((4, 2, 3)), "key": jnp.ones((4, 2, 3))}
        >>> spec = {"": Attention(2, query="query", key="key")}
        >>> tx = muon_clip(1e-3, spec, roles=roles({"query|key": HEADS}))
        >>> state = tx.init(params)
        >>> list(state)
        ['model', 'qk_clip']
        >>> largest = {"": jnp.array([400.0, 20.0])}
        >>> updates, state = tx.update(params, state, params, max_logits=largest)

    Source: Kimi Team, "Kimi K2: Open Agentic Intelligence" (arXiv 2507.20534, 2025),
    algorithm 1.
    """
    known = read_roles() if roles is None else roles
    require_instance("roles of muon_clip", known, Roles)
    matrices = muon(
        learning_rate,
        momentum=momentum,
        nesterov=False,
        weight_decay=weight_decay,
        scale="rms",
        axes=known,
        placement=placement,
    )
    decay = 0.0 if weight_decay is None else weight_decay
    others = optax.adamw(learning_rate, b2=_ADAM_B2, weight_decay=decay)
    clip = transforms.qk_clip(attention, threshold=threshold, balance=balance)
    return optax.named_chain(
        ("model", hybrid(matrices, others=others, labels=known)),
        ("qk_clip", clip),
    )
