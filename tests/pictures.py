"""Which tests draw: a run of the command line ends with a picture, which takes as long as a tiny run itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trifed.reports.comparison import plots
from trifed.reports.results import Source


def _draw_nothing(source: Source, target: Path) -> None:
    """Stand in for `plot_result`, and leave no file that a test could take for a picture."""


@pytest.fixture(autouse=True)
def pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave out the picture of each run of a test that has no mark `draws`.

    Fixtures of a module or a session draw, processes that a test starts draw, and so do `trifed report` and the
    functions that a test calls by name.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("draws") is None:
            patch.setattr(plots, "plot_result", _draw_nothing)
        yield
