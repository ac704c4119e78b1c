"""The compared optimizers, and how they read the parameters of the model."""

from typing import Any

import optax

import manifold_optax as mo
from manifold_optax.experiments.lm.config import (
    ModelConfig,
    OptimizerName,
    TrainingConfig,
)

# Decay of AdamW's second moments, as mo.muon_clip has it beside Muon.
_ADAMW_SECOND_DECAY = 0.95

# Momentum of Muon in MuonClip (Kimi Team, arXiv:2507.20534, algorithm 1).
_MUON_MOMENTUM = 0.95

_ATTENTIONS = r"blocks/\d+/attention"
_ROUTERS = r"blocks/\d+/feed_forward"


def attention_specs(config: ModelConfig) -> dict[str, mo.Attention]:
    """Returns where the heads of the model lie, as `mo.qk_clip` takes it.

    Args:
        config: The model.

    Returns:
        Pattern of the attention layers' paths → their layout.
    """
    if config.attention != "mla":
        return {
            _ATTENTIONS: mo.Attention(
                config.heads,
                config.key_heads if config.attention == "gqa" else None,
                query="query/kernel",
                key="key/kernel",
            )
        }
    query, key = query_blocks(config), key_value_blocks(config)
    return {
        _ATTENTIONS: mo.Attention(
            config.heads,
            query=mo.HeadPart("query/kernel", split=query, block=0),
            query_rope=mo.HeadPart("query/kernel", split=query, block=1),
            key=mo.HeadPart("key_value_up/kernel", split=key, block=0),
        )
    }


def model_roles(config: ModelConfig, *, per_head: bool) -> mo.Roles:
    """Returns what each parameter is, and how heads, blocks and experts are matrices.

    Args:
        config: The model.
        per_head: Whether each head's queries, keys and values are matrices of their
            own, rather than those of all heads side by side.

    Returns:
        The roles; the names of the other parameters tell what they are.
    """
    heads = optax.contrib.MuonDimensionNumbers(0, 2) if per_head else mo.HEADS
    rules: dict[str, Any] = {"attention/output/kernel": mo.HEADS_OUT}
    if config.attention == "mla":
        # The blocks are maps of their own: content and position, keys and values.
        queries, keys_values = query_blocks(config), key_value_blocks(config)
        rules["attention/query/kernel"] = queries._replace(axes=heads)
        rules["attention/key_value_up/kernel"] = keys_values._replace(axes=heads)
        rules["attention/key_value_down/kernel"] = mo.Split(
            (config.latent, config.rope_size)
        )
    else:
        rules["attention/(query|key|value)/kernel"] = heads
    if config.feed_forward == "moe":
        rules["feed_forward/(gate|up|down)_kernel"] = mo.STACKED
    return mo.roles(rules)


def query_blocks(config: ModelConfig) -> mo.Split:
    """Returns the blocks of the queries of latent attention: content and rotary."""
    return mo.Split((config.head_size, config.rope_size))


def key_value_blocks(config: ModelConfig) -> mo.Split:
    """Returns the blocks of its up-projection: keys and values."""
    return mo.Split((config.head_size, config.head_size))


def build_optimizer(
    optimizer: OptimizerName,
    learning_rate: optax.ScalarOrSchedule,
    model: ModelConfig,
    training: TrainingConfig,
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer of the comparison.

    Muon and MuonClip optimize the hidden matrices. AdamW optimizes all else at the same
    rate, which the scale of Muon makes comparable. The two differ only in the clip.

    Args:
        optimizer: Its name.
        learning_rate: Number or schedule.
        model: The model.
        training: Gives weight decay, threshold, balance and the rest.

    Returns:
        A transformation that takes `max_logits` and `expert_load` as extra arguments
        and ignores what it does not need.
    """
    links = [("model", _model_part(optimizer, learning_rate, model, training))]
    if model.feed_forward == "moe":
        balance = mo.balance_router_bias(
            {_ROUTERS: "router_bias"}, rate=training.router_rate
        )
        links.append(("router_bias", balance))
    return optax.named_chain(*links)


def _model_part(
    optimizer: OptimizerName,
    learning_rate: optax.ScalarOrSchedule,
    model: ModelConfig,
    training: TrainingConfig,
) -> optax.GradientTransformationExtraArgs:
    decay = training.weight_decay
    roles = model_roles(model, per_head=training.per_head)
    adamw = optax.adamw(learning_rate, b2=_ADAMW_SECOND_DECAY, weight_decay=decay)
    match optimizer:
        case "adamw":
            return optax.with_extra_args_support(adamw)
        case "muon":
            return _muon_without_clip(learning_rate, adamw, roles, decay)
        case "muon_clip":
            return mo.muon_clip(
                learning_rate,
                attention_specs(model),
                threshold=training.threshold,
                balance=training.balance,
                momentum=_MUON_MOMENTUM,
                weight_decay=decay,
                roles=roles,
            )


def _muon_without_clip(
    learning_rate: optax.ScalarOrSchedule,
    adamw: optax.GradientTransformation,
    roles: mo.Roles,
    decay: float,
) -> optax.GradientTransformationExtraArgs:
    """Returns what MuonClip does to the model, without the clip."""
    muon = mo.muon(
        learning_rate,
        momentum=_MUON_MOMENTUM,
        nesterov=False,
        weight_decay=decay,
        scale="rms",
        axes=roles,
    )
    return mo.hybrid(muon, others=adamw, labels=roles)
