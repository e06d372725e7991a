"""`trifed flower init` refuses what a simulated run can do and sites cannot."""

from __future__ import annotations

import pytest
import tomli_w
from typer.testing import CliRunner

from trifed.cli.app import app
from trifed.common.errors import ConfigError, RunError
from trifed.config.run import make_config
from trifed.deployment.run_checks import check_new_run
from trifed.deployment.site_transport import SiteTransport
from trifed.federation.preparation import quiet
from trifed.federation.run_folder import RunFolder

RUN = 'name = "tickets"\nrounds = 2\n[data]\nlabels = ["a", "b"]\n'


@pytest.fixture
def site_transport(tmp_path):
    """`site_transport({...})`: the server's side of a new run, which nobody answers."""

    class Nobody:
        nodes, ask = set, dict

    def make(values):
        config = make_config({**values, "data": {**values["data"], "source": "each site's own"}})
        return SiteTransport(config, Nobody(), RunFolder.create(tmp_path / "run"), quiet)

    return make


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


FOUR = {"clients": 4}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"deployment": {**FOUR, "quorum": 5}}, ["quorum: got 5, expected at most 4"]),
        ({"deployment": {"quorum": 3}}, ["quorum: got 3, expected at most 2"]),
        ({"deployment": {**FOUR, "quorum": 3}, "participation": 0.5}, ["quorum: got 3, expected at most 2"]),
        ({"deployment": FOUR, "sealing": {"on": True, "at_least": 5}}, ["at_least: got 5, expected at most 4"]),
        ({"deployment": FOUR, "sealing": {"on": True}, "participation": 0.5},
         ["at_least: got 3, expected at most 2"]),
        ({"deployment": {"clients": 2, "quorum": 9}, "sealing": {"on": True}},
         ["quorum: got 9, expected at most 2", "at_least: got 3, expected at most 2"]),
    ],
)  # fmt: skip
def test_a_run_that_needs_more_sites_than_a_round_has_is_refused(tmp_path, changes, named, site_transport):
    """It would wait for all sites, and then stop in round 1, or share nothing in any round."""
    values = {"name": "tickets", "data": {"labels": ["a", "b"]}, **changes}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(values))
    words = ["flower", "init", tmp_path / "new", "--host", "localhost", "--run", tmp_path / "run.toml"]
    told = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(told.exception, ConfigError) and told.exception.source == str(tmp_path / "run.toml")
    for text, beginning in zip(told.exception.problems, named, strict=True):
        assert text.partition(".")[2].startswith(beginning)
        assert ("participation" in text) == ("participation" in changes)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError) as refused:
        site_transport(values).run()
    assert refused.value.problems == told.exception.problems


@pytest.mark.parametrize(
    "changes",
    [
        {"deployment": {**FOUR, "quorum": 4}},
        {"deployment": {**FOUR, "quorum": 2}, "participation": 0.5},
        {"deployment": {"clients": 3, "quorum": 3}, "sealing": {"on": True}},
        {"deployment": {"clients": 6}, "sealing": {"on": True}, "participation": 0.5},
        {"sealing": {"on": False, "at_least": 9}},
    ],
)
def test_a_run_that_needs_as_many_sites_as_a_round_has_is_made(changes):
    check_new_run(make_config({"data": {"source": "x", "labels": ["a", "b"]}, **changes}))


def test_more_sites_may_have_joined_a_run_that_has_begun(federation):
    """A run that continues is led with a quorum that its first sites alone could not reach."""
    stopped, channel = federation(deployment={"clients": 2, "quorum": 2}, faults={("train", 1, "basil"): "deaf"})
    coral = channel.clients.pop(8)
    with pytest.raises(RunError):
        stopped.run()
    nodes = {number: federation.node(site) for number, site in ((10, "amber"), (9, "basil"))}
    again, channel = federation(deployment={"clients": 1, "quorum": 2}, nodes={**nodes, 8: coral})
    again.run()
    assert again.folder.ended()
