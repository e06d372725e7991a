"""`trifed flower init` seals a run, unless its file has `sealing.on`, or it cannot be sealed."""

from __future__ import annotations

from typing import Any

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import ConfigError
from trifed.config.run import RunConfig, make_config
from trifed.config.sealing import clients_of_round

OFF = "not sealed: the server receives each site's upload. "


def sealed_by_default(config: RunConfig) -> tuple[RunConfig, str]:
    """Return a run's settings, sealed if its file does not say otherwise, and a sentence for the operator.

    A run that is sealed here needs `sealing.at_least` uploads a round, if its file has no `deployment.quorum`.

    Args:
        config: The settings as they were read, so that it is known which ones were given.
    """
    least, sites = config.sealing.at_least, clients_of_round(config, config.deployment.clients)
    if "on" in config.sealing.model_fields_set:
        return config, _sealed(config) if config.sealing.on else OFF + "The run's file has sealing.on = false"
    if sites < least:
        return config, (
            f"{OFF}A sealed sum needs {least} sites, and a round has {sites} (deployment.clients, participation); "
            "if there are more sites, set deployment.clients to the number of all"
        )
    if config.privacy.update:
        return config, (
            f"{OFF}In a sealed run each site adds only a share of the noise of privacy.update; to choose "
            "that, set sealing.on = true"
        )
    values: dict[str, Any] = {"sealing": {"on": True}}
    if "quorum" not in config.deployment.model_fields_set:
        values["deployment"] = {"quorum": least}
    try:
        made = make_config(deep_merge(config.model_dump(mode="json", exclude_none=True), values))
    except ConfigError as error:
        return config, f"{OFF}With sealing.on = true this run is refused: {error.problems[0]}"
    return made, _sealed(made)


def _sealed(config: RunConfig) -> str:
    return (
        f"sealed: the server receives only sums of at least {config.sealing.at_least} sites' uploads "
        "(sealing.on = false turns this off). Every site needs the list of all sites' keys: "
        "trifed flower sites writes it"
    )
