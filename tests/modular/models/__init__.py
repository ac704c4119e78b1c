"""Models as users have them, with the right role of every parameter.

`MODELS` are functions without arguments; `gpt2` makes larger ones, of shapes alone.
"""

import functools
from collections.abc import Callable, Mapping

import pytest

from modular.models.convolutional import (
    conv_line,
    conv_net,
    patch_mixer,
    resnet_inference,
    resnet_training,
)
from modular.models.experts import summed_experts, switched_experts, weighed_experts
from modular.models.feed_forward import (
    ensemble,
    equinox_mlp,
    linen_dropout,
    lora,
    lora_merged,
    mlp,
    weight_normalised,
)
from modular.models.gpts import gpt2, well_normed_gpt
from modular.models.llama import latent_attention, llama, top_k_experts
from modular.models.loops import (
    gated_recurrence,
    linen_scan,
    plain_recurrence,
    scanned_layers,
    shared_layer,
)
from modular.models.model import drawn, Model
from modular.models.transformers import (
    encoder_decoder,
    fused_gpt,
    multi_head_gpt,
    vision_transformer,
)

MODELS: Mapping[str, Callable[[], Model]] = {
    make.__name__: functools.cache(make)
    for make in (
        mlp,
        linen_dropout,
        equinox_mlp,
        weight_normalised,
        lora,
        lora_merged,
        ensemble,
        conv_net,
        conv_line,
        resnet_training,
        resnet_inference,
        patch_mixer,
        vision_transformer,
        fused_gpt,
        multi_head_gpt,
        encoder_decoder,
        llama,
        latent_attention,
        top_k_experts,
        weighed_experts,
        summed_experts,
        switched_experts,
        scanned_layers,
        linen_scan,
        gated_recurrence,
        plain_recurrence,
        shared_layer,
        well_normed_gpt,
    )
}
"""Name → the model, made once."""


def each_model(keep: Callable[[str], bool] = lambda name: True) -> pytest.MarkDecorator:
    """Parametrizes a test over the names of `MODELS` that `keep` keeps."""
    return pytest.mark.parametrize("name", [name for name in MODELS if keep(name)])
