"""`trifed flower init` refuses what a simulated run can do and sites cannot."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from trifed.cli.app import app
from trifed.common.errors import ConfigError, RunError

RUN = 'name = "tickets"\nrounds = 2\n[data]\nlabels = ["a", "b"]\n'


@pytest.mark.parametrize(
    ("more", "named"),
    [('keep = "best"\n', "keep"), ("patience = 2\n", "patience"), ('aggregation.groups = "given"\n', "members")],
)
def test_what_sites_cannot_do_is_refused_before_keys_are_made(tmp_path, more, named):
    (tmp_path / "run.toml").write_text(more + RUN)
    words = ["flower", "init", tmp_path / "new", "--host", "localhost", "--run", tmp_path / "run.toml"]
    told = CliRunner().invoke(app, [str(word) for word in words])
    assert told.exit_code != 0 and isinstance(told.exception, ConfigError | RunError)
    assert named in str(told.exception) and not (tmp_path / "new").exists()
