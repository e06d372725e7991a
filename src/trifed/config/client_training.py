"""`[client_settings.NAME]`: training settings of one client, where they differ from `[training]`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainSerializer

from trifed.common.errors import ConfigError, nearest
from trifed.common.strict_settings import StrictSettings
from trifed.config.settings import TrainingSettings

if TYPE_CHECKING:
    from trifed.config.run import RunConfig

MOST_NAMED = 20
"""The most clients that a message names."""


class ClientTraining(StrictSettings):
    """Training settings of one client; those that are unset are those of `[training]`."""

    epochs: int | None = Field(
        None, ge=1, description="Passes over this client's training data in each round, also instead of its steps."
    )
    steps: int | None = Field(None, ge=1, description="This client's optimiser steps in each round.")
    batch_size: int | None = Field(None, ge=1, description="Examples in each of this client's optimiser steps.")
    learning_rate: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="This client's learning rate of AdamW."
    )
    weight_decay: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="This client's weight decay of AdamW."
    )
    clip_norm: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Largest norm of this client's gradients; 0: no limit."
    )

    def over(self, training: TrainingSettings) -> TrainingSettings:
        """Return the client's training settings, given those of all clients."""
        own = self.model_dump(exclude_none=True)
        if self.epochs is not None:
            own.setdefault("steps", None)  # the client's epochs hold, also where the others have steps
        return training.model_copy(update=own)


def _what_is_set(settings: dict[str, ClientTraining]) -> dict[str, dict[str, Any]]:
    """Write only what is set, in one order: a run's identity depends on nothing else."""
    return {name: settings[name].model_dump(exclude_none=True) for name in sorted(settings)}


ClientTables = Annotated[dict[str, ClientTraining], PlainSerializer(_what_is_set)]
"""The clients' tables by name."""

NOISED = ("epochs", "steps", "batch_size")
"""Settings on which the noise of `privacy.training` depends, which is computed for all clients alike."""


def noised_problems(settings: Mapping[str, ClientTraining]) -> list[str]:
    """Return a message for each client's setting that cannot be combined with `privacy.training`."""
    return [
        f"client_settings.{client}.{name}: with privacy.training all clients have the same steps, for which the "
        f"noise is computed; leave it out"
        for client, own in settings.items()
        for name in NOISED
        if getattr(own, name) is not None
    ]


def check_members(config: RunConfig, clients: Iterable[str] | None = None) -> None:
    """Check the groups that are given in `aggregation.members`.

    Args:
        config: The settings.
        clients: Names of all clients; None where more can join.

    Raises:
        ConfigError: Groups are to be given and are not, or a client in them does not exist.
    """
    chosen = config.aggregation
    if chosen.groups == "given" and not chosen.members:
        raise ConfigError(
            ["aggregation.members: missing, with groups = 'given'; give lists of clients' names, such as "
             '[["a", "b"], ["c", "d"]]']
        )  # fmt: skip
    if clients is not None:
        _check_known("aggregation.members: {}", [name for group in chosen.members for name in group], clients)


def absent_members(config: RunConfig, clients: Iterable[str]) -> list[str]:
    """Return the names in `aggregation.members` that no client has, sorted."""
    return sorted({name for group in config.aggregation.members for name in group} - set(clients))


def check_names(settings: Mapping[str, ClientTraining], clients: Iterable[str]) -> None:
    """Check that every client with settings of its own exists.

    Raises:
        ConfigError: Some do not; it names the nearest client of each.
    """
    _check_known("client_settings.{}", settings, clients)


def _check_known(setting: str, names: Iterable[str], clients: Iterable[str]) -> None:
    """Raise ConfigError for names that are no client's. `setting`: what is written before the message."""
    known = list(clients)
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    problems = [
        f"{setting.format(name)}: no client has this name{nearest(name, known)}; the clients are "
        f"{', '.join(known[:MOST_NAMED])}{more}"
        for name in names
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)
