"""The small language model of the tests."""

from manifold_optax.experiments.lm.config import ModelConfig

SMALL = ModelConfig(
    layers=1,
    width=16,
    heads=4,
    key_heads=2,
    head_size=4,
    latent=8,
    rope_size=2,
    hidden=16,
    experts=4,
)
