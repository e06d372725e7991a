"""The settings that make up a run's identity.

Two runs with one identity have the same results on the same data. A checkpoint is continued only with its own
identity, so the identity of a run must not change when a later version has more settings. Therefore the settings
of version 0.1.0 always count, and a setting that was added later counts where it is not at its default. A new
setting needs no entry here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from trifed.config.settings import GUARDS

if TYPE_CHECKING:
    from trifed.config.run import RunConfig

NO_NUMBERS = {
    "name", "baselines", "baseline_rates", "metrics", "controls", "trackers", "deployment", "keep_checkpoints",
    "patience", "generated_answers",
}  # fmt: skip
"""Settings that change no results; `patience` changes their number alone, as more rounds after the end do."""

VERSION_0_1_0: dict[str, str] = {
    "": "task seed rounds participation evaluate_every model adapter data method training wire privacy",
    "model": "name dtype max_length pooling template packing class_prompt augment",
    "adapter": "rank alpha dropout towers target_modules",
    "data": "source hub_split hub_subset text text_pair image prompt input answer messages label labels test "
    "valid_fraction test_fraction max_examples drop_duplicates skip_broken allow_single_class "
    "allow_empty_clients clients",
    "data.clients": "split count alpha labels_per_client column sizes min_examples max_examples",
    "training": "epochs steps batch_size micro_batch gradient_checkpointing eval_batch_size learning_rate "
    "weight_decay clip_norm schedule warmup optimizer_state precision device",
    "wire": "bits",
    "privacy": "summary update training",
    "privacy.summary": "epsilon delta releases",
    "privacy.update": "epsilon delta clip",
    "privacy.training": "epsilon delta clip rate",
}
"""Settings of version 0.1.0 that change results, by table."""


def identity_of_settings(
    config: RunConfig, parts: Mapping[str, Mapping[str, Any]], own_parts: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return twelve hex digits that depend on every setting that changes results.

    `privacy` counts only if there is noise, parts only where they differ from the method's own, and the deciding
    metric only if it chooses the round whose models are the result. Without `evaluate_every` the identity is that
    of 1, which was the default of version 0.1.0: how often a run is evaluated does not change what it trains.

    Args:
        config: The settings.
        parts: Its tables of parts.
        own_parts: Those tables as the method has them.
    """
    left_out = {**not_in_identity(config), **dict.fromkeys(NO_NUMBERS, True)}
    left_out["privacy"] = {**left_out["privacy"], **dict.fromkeys(GUARDS, True)} if config.privacy.on else True
    for table, own in own_parts.items():
        usual = [name for name, value in own.items() if parts[table][name] == value]
        left_out[table] = True if len(usual) == len(own) else dict.fromkeys(usual, True)
    if not config.sealing.on:
        left_out["sealing"] = True
    if config.keep == "last":
        left_out["metric"] = True
    counted = config.model_copy(update={"evaluate_every": config.evaluate_every or 1})
    return hashlib.sha256(counted.model_dump_json(exclude=left_out).encode()).hexdigest()[:12]


def not_in_identity(settings: BaseModel, table: str = "") -> dict[str, Any]:
    """Return the settings that do not count for the identity, nested as pydantic's `exclude` takes them.

    Args:
        settings: The settings of a run, or of one of its tables.
        table: Dotted name of that table; empty for the whole run.
    """
    left_out: dict[str, Any] = {}
    always = VERSION_0_1_0.get(table, "").split()
    for name, field in type(settings).model_fields.items():
        value, dotted = getattr(settings, name), f"{table}.{name}".lstrip(".")
        if name not in always and value == field.get_default(call_default_factory=True):
            left_out[name] = True
        elif isinstance(value, BaseModel) and dotted in VERSION_0_1_0:
            left_out[name] = not_in_identity(value, dotted)
    return left_out
