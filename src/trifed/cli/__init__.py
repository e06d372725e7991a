"""The command line. No logic.

::

    app       the whole command line; `run`, `demo`, `settings`      flags    arguments that several commands share
    models    `predict`, `evaluate`, `export`                        runs     `report`, `track`, `watch`, `privacy`
    audit, compare, cost                                             flower   `flower init`, `join`, …
"""


def main() -> None:
    """Run the command line, the entry point of the `trifed` script."""
    from trifed.cli.app import main as run

    run()
