"""The settings of a run's parts that are not data or method: model, adapter, training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from trifed.common.strict_settings import StrictSettings

Pooling = Literal["mean", "cls", "pooler"]

BaseDtype = Literal["float32", "bfloat16", "int8", "nf4"]
QUANTISED: tuple[BaseDtype, ...] = ("int8", "nf4")
"""Eight and four bits a weight of the linear layers, bfloat16 what else there is: by bitsandbytes."""

Augment = Literal["none", "flip", "flip-crop"]

TaskName = Literal[
    "text-classification", "image-classification", "image-text", "image-text-pairs", "causal-lm",
    "image-text-to-text",
]  # fmt: skip
"""A kind of problem; `trifed.tasks.TASKS` knows what each one is."""

WRITING: tuple[TaskName, ...] = ("causal-lm", "image-text-to-text")
"""Tasks whose models write."""
UNLABELLED: tuple[TaskName, ...] = (*WRITING, "image-text-pairs")
"""Tasks that learn no label."""

ALL_GPUS = "cuda:all"
"""The device of a base that is too large for one GPU."""

Bits = Literal[1, 2, 4, 8, 32]
"""A number that travels."""

TrackerName = Literal["tensorboard", "mlflow"]


Guarding = Literal["refuse", "warn", "allow"]
"""What a guard does with what would show single examples."""
GUARDS = {"few_tokens", "small_components"}
"""Settings of `privacy` that change no number: they say what a client lets out, and are each client's own."""


class ModelSettings(StrictSettings):
    """The frozen base model."""

    name: str = Field(
        "demo", min_length=1, description="a folder, a hub name, or 'demo' for all-MiniLM-L6-v2 of the demo extra"
    )
    dtype: BaseDtype = Field(
        "float32",
        description="how the frozen base is held, int8 and nf4 by bitsandbytes; adapters are float32 anyway",
    )
    max_length: int = Field(128, ge=4, description="tokens an example is cut to")
    pooling: Pooling = Field(
        "mean", description="what the head reads: mean over tokens or patches, first token, or a trained pooler"
    )
    template: str | None = Field(
        None,
        description="causal-lm: what a prompt stands in, with {prompt} and {input}; 'chat': the tokenizer's own",
    )
    packing: bool = Field(True, description="causal-lm: texts one behind the other, in blocks of max_length")
    class_prompt: str = Field(
        "a photo of a {}.", description="image-text: a sentence about a class; {}: its label"
    )
    augment: Augment = Field("none", description="images, while training: mirrored, or moved about as well")

    @field_validator("template")
    @classmethod
    def _the_prompt_has_a_place(cls, template: str | None) -> str | None:
        if template is not None and template != "chat" and "{prompt}" not in template:
            raise ValueError(f"got {template!r}, expected a text with {{prompt}} in it, or 'chat'")
        return template

    @field_validator("class_prompt")
    @classmethod
    def _the_label_has_a_place(cls, sentence: str) -> str:
        if "{}" not in sentence:
            raise ValueError(f"got {sentence!r}, expected a sentence with {{}} in the place of the label")
        return sentence


class WireSettings(StrictSettings):
    """How the numbers that a method sends travel, both ways."""

    bits: Bits = Field(32, description="a number; under 32 changes travel, and what rounding loses is sent later")


class SummaryPrivacy(StrictSettings):
    """Noise on what a client tells of its data before the first round: protects each training example."""

    epsilon: float = Field(gt=0.01, le=1000, description="ε of all summaries of a client, record added or removed")
    delta: float = Field(1e-5, gt=0, le=0.1, description="δ of the same")
    releases: int = Field(
        1,
        ge=1,
        description="summaries that ε is for: one more each time a client's data may change during the run",
    )


class UpdatePrivacy(StrictSettings):
    """Clipping and noise on what a client sends each round: protects its updates, all rounds together."""

    epsilon: float = Field(gt=0.01, le=1000, description="ε of all rounds, a client's updates added or removed")
    delta: float = Field(1e-5, gt=0, le=0.1, description="δ of the same")
    clip: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="largest L2 norm of a round's change, all that travels together",
    )


class TrainingPrivacy(StrictSettings):
    """Noise on every step of local training (DP-SGD): protects each training example in all that is trained."""

    epsilon: float = Field(gt=0.01, le=1000, description="ε of all steps of a run, one example added or removed")
    delta: float = Field(1e-5, gt=0, le=0.1, description="δ of the same")
    clip: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="largest L2 norm of one example's gradient, over all that trains",
    )
    rate: float = Field(0.1, gt=0, le=1, description="chance of each example to be in a step; a public choice")


class PrivacySettings(StrictSettings):
    """What may leave a client: noise, for differential privacy, and guards."""

    summary: SummaryPrivacy | None = Field(None, description="noise on the one-time summary; off unless given")
    update: UpdatePrivacy | None = Field(None, description="clipping and noise on each round's upload; off")
    training: TrainingPrivacy | None = Field(None, description="noise on every training step (DP-SGD); off")

    few_tokens: Guarding = Field(
        "refuse", description="an upload that stands for fewer than 2 x rank different tokens, or patches"
    )
    small_components: Guarding = Field(
        "refuse", description="a summary's mean and variance that stand on fewer than 20 examples"
    )

    @property
    def on(self) -> bool:
        """Is there noise on anything?"""
        return any((self.summary, self.update, self.training))


class DeploymentSettings(StrictSettings):
    """Between sites: who has to be there, and how long is waited. Changes no number of a simulated run."""

    clients: int = Field(2, ge=1, description="that have to be there before the first round")
    quorum: int = Field(1, ge=1, description="uploads without which a round stops the run, resumable")
    late: bool = Field(True, description="clients may still come after the first round")
    bound: bool = Field(True, description="a name stays with the node, by its key, that first came with it")
    join_seconds: float = Field(600, gt=0, description="that are waited for the clients")
    round_seconds: float = Field(
        3600, gt=0, description="after which a round goes on without who has not answered"
    )


class TrainingSettings(StrictSettings):
    """Local training, the same for every client and method."""

    epochs: int = Field(1, ge=1, description="passes over a client's training data a round")
    steps: int | None = Field(None, ge=1, description="optimiser steps a round, instead of epochs")
    batch_size: int = Field(16, ge=1, description="examples an optimiser step")
    micro_batch: int | None = Field(
        None, ge=1, description="examples computed together; fewer need less memory, and the step is the same"
    )
    gradient_checkpointing: bool = Field(False, description="less memory: activations are computed again")
    eval_batch_size: int = Field(32, ge=1, description="changes no number, only memory and time")
    learning_rate: float = Field(3e-3, gt=0, allow_inf_nan=False, description="of AdamW")
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False, description="of AdamW")
    clip_norm: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="largest norm of a step's gradient; 0 sets no limit"
    )
    schedule: Literal["constant", "linear"] = Field("constant", description="over the whole run")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the run's steps with a rising rate")
    optimizer_state: Literal["keep", "reset"] = Field("keep", description="AdamW moments between rounds")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 autocast; 'auto' where the hardware has it"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:(\d+|all))?)$",
        description="'auto', 'cpu', 'cuda' or 'cuda:1'; 'cuda:all' spreads the base's layers over all GPUs",
    )
