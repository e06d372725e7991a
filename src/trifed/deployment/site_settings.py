"""A site's own settings, in a TOML file that never leaves it, and its mark that it has left a federation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trifed.common.errors import ConfigError, RunError
from trifed.common.files import whole_file
from trifed.config.client_training import ClientTraining
from trifed.config.settings import PrivacySettings
from trifed.config.toml_files import read_toml
from trifed.config.validation_errors import validation_messages

LEFT = "left.json"
"""File in a site's folder after it has left for good."""
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"


class SiteSettings(BaseModel):
    """The site's own part of a run's settings; the server never gets it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=f"^{NAME_PATTERN}$", description="The client's name in reports; each client needs its own."
    )
    data: dict[str, Any] = Field(
        description="The site's [data]: its source, and its columns where they differ from the run's."
    )
    model: str | None = Field(
        None, description="Folder or name of the base model at this site, if it differs from the run's."
    )
    device: str | None = Field(None, description="Device to train on, as in training.device.")
    training: ClientTraining = ClientTraining()
    base: str = Field(
        "",
        pattern=r"^([0-9a-f]{16,64})?$",
        description="At least 16 digits of the base model's sha256; any other model is refused.",
    )
    methods: list[str] | None = Field(
        None,
        description="Methods that the site takes part in. Unset: those that come with trifed, and no other.",
    )
    privacy: PrivacySettings = PrivacySettings()
    folder: Path = Field(Path("trifed-node"), description="Folder for the adapters and states of all runs.")
    worse_by: float | None = Field(
        None,
        ge=0,
        description="Nats of validation loss by which received values may be worse; unset: any are accepted.",
    )
    others_at_most: float = Field(
        1.0, ge=0, le=1, description="Largest share of received values in the tensors that training starts from."
    )
    at_least: int = Field(
        1, ge=1, description="Least number of clients in a round, this one included, for it to take part."
    )
    idle_seconds: float = Field(
        900,
        gt=0,
        description="Seconds without a request after which the process with the model ends; the next starts it.",
    )
    key: Path | None = Field(
        None,
        description="The client's private key, which signs its public key of each sealed round. Unset: NAME.key "
        "beside node.toml.",
    )
    sites: Path = Field(
        Path("sites.pub"),
        description="List of all clients' public keys, which `trifed flower trust` stores. Without it the client "
        "refuses sealed runs.",
    )
    sealed_only: bool = Field(
        False, description="Take part only in sealed runs, in which the server sees only sums."
    )
    columns: list[str] | None = Field(
        None,
        description="Columns of the data that a run may read. Unset: those that the first run here has read.",
    )
    labels: list[str] | None = Field(
        None,
        description="Labels that a run has to name, in this order. Unset: those of the first run here.",
    )
    may_go_back: bool = Field(
        False,
        description="Go back to an earlier round if the server does, for example after a poisoned one. Otherwise "
        "the client takes no part until the run has passed the rounds that it has done.",
    )
    keep_rounds: int = Field(
        3,
        ge=1,
        description="Number of rounds before the last one whose states are kept, so that the client can go back.",
    )
    gradients: bool = Field(
        False,
        description="Send an exact gradient of the data before round 1, if the run's method asks for it. Single "
        "examples can be reconstructed from a gradient.",
    )
    raw_summaries: bool = Field(
        False,
        description="Send means and variances of the base model's features as they are, if the run's method asks "
        "for them (method.summary = 'raw'). Otherwise such a run is refused.",
    )
    tell_examples: bool = Field(
        True,
        description="Report the number of training examples, by which the server weighs uploads. Otherwise the "
        "client weighs as one example, and methods that send label counts without noise are refused.",
    )
    tell_scores: bool = Field(
        False,
        description="Report accuracy and loss on held-out data to the server; never in a run with [privacy].",
    )
    most_epsilon: float | None = Field(
        None,
        gt=0,
        description="Largest ε of a whole run, one training example added or removed, that this client accepts; "
        "unset: any run, also without [privacy].",
    )


def site_settings(values: Mapping[str, Any], source: str) -> SiteSettings:
    """Return checked settings; a ConfigError lists all mistakes, and names `source` as their place."""
    try:
        return SiteSettings.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(validation_messages(error, SiteSettings), source) from error


def read_site_settings(path: Path) -> SiteSettings:
    """Return the settings in a TOML file; paths in it are relative to the file's folder.

    Raises:
        ConfigError: no such file, or mistakes in it, all of them.
    """
    settings = site_settings(read_toml(path), str(path))
    here = path.absolute().parent
    data = dict(settings.data)
    if isinstance(data.get("source"), str) and (here / data["source"]).exists():
        data["source"] = str(here / data["source"])
    paths = {
        "folder": here / settings.folder.expanduser(),
        "key": here / (settings.key or Path(f"{settings.name}.key")).expanduser(),
        "sites": here / settings.sites.expanduser(),
    }
    return settings.model_copy(update={**paths, "data": data})


def leave(site: Path) -> str:
    """Mark a site's folder as left, which its node reports to the server; return the site's name.

    Raises:
        RunError: It is no site's folder, the site has left already, or nothing can be written there.
        ConfigError: The site's settings cannot be read.
    """
    if not (site / "node.toml").is_file():
        raise RunError(f"{site}: no site's folder (it has no node.toml); at the server name the --client too")
    settings = read_site_settings(site / "node.toml")
    if (settings.folder / LEFT).is_file():
        raise RunError(f"{site}: {settings.name} has left already")
    try:
        settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with whole_file(settings.folder / LEFT) as path:
            path.write_text(json.dumps({"since": datetime.now(UTC).isoformat(timespec="seconds")}), "utf-8")
    except OSError as error:
        raise RunError(f"{settings.folder}: cannot be written ({error.strerror})") from error
    return settings.name
