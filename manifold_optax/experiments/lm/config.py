"""Settings of the language model experiment."""

import dataclasses
from typing import get_args, Literal, TypeAlias

from manifold_optax.experiments.harness import (
    GridConfig,
    LARGEST_STEPS,
    LearningRates as LearningRatesBase,
    require_at_least,
    require_positive,
)

AttentionName: TypeAlias = Literal["mha", "gqa", "mla"]
FeedForwardName: TypeAlias = Literal["gated", "gelu", "moe"]
DecayName: TypeAlias = Literal["linear", "cosine"]
OptimizerName: TypeAlias = Literal["adamw", "muon", "muon_clip"]
OPTIMIZER_NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    Attributes:
        attention: Multi-head (`mha`), grouped-query (`gqa`: several heads share a key
            and a value) or latent attention (`mla`: keys and values come from a small
            latent, and a rotary key of its own is shared by all heads).
        feed_forward: A gated layer with SiLU (`gated`), two linear maps with GELU
            between them (`gelu`), or a mixture of gated experts (`moe`).
        layers: Number of blocks.
        width: Size of the residual stream.
        heads: Query heads per layer.
        key_heads: Key heads per layer; used by `gqa` only.
        head_size: Size of a value and of a query; in `mla` of a query without its
            rotary part.
        latent: Size of the latent of `mla`.
        rope_size: Size of the rotary part of queries and keys of `mla`.
        hidden: Hidden units of the feed-forward layer, or of each expert.
        experts: Experts per layer of `moe`.
        chosen_experts: How many of them each token goes to.
    """

    attention: AttentionName = "mha"
    feed_forward: FeedForwardName = "gated"
    layers: int = 3
    width: int = 96
    heads: int = 4
    key_heads: int = 2
    head_size: int = 24
    latent: int = 32
    rope_size: int = 12
    hidden: int = 256
    experts: int = 4
    chosen_experts: int = 2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type is int:
                require_at_least(f"model.{field.name}", getattr(self, field.name), 1)
        if self.attention == "gqa" and self.heads % self.key_heads:
            raise ValueError(
                f"model.key_heads must divide model.heads, {self.heads}, got "
                f"{self.key_heads}."
            )
        rotary = "rope_size" if self.attention == "mla" else "head_size"
        if getattr(self, rotary) % 2:
            raise ValueError(
                f"model.{rotary} must be even, because positions rotate pairs of "
                f"entries, got {getattr(self, rotary)}."
            )
        if self.chosen_experts > self.experts:
            raise ValueError(
                f"model.chosen_experts must be at most model.experts, {self.experts}, "
                f"got {self.chosen_experts}."
            )


@dataclasses.dataclass(frozen=True)
class LearningRates(LearningRatesBase):
    """Peak learning rates to run, per optimizer.

    Attributes:
        adamw: Rates of AdamW.
        muon: Rates of Muon, and of AdamW for what is not a hidden matrix.
        muon_clip: The same for MuonClip.
    """

    adamw: tuple[float, ...] = (0.008,)
    muon: tuple[float, ...] = (0.016,)
    muon_clip: tuple[float, ...] = (0.016,)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What a run does with its optimizer; shared by all runs of an experiment.

    Attributes:
        steps: Steps per run.
        batch_size: Sequences per step.
        context: Characters that a sequence predicts, and the length of the model's
            memory.
        warmup_steps: Steps over which the learning rate rises linearly to its peak.
        decay: How it falls to zero afterwards.
        weight_decay: Decoupled weight decay of every optimizer.
        threshold: Largest attention logit that MuonClip allows.
        balance: Share of a clip that the queries take, in [0, 1].
        per_head: Whether Muon orthogonalizes the queries, keys and values of each head
            on their own, rather than those of all heads together.
        router_rate: Step of the bias that balances the experts of `moe`.
        evaluate_every: Steps between two evaluations; divides `steps`.
        evaluation_batches: Batches of evenly spaced sequences per evaluation.
    """

    steps: int = 600
    batch_size: int = 16
    context: int = 128
    warmup_steps: int = 60
    decay: DecayName = "cosine"
    weight_decay: float = 0.1
    threshold: float = 100.0
    balance: float = 0.5
    per_head: bool = False
    router_rate: float = 0.001
    evaluate_every: int = 100
    evaluation_batches: int = 16

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "context", "evaluation_batches")
        for name in (*positive, "evaluate_every"):
            require_at_least(f"training.{name}", getattr(self, name), 1)
        for name in ("warmup_steps", "weight_decay", "balance", "router_rate"):
            require_at_least(f"training.{name}", getattr(self, name), 0)
        require_at_least("training.steps", self.steps, 1, highest=LARGEST_STEPS)
        require_positive("training.threshold", (self.threshold,))
        if self.balance > 1:
            raise ValueError(f"training.balance must be at most 1, got {self.balance}.")
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"training.warmup_steps must be less than training.steps, "
                f"{self.steps}, got {self.warmup_steps}."
            )
        if self.steps % self.evaluate_every:
            raise ValueError(
                f"training.evaluate_every must divide training.steps, {self.steps}, "
                f"got {self.evaluate_every}."
            )

    @property
    def rounds(self) -> int:
        """Evaluations per run."""
        return self.steps // self.evaluate_every


@dataclasses.dataclass(frozen=True)
class LmConfig(GridConfig):
    """A language model over characters, several optimizers.

    A round is `training.evaluate_every` steps and an evaluation.

    Attributes:
        text: A text file in UTF-8; None: the sources of Python's standard library.
        model: The model.
        training: How it is trained.
        sample_characters: Length of the text sampled at the end of a run.
        temperature: Temperature of that sample; lower is more likely text.
    """

    optimizers: tuple[OptimizerName, ...] = OPTIMIZER_NAMES
    learning_rates: LearningRates = LearningRates()
    checkpoint_every: int = 2
    output_dir: str = "runs/lm"
    text: str | None = None
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    sample_characters: int = 400
    temperature: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("sample_characters", self.sample_characters, 0)
        require_positive("temperature", (self.temperature,))
