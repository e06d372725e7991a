"""Settings that a simulated run can have, and a run between sites cannot."""

from __future__ import annotations

from collections.abc import Iterator

from trifed.common.errors import ConfigError, RunError
from trifed.config.client_training import check_members
from trifed.config.metrics import ALWAYS
from trifed.config.run import RunConfig
from trifed.config.sealing import clients_of_round


def check_for_sites(config: RunConfig) -> None:
    """Check that sites can make a run: its groups have members, and nothing is chosen by validation data.

    Sites share no scores after a round, and compute accuracy and loss alone.

    Raises:
        ConfigError: Groups are to be given and are not.
        RunError: Something is chosen by validation data, or decided by another metric.
    """
    check_members(config)
    for chosen, setting in ((config.keep != "last", 'keep = "best"'), (config.patience is not None, "patience")):
        if chosen:
            raise RunError(
                f"{setting}: needs the clients' scores on validation data after a round, and sites share none "
                f"before the end; leave {setting.split()[0]} out of a run between sites"
            )
    if config.metric not in ALWAYS:
        raise RunError(
            f"metric: got '{config.metric}', but sites compute only accuracy and loss; leave it out of a run "
            "between sites"
        )


def check_new_run(config: RunConfig, source: str = "configuration") -> None:
    """Check that the first round of a new run can have as many sites as the run's settings need.

    A run that has begun is not checked: more sites may have joined than `deployment.clients`.

    Args:
        config: The settings.
        source: The file that they come from.

    Raises:
        ConfigError: A round has fewer sites than `deployment.quorum` or `sealing.at_least`.
    """
    problems = list(_too_many_needed(config))
    if problems:
        raise ConfigError(problems, source)


def _too_many_needed(config: RunConfig) -> Iterator[str]:
    """Yield a message for each setting that needs more sites than a round has."""
    needed, sealing = config.deployment, config.sealing
    asked = clients_of_round(config, needed.clients)
    limit, more = f"deployment.clients = {needed.clients}", "raise deployment.clients to the number of all sites"
    if asked < needed.clients:
        limit = f"participation = {config.participation:g} draws {asked} of {needed.clients} sites for a round"
        more = "raise participation"
    if needed.quorum > asked:
        yield (
            f"deployment.quorum: got {needed.quorum}, expected at most {asked}, because {limit}; round 1 would "
            f"have too few uploads, and the run would stop there. Lower deployment.quorum, or {more}"
        )
    if sealing.on and sealing.at_least > asked:
        lower = "Lower sealing.at_least, " if sealing.at_least > type(sealing)().at_least else ""
        yield (
            f"sealing.at_least: got {sealing.at_least}, expected at most {asked}, because {limit}; no round would "
            f"have a sum, and nothing would be shared. {lower}{more if lower else more.capitalize()}, or set "
            "sealing.on = false"
        )
