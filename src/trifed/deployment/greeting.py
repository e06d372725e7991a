"""The greeting of a client by the server: the run's name and those settings that concern both sides.

In a sealed run the masks depend on these settings, so a sum opens only if all its sites were greeted alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from trifed.config.run import RunConfig
from trifed.config.run_identity import NO_NUMBERS
from trifed.config.settings import GUARDS
from trifed.deployment.protocol import AT_THE_SERVER, LEFT_AT_HOME, Request
from trifed.methods import METHODS, code_hash


def greeting(run: str, config: RunConfig) -> Request:
    """Return the request that greets a client: the run's name and settings, and a hash of its method's code."""
    method_code = code_hash(METHODS[config.method.name])
    return Request("hello", {"run": run, "config": settings_to_send(config), "method_code": method_code})


def settings_to_send(config: RunConfig) -> str:
    """Write a run's settings as JSON, without those that belong to the clients or to the server alone."""
    values: dict[str, Any] = config.model_dump(mode="json", exclude_none=True, exclude=AT_THE_SERVER)
    values["data"] = {name: value for name, value in values["data"].items() if name not in LEFT_AT_HOME}
    values["aggregation"].pop("members", None)  # the other clients' names
    if not config.sealing.on:
        values.pop("sealing")
    privacy = {name: value for name, value in values.pop("privacy").items() if name not in GUARDS}
    return json.dumps({**values, "privacy": privacy} if privacy else values)


def settings_taken(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the settings that a server has sent which a site takes from it."""
    taken = {name: value for name, value in values.items() if name not in AT_THE_SERVER}
    if isinstance(taken.get("data"), dict):
        taken["data"] = {name: value for name, value in taken["data"].items() if name not in LEFT_AT_HOME}
    return taken


def digest_of_settings(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the settings that a server has sent, in hex, as far as they can change a number.

    A site's own settings do not count: they differ between the sites of an honest run.
    """
    counted = {name: value for name, value in settings_taken(values).items() if name not in NO_NUMBERS}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()
