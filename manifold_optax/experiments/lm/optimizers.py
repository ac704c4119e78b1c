"""The compared optimizers, and how they read the parameters of the model."""

import functools
from collections.abc import Mapping

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
        Regular expression of the attention layers → their layout.
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


def matrix_groups(config: ModelConfig, *, per_head: bool) -> dict[str, mo.MatrixGroup]:
    """Returns how the kernels with more than two axes, or with blocks, are matrices.

    Args:
        config: The model.
        per_head: Whether each head's queries, keys and values are matrices of their
            own, rather than those of all heads side by side.

    Returns:
        Name → the paths and their matrices, as `mo.muon_clip` takes it.
    """
    inputs = optax.contrib.MuonDimensionNumbers(0, 2 if per_head else (1, 2))
    outputs = optax.contrib.MuonDimensionNumbers((0, 1), 2)
    groups = {"output": mo.MatrixGroup(r"attention/output/kernel$", outputs)}
    if config.attention == "mla":
        # The blocks are maps of their own: content and position, keys and values.
        groups["query"] = mo.MatrixGroup(
            r"attention/query/kernel$", query_blocks(config)._replace(axes=inputs)
        )
        groups["key_value"] = mo.MatrixGroup(
            r"attention/key_value_up/kernel$",
            key_value_blocks(config)._replace(axes=inputs),
        )
        groups["down"] = mo.MatrixGroup(
            r"attention/key_value_down/kernel$",
            mo.Split((config.latent, config.rope_size)),
        )
    else:
        groups["input"] = mo.MatrixGroup(r"attention/(query|key|value)/kernel$", inputs)
    if config.feed_forward == "moe":
        groups["experts"] = mo.MatrixGroup(r"feed_forward/(gate|up|down)_kernel$")
    return groups


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
    groups = matrix_groups(model, per_head=training.per_head)
    adamw = optax.adamw(learning_rate, b2=_ADAMW_SECOND_DECAY, weight_decay=decay)
    match optimizer:
        case "adamw":
            return optax.with_extra_args_support(adamw)
        case "muon":
            return _muon_without_clip(learning_rate, adamw, groups, decay)
        case "muon_clip":
            return mo.muon_clip(
                learning_rate,
                attention_specs(model),
                threshold=training.threshold,
                balance=training.balance,
                momentum=_MUON_MOMENTUM,
                weight_decay=decay,
                groups=groups,
            )


def _muon_without_clip(
    learning_rate: optax.ScalarOrSchedule,
    adamw: optax.GradientTransformation,
    groups: Mapping[str, mo.MatrixGroup],
    decay: float,
) -> optax.GradientTransformationExtraArgs:
    """Returns what MuonClip does to the model, without the clip."""
    muon = functools.partial(
        mo.muon,
        learning_rate,
        momentum=_MUON_MOMENTUM,
        nesterov=False,
        weight_decay=decay,
        scale="rms",
    )
    rules = {group.paths: name for name, group in groups.items()}
    return mo.hybrid(
        {
            name: muon(axes=group.axes)
            for name, group in groups.items()
            if group.axes is not None
        }
        | {"matrix": muon()},
        others=adamw,
        labels=mo.label_by_path(rules, default=mo.label_matrices),
    )
