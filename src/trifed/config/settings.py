"""Settings of a run, one section for each table of its TOML file.

In this order: names of tasks and trackers, then `[model]`, `[training]`, `[wire]`, `[privacy]`, `[deployment]`.
The values that a setting may have stand before its table. The tables `[adapter]`, `[data]`, `[personalization]`
and `[aggregation]` are in the packages that use them; `[method]` and the settings without a table are in
`trifed.config.run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trifed.common.strict_settings import StrictSettings

MetricName = Literal[
    "f1_macro",
    "f1_weighted",
    "balanced_accuracy",
    "auroc",
    "average_precision",
    "log_loss",
    "brier",
    "calibration_error",
]
"""Metrics of a classifier."""
TextMetricName = Literal["perplexity", "exact_match", "rouge_l"]
"""Metrics of a model that generates text."""
TagMetricName = Literal["f1_entities"]
"""Metrics of a model that tags words."""
TaskName = Literal[
    "text-classification", "multi-label-classification", "text-regression", "image-classification", "image-text",
    "image-text-pairs", "causal-lm", "sequence-to-sequence", "image-text-to-text", "token-classification",
]  # fmt: skip
"""Name of a task; `trifed.tasks.TASKS` defines each one."""

WRITING: tuple[TaskName, ...] = ("causal-lm", "sequence-to-sequence", "image-text-to-text")
"""Tasks whose models generate text."""
UNLABELLED: tuple[TaskName, ...] = (*WRITING, "image-text-pairs")
"""Tasks without labels."""
TAGGING: tuple[TaskName, ...] = ("token-classification",)
"""Tasks with a tag for each word."""
CLASSIFYING: tuple[TaskName, ...] = ("text-classification", "image-classification", "image-text")
"""Tasks in which each example has one of several labels."""
TARGETS: tuple[TaskName, ...] = ("multi-label-classification", "text-regression")
"""Tasks whose labels are lists or numbers."""
NO_SINGLE_LABEL: tuple[TaskName, ...] = (*UNLABELLED, *TAGGING, *TARGETS)
"""Tasks in which an example has no single label that the model learns."""
NAMED_LABELS: tuple[TaskName, ...] = (*CLASSIFYING, *TAGGING, "multi-label-classification")
"""Tasks with a set of labels, which all sites have to name alike."""

TrackerName = Literal["tensorboard", "mlflow", "wandb"]

# -- [model]

BaseDtype = Literal["float32", "bfloat16", "int8", "nf4"]
QUANTISED: tuple[BaseDtype, ...] = ("int8", "nf4")
"""Formats of bitsandbytes: 8 or 4 bits for each weight of a linear layer, bfloat16 for all others."""

Pooling = Literal["mean", "cls", "pooler", "last"]
Augment = Literal["none", "flip", "flip-crop"]


class ModelSettings(StrictSettings):
    """The frozen base model."""

    name: str = Field(
        "demo",
        min_length=1,
        description="Base model: a folder, a hub name, or 'demo' for all-MiniLM-L6-v2 of the demo extra.",
    )
    dtype: BaseDtype = Field(
        "float32",
        description="Number format of the frozen base model; bitsandbytes provides int8 and nf4. Adapters are "
        "always float32.",
    )
    max_length: int = Field(128, ge=4, description="Largest number of tokens of an example; longer ones are cut.")
    pooling: Pooling = Field(
        "mean",
        description="Input of the head: the mean over tokens or patches, the first token, the model's own trained "
        "pooler, or the last token, for decoders such as Llama.",
    )
    template: str | None = Field(
        None,
        description="For language models: the text around a prompt, with {prompt} and {input}, or 'chat' for the "
        "tokenizer's chat template. Unset: an instruction template; for sequence-to-sequence the prompt alone.",
    )
    packing: bool = Field(
        True, description="For causal-lm: join texts and cut them into blocks of max_length tokens."
    )
    class_prompt: str = Field(
        "a photo of a {}.",
        description="For image-text: the sentence that describes a class, with {} in the place of its label.",
    )
    augment: Augment = Field(
        "none",
        description="Augmentation of training images: none, random mirroring, or random mirroring and cropping.",
    )
    target_mean: float | None = Field(
        None,
        allow_inf_nan=False,
        description="For text-regression: about the mean of the numbers, which is subtracted from them. Unset: 0.",
    )
    target_scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="For text-regression: about the standard deviation of the numbers, by which they are divided. "
        "Unset: 1.",
    )

    @field_validator("template")
    @classmethod
    def _template_has_the_prompt(cls, template: str | None) -> str | None:
        if template is not None and template != "chat" and "{prompt}" not in template:
            raise ValueError(f"got {template!r}, expected a text with {{prompt}} in it, or 'chat'")
        return template

    @field_validator("class_prompt")
    @classmethod
    def _sentence_has_the_label(cls, sentence: str) -> str:
        if "{}" not in sentence:
            raise ValueError(f"got {sentence!r}, expected a sentence with {{}} in the place of the label")
        return sentence


# -- [training]

ALL_GPUS = "cuda:all"
"""Value of `device` for a base model that is too large for one GPU."""


class TrainingSettings(StrictSettings):
    """Local training; the same for every client and method."""

    epochs: int = Field(1, ge=1, description="Passes over a client's training data in each round.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps in each round, instead of epochs.")
    batch_size: int = Field(16, ge=1, description="Examples in each optimiser step.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Examples that are computed at once. Fewer need less memory; the step stays the same. Unset: "
        "the whole batch.",
    )
    clients_at_once: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Clients of a simulated run that train at the same time: on a CPU in threads with a share of "
        "its cores each, and beyond that in the same forward and backward passes. More can save time, and need "
        "more memory; results differ by rounding errors. 'auto' depends on batch size, lengths, model and device.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass, which needs less memory and more time."
    )
    eval_batch_size: int = Field(
        32, ge=1, description="Examples that are evaluated at once. It changes time and memory, not results."
    )
    learning_rate: float = Field(3e-3, gt=0, allow_inf_nan=False, description="Learning rate of AdamW.")
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False, description="Weight decay of AdamW.")
    clip_norm: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Largest norm of a step's gradient; 0 sets no limit."
    )
    schedule: Literal["constant", "linear", "linear-each-round"] = Field(
        "constant",
        description="Learning rate: constant, falling linearly to 0 over the whole run, or falling linearly to 0 "
        "in each round, from its full value. A client that misses rounds has the rate of the others.",
    )
    warmup: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the run's steps in which the learning rate rises from 0; with 'linear-each-round' "
        "of each round's steps.",
    )
    optimizer_state: Literal["keep", "reset"] = Field(
        "keep", description="Keep AdamW's moments from one round to the next, or reset them."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Precision of training: float32, or bfloat16 autocast. 'auto' uses bfloat16 where the "
        "hardware supports it; on other hardware 'bf16' can take many times as long as 'fp32'.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:(\d+|all))?)$",
        description="'auto', 'cpu', 'cuda' or 'cuda:1'. 'cuda:all' spreads the base model's layers over all GPUs.",
    )
    class_weights: Literal["balanced"] | dict[str, float] | None = Field(
        None,
        description="Weight of each label in the training loss: a table of labels and numbers (others count 1), "
        "or 'balanced', by which all labels of a client weigh the same. Unset: all examples weigh the same.",
    )

    def __hash__(self) -> int:
        """Return a hash: pydantic's own would fail for a table of weights."""
        return hash(self.model_dump_json())

    @field_validator("class_weights", mode="before")
    @classmethod
    def _class_weights_are_numbers(cls, given: Any) -> Any:
        if given is None or given == "balanced":
            return given
        expected = "expected 'balanced' or a table of labels and numbers, such as {rare = 4.0}"
        if not isinstance(given, Mapping) or not given:
            raise ValueError(f"got {given!r}, {expected}")
        for label, weight in given.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not 0 <= weight <= 1e6:
                raise ValueError(f"got {weight!r} for the label {label!r}, expected a number from 0 to 1,000,000")
        if not any(given.values()):
            raise ValueError("got 0 for every label; give at least one label a number above 0")
        return {str(label): float(given[label]) for label in sorted(given, key=str)}


# -- [wire]

Bits = Literal[1, 2, 4, 8, 32]
"""Bits for each number that is sent."""


class WireSettings(StrictSettings):
    """Compression of uploads and downloads."""

    bits: Bits = Field(
        32,
        description="Bits for each number that is sent. Below 32, differences are sent, and rounding errors are "
        "added to the next message.",
    )


# -- [privacy]

Guarding = Literal["refuse", "warn", "allow"]
"""Reaction of a guard to an upload or a summary that would reveal single examples."""
GUARDS = {"few_tokens", "small_components"}
"""Settings of `privacy` that change no results: each client decides on its own what it refuses to send."""


class SummaryPrivacy(StrictSettings):
    """Noise on the summary of its data that a client sends before round 1; protects each training example."""

    epsilon: float = Field(
        gt=0.01,
        le=1000,
        description="ε of all summaries of a client together, for one training example added or removed.",
    )
    delta: float = Field(1e-5, gt=0, le=0.1, description="δ of all summaries of a client together.")
    releases: int = Field(
        1,
        ge=1,
        description="Number of summaries that share ε. Add one for each time that a client's data may change "
        "during the run.",
    )


class UpdatePrivacy(StrictSettings):
    """Clipping and noise on the update that a client sends in each round; protects all its updates together."""

    epsilon: float = Field(
        gt=0.01, le=1000, description="ε of all rounds together, for all of one client's updates added or removed."
    )
    delta: float = Field(1e-5, gt=0, le=0.1, description="δ of all rounds together.")
    clip: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Largest L2 norm of the update that a client sends in a round; longer ones are scaled down.",
    )


class TrainingPrivacy(StrictSettings):
    """Noise on every step of local training (DP-SGD); protects each training example."""

    epsilon: float = Field(
        gt=0.01,
        le=1000,
        description="ε of all training steps of a run, for one training example added or removed.",
    )
    delta: float = Field(1e-5, gt=0, le=0.1, description="δ of all training steps of a run.")
    clip: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Largest L2 norm of the gradient of one example; longer ones are scaled down.",
    )
    rate: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Probability with which each example is part of a training step. It is public.",
    )


class PrivacySettings(StrictSettings):
    """Differential privacy, and guards against uploads that reveal single examples."""

    summary: SummaryPrivacy | None = Field(
        None, description="Noise on the summary that a client sends before round 1. Unset: no noise."
    )
    update: UpdatePrivacy | None = Field(
        None, description="Clipping and noise on the update that a client sends in each round. Unset: no noise."
    )
    training: TrainingPrivacy | None = Field(
        None, description="Noise on every training step (DP-SGD). Unset: no noise."
    )

    few_tokens: Guarding = Field(
        "refuse",
        description="Reaction to an upload that depends on fewer than 2 x rank different tokens or patches: the "
        "client refuses to send it, sends it with a warning, or sends it.",
    )
    small_components: Guarding = Field(
        "refuse",
        description="Reaction to a summary with a mean and variance of fewer than 20 examples: the client "
        "refuses to send it, sends it with a warning, or sends it.",
    )

    @property
    def on(self) -> bool:
        """True if there is noise on summaries, updates or training steps."""
        return any((self.summary, self.update, self.training))


# -- [deployment]


class DeploymentSettings(StrictSettings):
    """Runs between sites: the clients that are needed, and time limits. A simulated run does not use them."""

    clients: int = Field(2, ge=1, description="Number of clients that must be connected before round 1 starts.")
    quorum: int = Field(
        1, ge=1, description="Number of uploads that a round needs. With fewer the run stops; it can be resumed."
    )
    late: bool = Field(True, description="Let clients join after round 1 has started.")
    bound: bool = Field(
        True,
        description="Bind a client's name to the key of the node that first used it, so that no other can.",
    )
    join_seconds: float = Field(600, gt=0, description="Seconds that the server waits for clients before round 1.")
    round_seconds: float = Field(
        3600, gt=0, description="Seconds until a round closes. Clients that have not replied by then are skipped."
    )
