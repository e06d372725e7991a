"""The transport between sites: the server's side of a run whose clients are reached through a `Channel`.

A client that does not reply in time, or whose reply is rejected, is left out of that round; the result is the
same as if it had not been selected. Below the quorum the run stops; started again in the same folder, it continues
after its last whole round.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from trifed.common.errors import MessageError, RunError
from trifed.common.lock import held
from trifed.config.client_training import absent_members
from trifed.config.roles import ACCURACY
from trifed.config.run import RunConfig
from trifed.deployment import protocol
from trifed.deployment.checkpoint import ServerCheckpoint
from trifed.deployment.client_manager import ClientManager
from trifed.deployment.greeting import greeting
from trifed.deployment.handshake import OpenedClients, open_clients
from trifed.deployment.membership import Membership
from trifed.deployment.protocol import (
    Channel,
    Fact,
    digest,
    rejected_for,
    write_layout,
)
from trifed.deployment.run_checks import check_for_sites, check_new_run
from trifed.deployment.sealed_lists import ReadySites, notes_of_going_back, notes_of_sums
from trifed.federation import events
from trifed.federation.base_server import BaseServer, layout_of
from trifed.federation.kept_checkpoints import go_back, kept_rounds
from trifed.federation.manifest import finish
from trifed.federation.messages import Rejected
from trifed.federation.privacy_report import promise
from trifed.federation.results import sealing_facts, summarise_events
from trifed.federation.round import FederatedRun
from trifed.federation.run_folder import EventLog, RunFolder
from trifed.federation.sealed.rules import SumTerms
from trifed.federation.transport import ClientRecord, Exchange, MessageTo, Opened, Reply
from trifed.methods.base import Stage
from trifed.methods.packing import Layout
from trifed.privacy import facts_of

PARTS = {"projections": "frames", "train": "download", "finish": "download", "send": "terms"}
"""Exchange → name of the server's message in a request."""
REQUESTS = {"projections": "frames", "holders": "ready"}
"""Exchange → kind of the request; the others have the name of the exchange."""


class SiteTransport:
    """The server's side of one run, kept in `folder`; `server` and `records` are there once the run has begun."""

    server: BaseServer
    records: list[ClientRecord]
    opened: OpenedClients

    def __init__(
        self, config: RunConfig, channel: Channel, folder: RunFolder, listener: events.Listener,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        check_for_sites(config)
        self.config = config
        self.folder = folder
        self.log = EventLog(folder, listener)
        self.checkpoint = ServerCheckpoint(folder, config.keep_checkpoints)
        self.name = self.checkpoint.facts.get("run") or f"{config.run_id()}-{secrets.token_hex(4)}"
        self.client_manager = ClientManager(
            channel, config.deployment, greeting(self.name, config), self.log, sleep
        )
        self.replies: dict[int, protocol.Reply] = {}
        self.ready = ReadySites(0)
        self.notes: list[str] = []
        self.asked = self.accepted = 0
        self.began = 0.0

    def run(self, from_round: int | None = None) -> None:
        """Begin, or resume after the last whole round, and run to the end.

        The end has two steps: a checkpoint that includes the last download, and summary.json.

        Args:
            from_round: A round whose checkpoint is kept: the run first goes back to its end.

        Raises:
            RunError: Too few clients, or too few uploads in a round; the run can be resumed. Or another process
                leads the run, or it cannot go back.
        """
        with held(self.folder.path):
            self._refuse_other(from_round)
            if from_round is not None:
                self.notes = list(notes_of_going_back(self.folder.events(), from_round))
                go_back(self.folder.path, from_round)
            if not self.folder.ended():
                FederatedRun(self.config, self, self.folder, self.log).run()
                self._save_membership(self.config.rounds)
            finish(self.folder, self._summary())

    # -- the transport

    @property
    def adapted_layout(self) -> Layout:
        """Names and shapes of the weights that are adapted."""
        return self.opened.layers

    def open(self) -> Opened:
        """Wait for the clients, and open them for a new run, or load the last whole round."""
        manager, done, examples = self.client_manager, None, None
        rejected: Mapping[int, Rejected] = {}
        if self.checkpoint.facts:
            done = self._resume()
        else:
            check_new_run(self.config)
            (self.folder.path / "events.jsonl").unlink(missing_ok=True)  # of a run that never began
            manager.gather()
            self.opened = opened = open_clients(self.config, self.name, manager)
            self.server, self.records, rejected = opened.server, opened.records, opened.rejected
            examples = [record.examples for record in self.records]
        self.membership = Membership(self.server, self.records, manager, self.checkpoint, self.log)
        names = [record.name for record in self.records if not record.left]
        for note in [*notes_of_sums(self.config, names), *self.notes]:
            self.log(events.Trouble(note))
        return Opened(self.server, done, examples, rejected=rejected)

    def _refuse_other(self, from_round: int | None) -> None:
        """Check that the run in the folder has these settings and is not finished.

        Raises:
            RunError: It has others, or is finished; or it is to go back, and has ended.
        """
        if not self.name.startswith(f"{self.config.run_id()}-"):
            raise RunError(
                f"{self.folder.path}: the settings changed since this run began; put them back, or give the run "
                f"another name or folder"
            )
        if from_round is not None and any(event["event"] == "finished" for event in self.folder.events()):
            rounds = ", ".join(map(str, kept_rounds(self.folder.path))) or "none"
            raise RunError(
                f"{self.folder.path}: got from-round {from_round}, but this run has ended, and its sites have "
                f"their models (checkpoints are kept of rounds {rounds}); give a new run another name or folder"
            )
        if self.checkpoint.finished:
            raise RunError(f"{self.folder.path}: this run is finished; give the new one another name or folder")

    def _resume(self) -> int:
        """Load the last whole round, wait for the clients, and return the round.

        Raises:
            RunError: Too few clients connected.
        """
        facts, manager = self.checkpoint.facts, self.client_manager
        done, self.server, self.records = self.checkpoint.load(self.config)
        manager.resume(self.records, (facts["base"], facts["digest"]))
        return done

    def ask(
        self, kind: Exchange, number: int, clients: Sequence[int], message: MessageTo
    ) -> Iterator[tuple[int, Reply | Rejected]]:
        """Send all messages at once, and yield the replies in the order of the clients."""
        sent = {client: message(client) for client in clients}
        if kind != "send":  # it belongs to the round of the exchange before
            self.asked, self.began, self.ready = len(sent), time.monotonic(), ReadySites(number)
        if kind != "summary":  # summaries came when the clients were opened
            parts = {client: {PARTS[kind]: payload} for client, payload in sent.items() if payload is not None}
            facts = {client: self._facts(kind, number, client) for client in sent}
            self.replies = self.client_manager.ask(REQUESTS.get(kind, kind), facts, parts)
        read = {client: self._read(kind, client, payload) for client, payload in sent.items()}
        yield from (read | dict.fromkeys(self.ready.others(), rejected_for("other_sites"))).items()

    def _facts(self, kind: Exchange, number: int, client: int) -> dict[str, Fact]:
        if kind == "projections":
            return {"layout": write_layout(layout_of(self.server.shared_projections))}
        if kind == "gradient":
            return {}
        record = self.records[client]
        known: dict[str, Fact] = {"counts": record.counts, "beginning": record.beginning, "data": record.data}
        return {"round": number, "asked": self.asked, **known}

    def _read(self, kind: Exchange, client: int, sent: bytes | None) -> Reply | Rejected:
        reply = self.client_manager.check((self.opened.replies if kind == "summary" else self.replies).get(client))
        if isinstance(reply, Rejected):
            self.ready.note_refusal(kind, reply.code)
            return reply
        try:
            if self.config.sealing.on and kind in ("holders", "train"):
                self.ready.read(self.server.context, client, reply)
                return Reply(sent, loss=math.nan)
            return self._content(kind, reply, sent)
        except MessageError as error:
            return Rejected("bad_reply", str(error))

    def _content(self, kind: Exchange, reply: protocol.Reply, sent: bytes | None) -> Reply | Rejected:
        if kind == "train":
            facts = (reply.real("loss", finite=False), reply.number("steps"), reply.real("seconds"))
            payload = reply.part("upload") if self.server.context.compression.layout else None
            return Reply(sent, payload, *facts, kept_own=bool(reply.facts.get("kept_own")))
        if kind == "finish":
            return Reply(sent, scores=_scores(reply))
        if kind == "projections":
            same = reply.facts.get("digest") == digest(self.server.context.exchanged, self.server.start)
            return Reply(sent) if same else rejected_for("starts_elsewhere")
        return Reply(sent, reply.part("sum" if kind == "send" else kind))

    def reject(self, number: int, client: int, rejected: Rejected) -> None:
        """Note the state that the client reports instead of the reply; before round 1 dismiss the client.

        Raises:
            RunError: Fewer clients than `deployment.quorum` remain before round 1.
        """
        if number == 0:
            self.membership.dismiss(client)
            remain, quorum = sum(not record.left for record in self.records), self.config.deployment.quorum
            if remain < quorum:
                raise RunError(
                    f"{self.records[client].name} cannot take part: {rejected.reason}; {remain} clients "
                    f"remain, and deployment.quorum is {quorum}; fix this, and start the run again"
                )
            return
        reply = self.replies.get(client)
        if reply is not None:
            self.membership.note(client, reply)

    def with_keys(self, number: int, sum_terms: SumTerms) -> SumTerms:
        """Return the terms of a sum with the names and keys of its clients."""
        return self.ready.with_keys(sum_terms, [record.name for record in self.records])

    def check_ready(self, number: int, ready: Sequence[int]) -> None:
        """Check the quorum of a sealed round, before a part is sent: the round can be repeated then.

        Raises:
            RunError: Fewer clients than `deployment.quorum` are ready, or have sent a sum of this round already.
        """
        self._check_quorum(number, len(ready) + self.ready.sent_before)

    def close_round(self, number: int, accepted: Sequence[int], sealed: bool = False) -> None:
        """Check the quorum of a round; after the final download, withdraw the clients that leave.

        Raises:
            RunError: Fewer accepted replies than `deployment.quorum`, which `check_ready` counts if `sealed`.
        """
        self.accepted = len(accepted)
        if number > self.config.rounds:
            self.membership.withdraw_leaving(number)
            return
        for client in accepted:
            self.records[client].counts = number
        if not sealed:
            self._check_quorum(number, self.accepted)

    def _check_quorum(self, number: int, counted: int) -> None:
        quorum = self.config.deployment.quorum
        if counted < quorum:
            raise RunError(
                f"round {number}: {counted} of {self.asked} clients gave a usable reply, and deployment.quorum "
                f"is {quorum}; the last complete round is {number - 1}, and the run can be resumed"
            )

    def update_clients(self, number: int) -> Sequence[int]:
        """Let clients join, leave and report changed data; return those that lack the shared projections."""
        if self.membership.update(number):
            self._save_membership(number - 1)
        absent = absent_members(self.config, [record.name for record in self.records]) if number == 1 else []
        if absent:
            self.log(
                events.Trouble(
                    f"aggregation.members: no client has joined under these names: {', '.join(absent)}; check "
                    "them, or wait for those clients"
                )
            )
        if number == 1 or not self.server.context.method.shared_projections:
            return ()
        return [client for client, record in enumerate(self.records) if not record.counts and not record.left]

    def _save_membership(self, number: int) -> None:
        self.checkpoint.save(number, self.server, self.records)
        self.checkpoint.clear_leaving()

    def evaluate(self, number: int, stages: Sequence[Stage]) -> Sequence[events.ClientScores]:
        """Return no scores: the clients' test data stay at the sites."""
        return ()

    def save_checkpoint(self, number: int, needed: Collection[int] = ()) -> None:
        """Log the end of a round and keep the state; after the opening, keep also what all clients agreed on."""
        if number:
            self.log(events.RoundFinished(number, self.accepted, round(time.monotonic() - self.began, 2)))
        self.checkpoint.save(number, self.server, self.records)
        if not number:
            identity = self.client_manager.identity
            self.checkpoint.write(self.name, self.server, identity, self.opened.lora_bytes)

    def _summary(self) -> dict[str, Any]:
        """Return the result in the form of a simulated run, without the clients' own data."""
        config, evaluated_model = self.config, self.config.composed_method().evaluated_model
        logged, lora_bytes = self.folder.events(), self.checkpoint.facts["lora_bytes"]
        return {
            "name": config.name,
            "task": config.task,
            "metric": ACCURACY[config.task],
            "method": config.method.name,
            "seed": config.seed,
            "rounds": config.rounds,
            **summarise_events(
                logged, evaluated_model, lora_bytes, bits=config.wire.bits, noised_sums=bool(config.privacy.update)
            ),
            "controls": {},
            **({"sealing": sealing_facts(logged, config.sealing.at_least)} if config.sealing.on else {}),
            **({"privacy": {"promised": facts_of(promise(config))}} if config.privacy.on else {}),
        }


def _scores(reply: protocol.Reply) -> Mapping[str, Mapping[str, float]] | None:
    """Read the scores of a client that shares them; MessageError if one is no number, or cannot be."""
    if "test_accuracy" not in reply.facts:
        return None
    scores = {}
    for split in ("valid", "test"):
        loss, accuracy = (reply.real(f"{split}_{name}", finite=False) for name in ("loss", "accuracy"))
        examples = reply.number(f"{split}_examples")
        if not (0 <= accuracy <= 1 and examples) and not math.isnan(accuracy):
            raise MessageError(f"{split}_accuracy: got {accuracy} of {examples} examples, expected 0 to 1")
        scores[split] = {"loss": loss, "accuracy": accuracy, "examples": examples}
    return scores
