"""The methods that a site takes part in: a server names one, the site runs what is installed and allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trifed.config.run import DEFAULT_METHOD
from trifed.deployment.refusals import RefusalCode, RefusedError
from trifed.deployment.site_settings import SiteSettings
from trifed.methods import METHODS, ORIGINS, code_hash


def check_method(values: Mapping[str, Any], server_hash: object, site: SiteSettings) -> None:
    """Check the method that a run's settings name.

    Args:
        values: Settings of the run as the server sent them.
        server_hash: Hash of the code of the method at the server, see `code_hash`.
        site: The site's own settings.

    Raises:
        RefusedError: the method is not installed here, the site does not allow it, or its code differs.
    """
    table = values.get("method", {})
    name = str(table.get("name", DEFAULT_METHOD)) if isinstance(table, Mapping) else str(table)
    if name not in METHODS:
        raise RefusedError(
            RefusalCode.METHOD_UNKNOWN, f"method.name: got '{name}', which is not installed at {site.name}"
        )
    allowed = METHODS.keys() - ORIGINS.keys() if site.methods is None else site.methods
    if name not in allowed:
        raise RefusedError(
            RefusalCode.METHOD_NOT_ALLOWED,
            f"methods: {site.name} does not allow '{name}'; add it to `methods` if you trust its code",
        )
    own_hash = code_hash(METHODS[name])
    if server_hash != own_hash:
        raise RefusedError(
            RefusalCode.METHOD_MISMATCH,
            f"'{name}': its code here has the hash {own_hash}, at the server {server_hash!r}; install the same "
            f"version",
        )
