"""What a client says of itself, in a TOML file that never leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trifed.common.errors import ConfigError
from trifed.config.run import read_toml
from trifed.config.settings import PrivacySettings
from trifed.config.validation_errors import validation_messages

LEFT = "left.json"
"""In a client's folder: it has left for good."""
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"


class SiteSettings(BaseModel):
    """A client's own part of a run, which the server never sees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=f"^{NAME_PATTERN}$", description="in reports; unique")
    data: dict[str, Any] = Field(description="as [data] of a run: source, and columns where they differ")
    model: str | None = Field(None, description="where the base model lies here, if elsewhere than in the run")
    device: str | None = Field(None, description="as training.device")
    base: str = Field(
        "", pattern=r"^([0-9a-f]{16,64})?$", description="sha256 of the base, 16 digits or more; no other is taken"
    )
    privacy: PrivacySettings = PrivacySettings()
    folder: Path = Field(Path("trifed-node"), description="where runs keep adapters and state")
    worse_by: float | None = Field(
        None, ge=0, description="nats of validation loss beyond which what is received is not taken; none: always"
    )
    others_at_most: float = Field(
        1.0, ge=0, le=1, description="the largest share that others get in what this client goes on from"
    )
    at_least: int = Field(1, ge=1, description="clients in a round, this one too, without which it takes no part")
    idle_seconds: float = Field(
        900, gt=0, description="after which the process with the model ends; it comes again"
    )
    tell_scores: bool = Field(
        False, description="accuracy and loss on held-out data go to the server; never in a run with [privacy]"
    )
    most_epsilon: float | None = Field(
        None,
        gt=0,
        description="the largest ε of a whole run, one training example added or removed, that this client takes "
        "part for; none: any run, also without [privacy]",
    )


def site_settings(values: Mapping[str, Any], source: str) -> SiteSettings:
    """A client's settings, checked; ConfigError with all mistakes, which are said to be in `source`."""
    try:
        return SiteSettings.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(validation_messages(error, SiteSettings), source) from error


def read_site_settings(path: Path) -> SiteSettings:
    """A client's settings from its TOML file; paths in it are as seen from that file's folder.

    Raises:
        ConfigError: no such file, or mistakes in it, all of them.
    """
    settings = site_settings(read_toml(path), str(path))
    here = path.absolute().parent
    data = dict(settings.data)
    if isinstance(data.get("source"), str) and (here / data["source"]).exists():
        data["source"] = str(here / data["source"])
    return settings.model_copy(update={"folder": here / settings.folder.expanduser(), "data": data})
