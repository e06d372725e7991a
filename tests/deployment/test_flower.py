"""Flower as a transport, without its processes: settings of a node, errors, replies."""

from __future__ import annotations

import contextlib
import logging
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr")
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.config import get_fused_config_from_dir, parse_config_args
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from trifed.common.errors import ConfigError, DataError, RunError
from trifed.deployment.flower import (
    FlowerChannel,
    client_app,
    reply_of,
    server_app,
    settings_of,
    without_traceback,
    write,
)
from trifed.deployment.folders import write_server_folder
from trifed.deployment.protocol import REASONS, Reply, Request
from trifed.deployment.site_transport import SiteTransport


def test_a_simulated_node_finds_its_settings_by_its_number(tmp_path):
    """As in `simulate.sh`; what a node was started with comes before what the server says."""
    for name in ("berlin", "paris"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "node.toml").touch()

    def named(node_config, sites=str(tmp_path)):
        return settings_of(Context(1, 2, node_config, RecordDict(), {"sites": sites}))

    simulated = [named({"partition-id": place, "num-partitions": 3}) for place in range(3)]
    assert simulated == [tmp_path / "berlin" / "node.toml", tmp_path / "paris" / "node.toml", None]
    assert named({"node": "/etc/node.toml", "partition-id": 0}) == Path("/etc/node.toml")
    assert named({}) is None and named({"partition-id": 0}, sites="") is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["from-round=3"], 3),
        (["from-round=0"], 0),
        (["from-round=-1"], RunError),
        (["from-round=true"], RunError),
    ],
)
def test_the_operator_says_from_which_round(words, expected, tmp_path, monkeypatch):
    """As `./run.sh --run-config from-round=3`, with the app that `flower init` writes."""
    (tmp_path / "run.toml").write_text('name = "tickets"\n[data]\nlabels = ["a", "b"]\n')
    write_server_folder(tmp_path / "server", tmp_path / "run.toml", "127.0.0.1", 8443)
    app_folder, asked = tmp_path / "server" / "app", []
    values = get_fused_config_from_dir(app_folder, parse_config_args(words))
    monkeypatch.setattr(SiteTransport, "run", lambda transport, from_round: asked.append(from_round))
    leads = server_app(app_folder / "run.toml")
    with contextlib.nullcontext() if expected is not RunError else pytest.raises(RunError, match="from-round"):
        leads(Grid(0), Context(1, 2, {}, RecordDict(), values))
    assert asked == ([] if expected is RunError else [expected])


class Grid:
    """Answers each message at once, with an error."""

    def __init__(self, code):
        self.code = code

    def push_messages(self, messages):
        for place, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(place)
        self.sent = messages
        return [str(place) for place in range(len(messages))]

    def pull_messages(self, numbers):
        return [Message(Error(self.code, "why"), reply_to=self.sent[int(number)]) for number in numbers]


@pytest.mark.parametrize(
    ("code", "answered"),
    [
        (ErrorCode.MESSAGE_UNAVAILABLE, False),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, False),
        (ErrorCode.NODE_UNAVAILABLE, True),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, True),
    ],
)
def test_a_message_that_expired_is_no_answer_and_other_errors_are_one(code, answered, monkeypatch):
    """Whichever clock is ahead at the end of a round, Flower's or the server's, the reason is the same."""
    for name in ("_run_id", "_node_id", "_task_id"):  # a message asks who sends it
        monkeypatch.setattr(TaskIdentity, name, 1)
    found = FlowerChannel(Grid(code)).ask({7: Request("train", {}, {})}, 5)
    assert list(found) == ([7] if answered else [])
    known = {ErrorCode.NODE_UNAVAILABLE: "not_connected"}
    assert all(reply == Reply(error=known.get(code, "other")) for reply in found.values())


@pytest.mark.parametrize("raised", [DataError, OSError, AttributeError])
def test_an_exception_at_a_site_travels_as_a_code(raised, monkeypatch, caplog):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)

    def answer(path, request):
        raise raised("kryptonite in /home/basil")

    context = Context(1, 2, {"node": "/home/basil/node.toml"}, RecordDict(), {})
    for app_, content in ((answer, write("open", {"run": "a-1"}, {})), (answer, RecordDict())):
        message = Message(content, 7, "query.open")
        reply = client_app(app_)(message, context)
        assert not reply.has_error() and "basil" not in str(reply.content)
        assert reply_of(reply).error in REASONS and not reply_of(reply).parts
    assert "kryptonite" in caplog.text
    assert reply_of(client_app(answer)(message, Context(1, 2, {}, RecordDict(), {}))).error == "no_settings"


@pytest.mark.parametrize(
    ("error", "code"), [("", None), ("guard", "guard"), ("label 'x' of /data", "other"), (3, "other")]
)
def test_an_error_that_the_server_does_not_know_is_not_repeated(error, code, monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    told = Message(write("reply", {"error": error, "lost": 0}, {}), 7, "query.open")
    assert reply_of(told).error == code


def test_a_mistake_ends_a_run_without_a_traceback_and_the_corrected_settings_are_kept(tmp_path, capsys):
    run, folder = tmp_path / "run.toml", tmp_path / "runs" / "tickets"
    text = '[data]\nlabels = ["a", "b"]\n[deployment]\njoin_seconds = 0.1\nquorum = '
    context = Context(1, 2, {}, RecordDict(), {"folder": str(folder)})
    grid = SimpleNamespace(get_node_ids=list)
    flowers = logging.getLogger("flwr")
    try:
        for quorum, kind in ((3, ConfigError), (2, RunError)):  # of two sites; then none comes
            run.write_text(f"{text}{quorum}\n")
            with pytest.raises(kind) as ended:
                server_app(run)(grid, context)
            assert capsys.readouterr().out.count(str(ended.value)) == 1
            assert tomllib.loads((folder / "config.toml").read_text())["deployment"]["quorum"] == quorum
            assert without_traceback_of(flowers, ended.value) and not without_traceback_of(flowers, ValueError())
    finally:
        flowers.removeFilter(without_traceback)


def without_traceback_of(logger, error):
    record = logging.LogRecord("flwr", logging.ERROR, "", 0, "", None, (type(error), error, error.__traceback__))
    assert logger.filter(record)
    return record.exc_info is None
