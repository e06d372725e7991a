"""One run of a comparison in its own process: the folder is an argument, the configuration comes on stdin.

When the parent process ends, stdin is closed and this process ends too. A run's folder survives that at any
moment.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from trifed.common.errors import TrifedError
from trifed.config.run import make_config
from trifed.experiments.pool import MISTAKE
from trifed.experiments.runner import resume, run

ORPHANED = 3


def main() -> None:
    """Start or continue the run."""
    folder = Path(sys.argv[1])
    config = make_config(json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        if (folder / "config.toml").is_file():
            resume(folder)
        else:
            run(config, folder)
    except TrifedError as error:
        print(error, file=sys.stderr)
        sys.exit(MISTAKE)


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
