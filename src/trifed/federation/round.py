"""One federated run on any engine: the opening, the rounds, and the last download.

::

    begin or resume
    each round: membership → select → download → client update → upload → accept → aggregate → evaluate
                → checkpoint
    finish: every client downloads its final values

A `Transport` carries the messages: `federation.simulation` within one process, `deployment.site_transport` between
sites. Timeouts, retries, the order of arrival and the connection of clients belong to the transport.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from trifed.common.errors import RunError
from trifed.config.run import RunConfig
from trifed.federation import events
from trifed.federation.client_update import SAMPLING
from trifed.federation.messages import Rejected, layout_sizes, manifest, summary_manifest
from trifed.federation.run_folder import SHARED_PROJECTIONS, RunFolder
from trifed.federation.server import Server, layout_of
from trifed.federation.training import seeded
from trifed.federation.transport import Exchange, Reply, Transport
from trifed.methods.base import Stage, Upload


class FederatedRun:
    """One run over a transport. `server` is available once the run has begun."""

    server: Server

    def __init__(self, config: RunConfig, transport: Transport, folder: RunFolder, log: events.Log) -> None:
        self.config = config
        self.transport = transport
        self.folder = folder
        self.log = log

    def run(self) -> None:
        """Begin, or resume after the last whole round, and run to the end."""
        for number in range(self.begin() + 1, self.config.rounds + 1):
            self.update_clients(number)
            self.round(number)
            self.transport.save_checkpoint(number)
        self.update_clients(self.config.rounds + 1)
        self.finish()

    def begin(self) -> int:
        """Begin or resume; return the number of the last whole round, 0 for a new run."""
        opened = self.transport.open()
        self.server, method = opened.server, opened.server.context.method
        names = [record.name for record in self.transport.records]
        about = (method.name, method.evaluated_model, names)
        if opened.resumed is not None:
            self.log(events.Resumed(*about, round=opened.resumed, sent=opened.sent))
            return opened.resumed
        self.log(events.Started(*about, examples=opened.examples))
        if method.shared_projections:
            self._make_shared_projections()
        self._evaluate(0, ["start"])
        clients = range(len(names)) if method.summarise else ()
        self.server.open(
            self._collect(
                "summary", clients, lambda name, payload: events.SummaryReceived(name, summary_manifest(payload))
            )
        )
        self.transport.save_checkpoint(0)
        return 0

    def update_clients(self, number: int) -> None:
        """Let clients join and leave before round `number`."""
        self._send_shared_projections(number, self.transport.update_clients(number))

    def select(self, number: int) -> list[int]:
        """Draw the clients of a round among those that have examples; the draw depends on seed and round alone."""
        able = [client for client, record in enumerate(self.transport.records) if record.examples]
        wanted = max(1, round(self.config.participation * len(able)))
        if wanted >= len(able):
            return able
        drawn = seeded(self.config.seed, SAMPLING, number).choice(len(able), wanted, replace=False)
        return [able[position] for position in sorted(drawn)]

    def round(self, number: int) -> None:
        """Let the selected clients download, train and upload, aggregate their uploads, and evaluate."""
        accepted: list[int] = []
        uploads: list[Upload] = []
        download = partial(self.server.download, number)
        for client, reply in self.transport.ask("train", number, self.select(number), download):
            result = self._accept(number, client, reply)
            if isinstance(result, Rejected):
                self._leave_out(number, client, result)
            else:
                accepted.append(client)
                uploads += result
        self.transport.close_round(number, accepted)
        for bounded in self.server.aggregate(uploads):
            self.log(events.Bounded(number, self._name(bounded.client), bounded.bound, bounded.ratio))
        last, method = number == self.config.rounds, self.server.context.method
        if last or number % self.config.evaluate_every == 0:
            both: list[Stage] = ["trained", "received"] if last and self.server.context.compression.layout else []
            self._evaluate(number, [*dict.fromkeys([*both, method.evaluated_model])])

    def finish(self) -> None:
        """Let every client download its final values."""
        number, stage = self.config.rounds + 1, self.server.context.method.evaluated_model
        clients = [client for client, record in enumerate(self.transport.records) if not record.left]
        accepted = []
        for client, reply in self.transport.ask("finish", number, clients, partial(self.server.download, number)):
            if isinstance(reply, Rejected):
                self._leave_out(number, client, reply)
                continue
            accepted.append(client)
            if reply.sent is not None:
                self.log(events.Delivered(number, self._name(client), self._sizes(reply.sent)))
            if reply.scores is not None:
                self.log(events.ClientScores(number - 1, stage, self._name(client), **reply.scores))
        self.transport.close_round(number, accepted)
        self.log(events.Finished(number - 1))

    # -- parts of the opening

    def _make_shared_projections(self) -> None:
        """Make the frozen projections from the clients' first gradients, keep them, and send them to all."""
        layout, records = self.transport.adapted_layout, self.transport.records
        clients, sizes = [c for c, record in enumerate(records) if record.examples], layout_sizes(layout)
        gradients = self._collect(
            "gradient", clients, lambda name, payload: events.OpeningExchange(name, up=manifest(payload, sizes))
        )
        projections = self.server.make_shared_projections(gradients, layout)
        tensors = {name: torch.from_numpy(values) for name, values in projections.items()}
        self.folder.write_tensors(SHARED_PROJECTIONS, tensors, {})
        self._send_shared_projections(0, range(len(records)))

    def _send_shared_projections(self, number: int, clients: Sequence[int]) -> None:
        if not clients:
            return
        sizes = layout_sizes(layout_of(self.server.shared_projections))
        message = self.server.shared_projections_for
        for client, reply in self.transport.ask("projections", number, clients, message):
            if isinstance(reply, Rejected):
                self._leave_out(number, client, reply)
            else:
                down = manifest(reply.sent or b"", sizes)
                self.log(events.OpeningExchange(self._name(client), down=down))

    def _collect(
        self, kind: Exchange, clients: Sequence[int], event: Callable[[str, bytes], events.RunEvent]
    ) -> dict[int, bytes]:
        """Ask clients for a message before the first round, and log each with its sender's name."""
        payloads: dict[int, bytes] = {}
        for client, reply in self.transport.ask(kind, 0, clients, lambda client: None):
            if isinstance(reply, Rejected):
                self._leave_out(0, client, reply)
            else:
                payloads[client] = reply.payload or b""
                self.log(event(self._name(client), payloads[client]))
        return payloads

    # -- parts of a round

    def _accept(self, number: int, client: int, reply: Reply | Rejected) -> list[Upload] | Rejected:
        """Check a client's upload and log it; the list is empty for a method that sends nothing."""
        if isinstance(reply, Rejected):
            return reply
        uploads = []
        if reply.payload is not None:
            examples = self.transport.records[client].examples
            upload = self.server.accept(number, client, reply.payload, examples)
            if isinstance(upload, Rejected):
                return upload
            uploads = [upload]
        if reply.kept_own:
            self.log(events.KeptOwn(number, self._name(client)))
        up, down = self._sizes(reply.payload), self._sizes(reply.sent)
        facts = (reply.loss, reply.steps, reply.seconds)
        self.log(events.Trained(number, self._name(client), *facts, up, down))
        return uploads

    def _leave_out(self, number: int, client: int, rejected: Rejected) -> None:
        """Log that a client does not count in a round; before the first round every client has to.

        Raises:
            RunError: The run has not begun.
        """
        name = self._name(client)
        if number == 0:
            raise RunError(f"{name} could not be opened: {rejected.reason}; mend it, and start the run again")
        self.transport.reject(number, client, rejected)
        self.log(events.LeftOut(number, name, rejected.code, rejected.reason))

    def _evaluate(self, number: int, stages: Sequence[Stage]) -> None:
        for scores in self.transport.evaluate(number, stages):
            self.log(scores)

    def _name(self, client: int) -> str:
        return self.transport.records[client].name

    def _sizes(self, payload: bytes | None) -> dict[str, int]:
        return {} if payload is None else self.server.context.compression.manifest(payload)
