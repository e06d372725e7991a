"""Leaving a run for good: a mark in the site's folder, which its node reports to the server."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from trifed.common.errors import RunError
from trifed.common.files import whole_file
from trifed.deployment.site_settings import LEFT, read_site_settings


def leave(site: Path) -> str:
    """Mark a site's folder, as `write_site_folder` makes it, as left; return the site's name.

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
