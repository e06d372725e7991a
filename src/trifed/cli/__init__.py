"""The command line: `app` builds it; every other file but `flags` holds one command or one group. No logic."""


def main() -> None:
    """Run the command line, the entry point of the `trifed` script."""
    from trifed.cli.app import main as run

    run()
