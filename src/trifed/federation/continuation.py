"""Check the changed settings of a run that continues: of those that change its results only `rounds` may differ.

A run that ended early for want of progress continues with more `patience`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trifed.common.errors import RunError
from trifed.config.run import RunConfig
from trifed.config.run_identity import NO_NUMBERS
from trifed.federation.best_round import EvaluatedRounds
from trifed.federation.kept_checkpoints import CHECKPOINT, kept_checkpoint
from trifed.federation.run_folder import DAMAGED, RunFolder
from trifed.federation.state_tensors import open_tensors

if TYPE_CHECKING:
    from torch import Tensor

PLACES = {"data.source"}
"""Settings that name a place of the data; the data themselves are compared by a hash of their content."""
SHOWN = 5
"""Most settings that a message names."""

Values = Mapping[str, Any]


def other_rounds(folder: RunFolder, config: RunConfig, from_round: int | None = None) -> bool:
    """Return whether a run shall continue to another number of rounds than its checkpoint was made for.

    Also True if it ended early and has more patience now.

    Args:
        folder: The run.
        config: Its configuration now.
        from_round: The round that it goes back to first.

    Raises:
        RunError: Settings that change the numbers differ from those of the checkpoint, fewer rounds are asked for
            than are done, or the number of rounds was part of a plan: of the learning rate's schedule or of noise.
    """
    facts = folder.facts(CHECKPOINT if from_round is None else kept_checkpoint(folder.path, from_round))
    path, before = folder.path / "config.toml", facts.get("settings")
    if not facts or facts["identity"].split()[0] == config.run_id():
        return bool(facts) and from_round is None and _has_more_patience(folder, config, facts["round"])
    if before is None:
        raise RunError(
            f"{path}: settings changed since this run began, and an earlier version did not keep which; put them "
            "back, or start a new run under another --name"
        )
    changed = _differences(before, config.model_dump(mode="json"))
    was, now = changed.pop("rounds", (config.rounds, config.rounds))
    if config.keep == "last":
        changed.pop("metric", None)
    if changed:
        named = [f"{name} (was {old!r}, is {new!r})" for name, (old, new) in changed.items()]
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        raise RunError(
            f"{path}: settings changed since this run began: {', '.join(named[:SHOWN])}{more}; put them back, or "
            "start a new run under another --name"
        )
    if now == was:
        return False
    if now < facts["round"]:
        raise RunError(f"{path}: got rounds = {now}, expected at least {facts['round']}, the rounds that are done")
    of_the_run = config.training.schedule != "linear-each-round"  # each round has its own schedule otherwise
    planned = of_the_run and (config.training.schedule != "constant" or config.training.warmup)
    if planned or config.privacy.on:
        plan = "the noise of [privacy] was" if config.privacy.on else "training.schedule and training.warmup were"
        raise RunError(
            f"{path}: got rounds = {now}, but {plan} planned for {was} rounds, so that this run cannot continue "
            f"with another number; put {was} back, or start a new run under another --name"
        )
    return True


def _has_more_patience(folder: RunFolder, config: RunConfig, done: int) -> bool:
    """Return whether a run that ended early after `done` rounds would not end there by the present settings."""
    events = folder.events()
    if done >= config.rounds or not any(event["event"] == "ended early" for event in events):
        return False
    rounds = EvaluatedRounds(config, config.composed_method().evaluated_model)
    rounds.read(events)
    return rounds.end() is None


def set_rounds(folder: RunFolder, config: RunConfig) -> None:
    """Let the checkpoint belong to the configuration's number of rounds; the run is not finished any more.

    Call `other_rounds` first, which says whether that is possible.

    Raises:
        RunError: The checkpoint is damaged.
    """
    facts = folder.facts()
    _, *data_and_model = facts["identity"].split()
    identity = " ".join([config.run_id(), *data_and_model])
    (folder.path / "summary.json").unlink(missing_ok=True)
    facts = {**facts, "identity": identity, "settings": config.model_dump(mode="json")}
    with open_tensors(folder.path / CHECKPOINT, DAMAGED) as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    folder.write_tensors(CHECKPOINT, tensors, {"trifed": json.dumps(facts)}, durable=True)


def _differences(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    """Return old and new value of each setting that differs, by its dotted name."""
    old, new = _flat(before), _flat(after)
    both = {name for name in old if name in new}
    both |= {name for name in {**old, **new} if name.startswith("client_settings.")}  # tables may come and go
    counted = [n for n in {**old, **new} if n in both and n.split(".")[0] not in NO_NUMBERS and n not in PLACES]
    changed = {name: (old.get(name), new.get(name)) for name in counted}
    return {name: values for name, values in changed.items() if json.dumps(values[0]) != json.dumps(values[1])}


def _flat(values: Values, above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return flat
