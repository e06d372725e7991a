"""Settings that a simulated run can have, and a run between sites cannot."""

from __future__ import annotations

from trifed.common.errors import RunError
from trifed.config.client_training import check_members
from trifed.config.metrics import ALWAYS
from trifed.config.run import RunConfig


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
            f"metric: got '{config.metric}', but sites compute accuracy and loss alone; leave it out of a run "
            "between sites"
        )
