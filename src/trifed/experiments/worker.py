"""One run of a comparison in a process of its own: the folder is an argument, the configuration comes on stdin.

When whoever started it is gone, stdin ends and so does the process: the run's folder stands a kill at any moment.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from trifed.common.errors import TrifedError
from trifed.config.run import make_config
from trifed.experiments.runner import resume, run

MISTAKE, ORPHANED = 2, 3


def main() -> None:
    """Carry out or continue the run."""
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
