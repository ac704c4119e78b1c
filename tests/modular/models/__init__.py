"""Models as users have them, with the right role of every parameter.

`MODELS` are functions without arguments; `gpt2` makes larger ones, of shapes alone.
"""

import functools
from collections.abc import Callable, Mapping

import pytest

from modular.models.comparison import same_matrices, same_role
from modular.models.convolutional import (
    conv_line,
    conv_net,
    patch_mixer,
    resnet_inference,
    resnet_training,
)
from modular.models.diffusion import denoiser
from modular.models.equinox_models import equinox_mlp, equinox_transformer
from modular.models.experts import summed_experts, switched_experts, weighed_experts
from modular.models.feed_forward import (
    ensemble,
    linen_dropout,
    lora,
    lora_merged,
    mlp,
    weight_normalised,
)
from modular.models.gemma import gemma
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

__all__ = (
    "MODELS",
    "REFUSED",
    "Model",
    "drawn",
    "each_model",
    "gpt2",
    "same_matrices",
    "same_role",
)

MODELS: Mapping[str, Callable[[], Model]] = {
    make.__name__: functools.cache(make)
    for make in (
        mlp,
        linen_dropout,
        equinox_mlp,
        equinox_transformer,
        weight_normalised,
        lora,
        lora_merged,
        ensemble,
        conv_net,
        conv_line,
        resnet_training,
        resnet_inference,
        patch_mixer,
        denoiser,
        vision_transformer,
        fused_gpt,
        multi_head_gpt,
        encoder_decoder,
        llama,
        gemma,
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

REFUSED = ("top_k_experts", "switched_experts")
"""Those that cannot be read; their field `refuses` names the primitive."""


def each_model(keep: Callable[[str], bool] = lambda name: True) -> pytest.MarkDecorator:
    """Parametrizes a test over the names of `MODELS` that `keep` keeps."""
    return pytest.mark.parametrize("name", [name for name in MODELS if keep(name)])
