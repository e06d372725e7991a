"""One round over a transport of the test's own: what counts, in which order it is asked, and what is logged."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from trifed.config.run import make_config
from trifed.federation.context import run_context
from trifed.federation.messages import Rejected
from trifed.federation.round import FederatedRun
from trifed.federation.run_folder import RunFolder
from trifed.federation.server import Server
from trifed.federation.transport import ClientRecord, Opened, Reply

LAYOUT = (("x.lora_A.weight", (1, 2)),)
LATE = Rejected("no_answer", "no answer within 5 seconds")


@dataclass
class Scripted:
    """Replies from a script: client and round → values, (2,), or the reason why there are none.

    A client that the script leaves out sends the number of the round.
    """

    server: Server
    script: dict[tuple[int, int], object] = field(default_factory=dict)
    examples: tuple[int, ...] = (1, 1, 2)
    backwards: bool = False
    resumed: int | None = None
    adapted_layout = LAYOUT

    def __post_init__(self):
        self.records = [ClientRecord(f"client-{i}", i, n) for i, n in enumerate(self.examples)]
        self.calls: list[tuple] = []

    def open(self):
        return Opened(self.server, resumed=self.resumed)

    def ask(self, kind, number, clients, message):
        self.calls.append((kind, number, tuple(clients)))
        for client in reversed(clients) if self.backwards else clients:
            sent = message(client)
            told = self.script.get((client, number), [number, number])
            if isinstance(told, Rejected):
                yield client, told
            elif kind == "finish":
                yield client, Reply(sent)
            else:
                context, examples = self.server.context, self.records[client].examples
                header = context.header("upload", number, client, examples)
                payload = context.compression.encode(header, np.array(told, np.float32), np.zeros(2, np.float32))
                yield client, Reply(sent, payload, loss=0.5, steps=3)

    def reject(self, number, client, rejected):
        self.calls.append(("reject", number, client))

    def close_round(self, number, accepted):
        self.calls.append(("close", number, tuple(sorted(accepted))))

    def update_clients(self, number):
        self.calls.append(("update", number))
        return ()

    def evaluate(self, number, stages):
        self.calls.append(("evaluate", number, tuple(stages)))
        return ()

    def save_checkpoint(self, number, needed=()):
        self.calls.append(("checkpoint", number, self.mean().tolist()))

    def mean(self):
        return self.server.state.get("mean", np.zeros(2))


def play(tmp_path, script=None, settings=None, **options):
    config = make_config({"data": {"source": "x.csv"}, "method": "fedavg-lora", "rounds": 2, **(settings or {})})
    server = Server(run_context(config, LAYOUT, "f" * 64), 3, np.zeros(2, np.float32))
    transport, logged = Scripted(server, script or {}, **options), []
    FederatedRun(config, transport, RunFolder(tmp_path), lambda event: logged.append(event.to_dict())).run()
    return transport, logged


def test_a_round_is_members_then_train_then_aggregate_then_evaluate_then_checkpoint(tmp_path):
    transport, logged = play(tmp_path)
    everyone = (0, 1, 2)
    rounds = [
        [("update", n), ("train", n, everyone), ("close", n, everyone), ("evaluate", n, stages),
         ("checkpoint", n, [n, n])]
        for n, stages in ((1, ("received",)), (2, ("trained", "received")))
    ]  # fmt: skip
    opening = [("evaluate", 0, ("start",)), ("summary", 0, ()), ("checkpoint", 0, [0, 0])]
    end = [("update", 3), ("finish", 3, everyone), ("close", 3, everyone)]
    assert transport.calls == [*opening, *rounds[0], *rounds[1], *end]
    names = [event["event"] for event in logged]
    assert names == ["started", *["trained"] * 6, *["delivered"] * 3, "finished"]
    first, last = logged[1], logged[6]
    assert first["down"] == {} and first["up"]["x.lora_A.weight"] == last["down"]["x.lora_A.weight"] == 8


@pytest.mark.parametrize("backwards", [False, True])
def test_replies_count_whatever_their_order_and_a_missing_one_only_for_its_client(tmp_path, backwards):
    script = {(0, 1): [3, 0], (2, 1): [0, 3], (1, 1): LATE, (1, 2): [4, 4]}
    transport, logged = play(tmp_path, script, backwards=backwards)
    means = [call[2] for call in transport.calls if call[0] == "checkpoint"]
    assert means == [[0, 0], [1, 2], [2.5, 2.5]]  # (3 + 0·2)/3, (0 + 3·2)/3; (2 + 4 + 2·2)/4
    assert ("reject", 1, 1) in transport.calls and ("close", 1, (0, 2)) in transport.calls
    [out] = [event for event in logged if event["event"] == "left out"]
    assert (out["client"], out["round"], out["code"]) == ("client-1", 1, "no_answer")


def test_a_bad_upload_is_left_out_and_the_mean_is_that_of_the_others(tmp_path):
    transport, logged = play(tmp_path, {(0, 1): [np.nan, 1], (1, 1): [1, 2, 3], (2, 1): [5, 6]})
    assert ("checkpoint", 1, [5, 6]) in transport.calls
    assert [e["client"] for e in logged if e["event"] == "left out"] == ["client-0", "client-1"]


def test_a_round_without_uploads_changes_nothing(tmp_path):
    transport, _ = play(tmp_path, {(client, 2): LATE for client in range(3)})
    assert [call[2] for call in transport.calls if call[0] == "checkpoint"] == [[0, 0], [1, 1], [1, 1]]


def test_clients_without_examples_are_not_drawn_and_the_draw_depends_on_the_round_alone(tmp_path):
    transport, _ = play(tmp_path, examples=(1, 0, 2))
    assert [call[2] for call in transport.calls if call[0] == "train"] == [(0, 2), (0, 2)]
    settings = {"participation": 0.34, "rounds": 8}
    drawn, again = (
        [call[2] for call in play(tmp_path, settings=settings, backwards=way)[0].calls if call[0] == "train"]
        for way in (False, True)
    )
    assert drawn == again and len(set(drawn)) > 1 and {len(each) for each in drawn} == {1}
    resumed, _ = play(tmp_path, settings=settings, resumed=5)
    assert [call[2] for call in resumed.calls if call[0] == "train"] == drawn[5:]


def test_before_the_first_round_a_bad_answer_leaves_its_sender_out(tmp_path):
    settings = {"method": "own-prior", "data": {"source": "x.csv"}}
    transport, logged = play(tmp_path, {(0, 0): LATE}, settings=settings)  # the others send no summary either
    left_out = [
        (e["client"], e["round"], e["code"]) for e in logged if e["event"] == "left out" and not e["round"]
    ]
    assert left_out == [("client-0", 0, "no_answer"), ("client-1", 0, "bad_reply"), ("client-2", 0, "bad_reply")]
    assert [call[2] for call in transport.calls if call[0] == "reject" and not call[1]] == [0, 1, 2]
