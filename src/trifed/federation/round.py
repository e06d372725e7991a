"""One federated run on any engine: the opening, the rounds, and the last download.

::

    begin or resume
    each round: membership → select → download → client update → upload → accept → aggregate → evaluate
                → checkpoint; with `patience`, until validation data show no progress
    finish: every client downloads its final values

A `Transport` carries the messages: `federation.simulation` within one process, `deployment.site_transport` between
sites. Timeouts, retries, the order of arrival and the connection of clients belong to the transport.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from trifed.common.errors import MessageError, RunError
from trifed.config.run import RunConfig
from trifed.config.sealing import clients_of_round
from trifed.federation import events
from trifed.federation.base_server import BaseServer, layout_of
from trifed.federation.best_round import EvaluatedRounds
from trifed.federation.events import Sizes
from trifed.federation.messages import BAD_REPLY, Rejected, layout_sizes, manifest, summary_manifest
from trifed.federation.run_folder import SHARED_PROJECTIONS, RunFolder
from trifed.federation.sealed.round import Exchanged, open_sums
from trifed.federation.sealed.server import SealedServer
from trifed.federation.server import Server
from trifed.federation.training.batches import SAMPLING, seeded
from trifed.federation.training.divergence import Divergence
from trifed.federation.transport import Exchange, MessageTo, Reply, Transport
from trifed.methods.base import Gradient, Stage, Upload
from trifed.similarity import Summary

T = TypeVar("T")


@dataclass
class FederatedRun:
    """One run over a transport, logged in `log`. `server` and `evaluated` are available once the run has begun."""

    config: RunConfig
    transport: Transport
    folder: RunFolder
    log: events.Log
    divergence: Divergence = field(default_factory=Divergence)

    def run(self) -> None:
        """Begin, or resume after the last whole round, and run to the end, which `patience` can bring forward."""
        number = self.begin()
        while number < self.config.rounds and not self.evaluated.end():
            number += 1
            self.update_clients(number)
            self.round(number)
            self.transport.save_checkpoint(number, self.evaluated.needed(number))
        self.update_clients(number + 1)
        self.finish(number)

    def begin(self) -> int:
        """Begin or resume; return the number of the last whole round, 0 for a new run."""
        opened = self.transport.open()
        self.server: BaseServer = opened.server
        method, names = self.server.context.method, [record.name for record in self.transport.records]
        about = (method.name, method.evaluated_model, names)
        self.evaluated = EvaluatedRounds(self.config, method.evaluated_model)
        if opened.resumed is not None:
            self.evaluated.read(self.folder.events() if self.config.chooses else ())
            self.log(events.Resumed(*about, opened.resumed, opened.sent))
            return opened.resumed
        self.log(events.Started(*about, opened.examples))
        for client, rejected in opened.rejected.items():
            self._leave_out(0, client, rejected)
        if method.shared_projections:
            self._make_shared_projections()
        self._evaluate(0, ["start"])
        clients = self._clients() if method.summarise else ()
        self.server.open(self._collect("summary", clients, self._read_summary))
        if isinstance(self.server, SealedServer) and self.server.counts_holders:
            ready = [client for client, _ in self._ask("holders", 0, self._able(), lambda client: None)]
            for client, (up, down) in self._open_sums(self.server, 0, ready).items():
                self.log(events.OpeningExchange(self._name(client), up, down))
        self.transport.save_checkpoint(0)
        return 0

    def update_clients(self, number: int) -> None:
        """Let clients join and leave before round `number`."""
        self._send_shared_projections(number, self.transport.update_clients(number))

    def select(self, number: int) -> list[int]:
        """Draw the clients of a round among those that have examples; the draw depends on seed and round alone."""
        able = self._able()
        wanted = clients_of_round(self.config, len(able))
        if wanted >= len(able):
            return able
        drawn = seeded(self.config.seed, SAMPLING, number).choice(len(able), wanted, replace=False)
        return [able[position] for position in sorted(drawn)]

    def _able(self) -> list[int]:
        """Return the clients that have training examples."""
        return [client for client, record in enumerate(self.transport.records) if record.examples]

    def _clients(self) -> list[int]:
        """Return the clients that have not left."""
        return [client for client, record in enumerate(self.transport.records) if not record.left]

    def round(self, number: int) -> None:
        """Let the selected clients download, train and upload, aggregate their uploads, and evaluate."""
        replies = self._ask("train", number, self.select(number), partial(self.server.download, number))
        match self.server:
            case SealedServer() as server:
                self._take_sums(server, number, dict(replies))
            case Server() as server:
                self._take_uploads(server, number, replies)
            case other:
                raise TypeError(f"server: got a {type(other).__name__}, expected a Server or a SealedServer")
        last, method = number == self.config.rounds, self.server.context.method
        if last or number % self.config.evaluation_interval == 0:
            both: list[Stage] = ["trained", "received"] if self.server.context.compression.layout else []
            self._evaluate(number, [*dict.fromkeys([*(both if last else []), method.evaluated_model])])
            if best := self.evaluated.note_of(number):
                self.log(best)
            if not last and self.evaluated.end():  # it is the last round after all
                self._evaluate(number, [stage for stage in both if stage != method.evaluated_model])

    def _take_uploads(self, server: Server, number: int, replies: Iterable[tuple[int, Reply]]) -> None:
        """Accept the uploads of a round, and aggregate them."""
        uploads: dict[int, list[Upload]] = {}
        for client, reply in replies:
            upload = None
            if reply.payload is not None:
                examples = self.transport.records[client].examples
                upload = server.accept(number, client, reply.payload, examples)
            if isinstance(upload, Rejected):
                self._leave_out(number, client, upload)
            else:
                uploads[client] = [] if upload is None else [upload]
                self._log_update(number, client, reply)
        self.transport.close_round(number, list(uploads))
        accepted = [upload for found in uploads.values() for upload in found]
        for bounded in server.aggregate(accepted):
            self.log(events.Bounded(number, self._name(bounded.client), bounded.bound, bounded.ratio))

    def _take_sums(self, server: SealedServer, number: int, ready: Mapping[int, Reply]) -> None:
        """Let the clients that are ready send their parts of the sums of a round, and open these."""
        self.transport.check_ready(number, list(ready))
        opened = self._open_sums(server, number, list(ready))
        for client, (up, down) in opened.items():
            self._log_update(number, client, ready[client], up, down)
        self.transport.close_round(number, list(opened), sealed=True)

    def _open_sums(self, server: SealedServer, number: int, ready: Sequence[int]) -> dict[int, Exchanged]:
        """Open the sums of the clients that are ready; leave out those whose sum is not opened."""
        ask = partial(self.transport.ask, "send", number)
        opened = open_sums(server, number, ready, ask, self.transport.with_keys)
        for client, rejected in opened.left_out.items():
            self._leave_out(number, client, rejected, in_sum=True)
        for clients, bits in opened.sums:
            self.log(events.SumOpened(number, [self._name(client) for client in clients], bits))
        if not opened.sums:
            self.log(events.NoSum(number))
        return opened.exchanged

    def finish(self, last: int) -> None:
        """Let every client download its final values after the `last` round."""
        number, stage = last + 1, self.server.context.method.evaluated_model
        for note in (self.evaluated.end() if last < self.config.rounds else None, self.evaluated.kept(last)):
            if note:
                self.log(note)
        accepted, download = [], partial(self.server.download, number)
        for client, reply in self._ask("finish", number, self._clients(), download):
            accepted.append(client)
            if reply.sent is not None:
                self.log(events.Delivered(number, self._name(client), self._sizes(number, reply.sent)))
            if reply.scores is not None:
                valid, test = (reply.scores[part] for part in ("valid", "test"))
                self.log(events.ClientScores(number - 1, stage, self._name(client), valid, test))
        self.transport.close_round(number, accepted)
        self.log(events.Finished(number - 1))

    # -- parts of the opening

    def _make_shared_projections(self) -> None:
        """Make the frozen projections from the clients' first gradients, keep them, and send them to all."""
        gradients = self._collect("gradient", self._able(), self._read_gradient)
        if not gradients:
            raise RunError("no client sent a gradient of its data; the method needs one before round 1")
        projections = self.server.make_shared_projections(list(gradients.values()))
        self.folder.write_arrays(SHARED_PROJECTIONS, projections, {}, durable=True)
        self._send_shared_projections(0, self._clients())

    def _send_shared_projections(self, number: int, clients: Sequence[int]) -> None:
        if clients:
            sizes = layout_sizes(layout_of(self.server.shared_projections))
            for client, reply in self._ask("projections", number, clients, self.server.shared_projections_for):
                self.log(events.OpeningExchange(self._name(client), down=manifest(reply.sent or b"", sizes)))

    def _collect(self, kind: Exchange, clients: Sequence[int], read: Callable[[int, bytes], T]) -> dict[int, T]:
        """Ask clients for a message before the first round, and read each; a bad one leaves its sender out."""
        found: dict[int, T] = {}
        for client, reply in self._ask(kind, 0, clients, lambda client: None):
            try:
                found[client] = read(client, reply.payload or b"")
            except MessageError as error:
                self._leave_out(0, client, Rejected(BAD_REPLY, str(error)))
        return found

    def _read_summary(self, client: int, payload: bytes) -> Summary:
        summary = self.server.read_summary(client, payload)
        self.log(events.SummaryReceived(self._name(client), summary_manifest(payload, summary)))
        return summary

    def _read_gradient(self, client: int, payload: bytes) -> Gradient:
        layout, examples = self.transport.adapted_layout, self.transport.records[client].examples
        gradient = self.server.read_gradient(client, payload, layout, examples)
        self.log(events.OpeningExchange(self._name(client), up=manifest(payload, layout_sizes(layout))))
        return gradient

    # -- parts of every exchange

    def _ask(
        self, kind: Exchange, number: int, clients: Sequence[int], message: MessageTo
    ) -> Iterator[tuple[int, Reply]]:
        """Yield the replies that count, with the clients' indices; leave the other clients out."""
        for client, reply in self.transport.ask(kind, number, clients, message):
            if isinstance(reply, Rejected):
                self._leave_out(number, client, reply, in_sum=kind in ("holders", "send"))
            else:
                yield client, reply

    def _log_update(
        self, number: int, client: int, reply: Reply, sum_up: Sizes | None = None, sum_down: Sizes | None = None
    ) -> None:
        """Log a client's update, with the bytes of its part of a sum if the round has sums."""
        name, down = self._name(client), {**self._sizes(number, reply.sent), **(sum_down or {})}
        encoding = self.server.context.for_upload(number)
        up = sum_up or ({} if reply.payload is None else encoding.manifest(reply.payload))
        if reply.kept_own:
            self.log(events.KeptOwn(number, name))
        self.log(events.Trained(number, name, reply.loss, reply.steps, reply.seconds, up, down))
        drawn = self.config.privacy.training is not None  # a sample without examples has no loss
        if not (drawn and math.isnan(reply.loss)):
            first = self.divergence.begins(name, reply.loss, reply.steps)
            if first is not None:
                self.log(events.Diverged(number, name, reply.loss, first))

    def _leave_out(self, number: int, client: int, rejected: Rejected, in_sum: bool = False) -> None:
        """Log that a client does not count in a round, or, before the first round, in the whole run.

        One that only the sum before round 1 lacks (`in_sum`) stays: without that sum no row of the head is shared.
        """
        if in_sum and not number:
            reason = f"{rejected.code}: {rejected.reason}"
            text = f"{self._name(client)}: no part in the sum of label holders before round 1 ({reason})"
            self.log(events.Trouble(text))
            return
        self.log(events.LeftOut(number, self._name(client), rejected.code, rejected.reason))
        self.transport.reject(number, client, rejected)

    def _evaluate(self, number: int, stages: Sequence[Stage]) -> None:
        for scores in self.transport.evaluate(number, stages):
            self.log(scores)
            self.evaluated.read([scores.to_dict()])

    def _name(self, client: int) -> str:
        return self.transport.records[client].name

    def _sizes(self, number: int, sent: bytes | None) -> dict[str, int]:
        """Return the bytes of the download of a round by tensor name; empty without one."""
        return {} if sent is None else self.server.context.for_download(number, sent).manifest(sent)
