"""`trifed flower init` seals a run unless its file has `sealing.on`, or a reason prevents it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import ConfigError
from trifed.config.run import RunConfig, make_config
from trifed.config.sealing import clients_of_round, sealing_notes
from trifed.deployment.sealed_lists import notes_of_settings
from trifed.methods import METHODS
from trifed.methods.aggregation import AggregationSettings

OFF = "not sealed: the server receives each site's upload. "


def sealed_by_default(config: RunConfig) -> tuple[RunConfig, str]:
    """Return a run's settings, sealed if its file leaves it open and nothing stands against it.

    A run that is sealed here needs `sealing.at_least` uploads a round, if its file has no `deployment.quorum`.

    Args:
        config: The settings as they were read, so that it is known which ones were given.

    Returns:
        The settings, and for the operator whether the run is sealed and why, with a line for each effect.
    """
    if "on" in config.sealing.model_fields_set:
        return config, _sealed(config) if config.sealing.on else OFF + "The run's file has sealing.on = false."
    if against := next(_against(config), ""):
        return config, f"{OFF}{against}. To seal it all the same, set sealing.on = true."
    values: dict[str, Any] = {"sealing": {"on": True}}
    if "quorum" not in config.deployment.model_fields_set:
        values["deployment"] = {"quorum": config.sealing.at_least}
    try:
        made = make_config(deep_merge(config.model_dump(mode="json", exclude_none=True), values))
    except ConfigError as error:
        return config, f"{OFF}With sealing.on = true this run is refused: {error.problems[0]}."
    return made, _sealed(made)


def _against(config: RunConfig) -> Iterator[str]:
    """Yield reasons for which a run is not sealed unless its file says so."""
    least, sites = config.sealing.at_least, clients_of_round(config, config.deployment.clients)
    if sites < least:
        yield (
            f"A sealed sum needs {least} sites, and a round has {sites} (deployment.clients, participation); if "
            "there are more sites, set deployment.clients to the number of all"
        )
    if config.privacy.update:
        yield "In a sealed run each site adds only a share of the noise of privacy.update"
    own = config.aggregation
    usual = AggregationSettings(**METHODS[config.method.name].defaults.get("aggregation", {}))
    lost = [name for name in ("norm_bound", "most_examples") if getattr(own, name) != getattr(usual, name)]
    lost += ["weights"] if own.weights == "examples" != usual.weights else []
    for name in lost:
        yield f"aggregation.{name} has no effect in a sealed run"
    if own.groups == "given" and config.participation < 1:
        yield (
            f"A sealed sum needs {least} sites of one list of aggregation.members in a round, and a round may not "
            "have them"
        )


def _sealed(config: RunConfig) -> str:
    needed = config.deployment
    lines = [
        f"sealed: the server receives only sums of at least {config.sealing.at_least} sites' uploads "
        "(sealing.on = false turns this off).",
        f"A round needs {needed.quorum} sites that are ready (deployment.quorum), otherwise the run stops.",
        "Every site needs the list of all sites' keys: trifed flower sites writes it when the .pub files are in "
        "keys/, and trifed flower trust stores it at a site.",
    ]
    notes = [*sealing_notes(config, needed.clients), *notes_of_settings(config)]
    return "\n".join([*lines, *(f"- {note}." for note in notes)])
