"""All clients in one process: one frozen base, tensors swapped in and out, every message encoded and checked.

With [privacy] clients clip and noise as they do at sites, but from the run's seed, so that a run can be repeated.
**Anyone with the seed can remove that noise again**: the files of a simulated run are not protected.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from trifed.common.errors import MessageError, RunError
from trifed.config.run import RunConfig
from trifed.data import FederatedData, content_hash
from trifed.federation import events
from trifed.federation.at_once import clients_at_once
from trifed.federation.base_server import layout_of
from trifed.federation.best_round import EvaluatedRounds
from trifed.federation.client import Client, ScoredModel
from trifed.federation.client_settings import ClientSettings
from trifed.federation.client_update import ClientDataset, ClientState, train_rounds
from trifed.federation.context import run_context
from trifed.federation.dp_mechanism import simulated_privacy
from trifed.federation.kept_checkpoints import keep, kept_checkpoint
from trifed.federation.messages import BAD_REPLY, Rejected
from trifed.federation.results import facts_of
from trifed.federation.round import FederatedRun
from trifed.federation.run_folder import DAMAGED, PRIVACY, SHARED_PROJECTIONS, EventLog, RunFolder
from trifed.federation.sealed.rules import SumTerms, placeholder_keys
from trifed.federation.sealed.server import make_server
from trifed.federation.shared_projections import adapted_layout, receive_shared_projections
from trifed.federation.state_tensors import read_checkpoint
from trifed.federation.training.parallel import MIXED_GROUPS, in_threads
from trifed.federation.training.shared_model import SharedModel
from trifed.federation.transport import ClientRecord, Exchange, MessageTo, Opened, Reply
from trifed.methods.base import Stage, State
from trifed.methods.packing import Layout

MATRICES = ("similarity_data", "similarity_model", "weights")


@dataclass
class Simulation:
    """The transport within one process, with the clients of one run; `datasets` are the clients' examples."""

    config: RunConfig
    data: FederatedData
    datasets: list[ClientDataset]
    shared_model: SharedModel
    folder: RunFolder
    listener: events.Listener

    def __post_init__(self) -> None:
        config = self.config
        self.log = EventLog(self.folder, self.listener)
        model = self.shared_model
        self.context = run_context(config, model.exchanged, model.fingerprint, features=model.model.hidden)
        self.server = make_server(self.context, len(self.datasets), self.shared_model.exchanged_start)
        self.server.names = [dataset.name for dataset in self.datasets]
        labels = len(self.data.label_names)
        ledgers = self.folder.path / PRIVACY
        self.clients = [
            Client(
                self.context,
                self.shared_model,
                dataset,
                ClientSettings.of(config, labels, dataset.name),
                simulated_privacy(config, dataset, ledgers / dataset.name),
            )
            for dataset in self.datasets
        ]
        self.records = [ClientRecord(c.dataset.name, c.dataset.index, c.examples) for c in self.clients]
        largest = max([config.training_of(dataset.name).batch_size for dataset in self.datasets], default=1)
        at_most = config.training.model_copy(update={"batch_size": largest})
        self.at_once = clients_at_once(self.shared_model, self.datasets, at_most)
        self.identity = identity_of(config, self.data, self.shared_model)
        self.before: dict[int, ClientState] = {}  # the clients' states before the present exchange
        self.final: dict[int, ScoredModel] = {}  # the evaluated models after the last round

    def run(self) -> None:
        """Begin, or resume after the last whole round, and run to the end.

        With `keep = "best"` the clients then have the state of the best round; the last checkpoint stays.
        """
        run = FederatedRun(self.config, self, self.folder, self.log)
        run.run()
        kept = run.evaluated.kept(self.folder.rounds_done())
        if kept is not None and kept.round != kept.last:
            path = self.folder.path / kept_checkpoint(self.folder.path, kept.round)
            self.restore(*read_checkpoint(path, DAMAGED)[1:])
            self.final = {}

    def final_model(self, client: int) -> ScoredModel:
        """Return the model that a client would use from now on, which is the evaluated one."""
        if client not in self.final:  # a run that was resumed after its last round
            (scored,) = self._score_models([self.clients[client]], self.context.method.evaluated_model)
            self.final[client] = scored[1]
        return self.final[client]

    # -- the transport

    @property
    def adapted_layout(self) -> Layout:
        """Names and shapes of the weights that are adapted."""
        return adapted_layout(self.shared_model)

    def open(self) -> Opened:
        """Give every client the common start, or the state of the last checkpoint."""
        checkpoint = self.folder.load_checkpoint(self.identity)
        if checkpoint is None:
            for client in self.clients:
                client.start()
            return Opened(self.server)
        number, states, server = checkpoint
        self.restore(states, server)
        if self.config.keep == "best":  # the process may have ended before the last checkpoint was kept
            rounds = EvaluatedRounds(self.config, self.context.method.evaluated_model)
            rounds.read(self.folder.events())
            keep(self.folder.path, number, self.config.keep_checkpoints, rounds.needed(number))
        out = {e["client"] for e in self.folder.events() if e["event"] == "left out" and e["round"] == 0}
        for record in self.records:
            record.left, record.examples = record.name in out, 0 if record.name in out else record.examples
        return Opened(
            self.server,
            resumed=number,
            sent=sum(sum(e.get(way, {}).values()) for e in self.folder.events() for way in ("up", "down")),
        )

    def restore(self, states: list[ClientState], server: State) -> None:
        """Load the clients' and the server's state from a checkpoint."""
        if self.context.method.shared_projections:
            self.server.shared_projections = self.folder.read_arrays(SHARED_PROJECTIONS)
            self.server.start_from_projections()
            self.shared_model.set_shared_projections(self.server.shared_projections)
        self.server.load_state_dict(server)
        for client, state in zip(self.clients, states, strict=True):
            index, client.state = client.dataset.index, state
            self.server.recall(index, state.memory)
            missing = any(name not in state.tensors for name, _ in self.shared_model.received)
            arrived = self.server.arrives(index) if missing else None
            if arrived is not None:
                client.state = replace(state, tensors=self.shared_model.receive(state.tensors, arrived))

    def ask(
        self, kind: Exchange, number: int, clients: Sequence[int], message: MessageTo
    ) -> Iterator[tuple[int, Reply | Rejected]]:
        """Let the clients reply: in training several at once, otherwise one after the other.

        No message is held longer than its reply takes.
        """
        size = self.at_once.asked_together if kind == "train" else 1
        for group in (clients[first : first + size] for first in range(0, len(clients), size)):
            sent = {index: message(index) for index in group}
            if kind != "send":  # a part of a sum that does not count takes back the training too
                self.before.update((index, self.clients[index].state) for index in group)
            replies: Iterator[tuple[int, Reply | Rejected]] = (
                self._train(number, sent) if kind == "train" else self._reply(kind, number, sent)
            )
            for index, reply in replies:
                client = self.clients[index]
                if not self.records[index].left:
                    self.records[index].examples = client.examples  # with noise, known after its summary
                while client.guards.new_warnings:
                    self.log(events.Warned(client.dataset.name, client.guards.new_warnings.pop(0)))
                yield index, reply

    def _train(self, number: int, sent: Mapping[int, bytes | None]) -> Iterator[tuple[int, Reply | Rejected]]:
        """Let clients take their messages and train together; the time is shared out in equal parts."""
        began = time.perf_counter()
        rounds = [self.clients[index].begin_round(number, message) for index, message in sent.items()]
        trained = train_rounds(self.shared_model, rounds, self.config.training, self.at_once)
        for (index, message), training, result in zip(sent.items(), rounds, trained, strict=True):
            try:
                done = self.clients[index].end_round(training, result)
            except MessageError as error:  # in a sealed run: numbers that are not finite
                yield index, Rejected(BAD_REPLY, str(error))
                continue
            seconds = round((time.perf_counter() - began) / len(rounds), 4)
            yield index, Reply(message, done.upload, done.loss, done.steps, seconds)

    def _reply(
        self, kind: Exchange, number: int, sent: Mapping[int, bytes | None]
    ) -> Iterator[tuple[int, Reply | Rejected]]:
        """Let clients reply to messages other than those of a round."""
        for index, message in sent.items():
            client, payload = self.clients[index], None
            if kind == "gradient":
                payload = client.gradient()
            elif kind == "summary":
                payload = client.summary(self.identity)
            elif kind == "send" and message is not None:
                payload = client.send(number, message)
            elif kind == "finish" and message is not None:
                client.take(number, message)
            elif kind == "projections" and message is not None:
                layout = layout_of(self.server.shared_projections)
                receive_shared_projections(self.shared_model, self.context, index, message, layout)
                client.start()
            yield index, Reply(message, payload)

    def reject(self, number: int, client: int, rejected: Rejected) -> None:
        """Take back the client's update, as if it was not selected; before round 1 it takes no part in the run.

        Raises:
            RunError: No client remains before round 1.
        """
        self.clients[client].state = self.before[client]
        if number == 0:
            self.records[client].left, self.records[client].examples = True, 0
            self.clients[client].start()  # it has a model all the same, for the results
            if all(record.left for record in self.records):
                raise RunError(f"no client could be opened; the last one: {rejected.reason}")

    def with_keys(self, number: int, sum_terms: SumTerms) -> SumTerms:
        """Return the terms with zeros for keys and signatures, so that a message has the size that sites get."""
        return placeholder_keys(sum_terms, [record.name for record in self.records])

    def check_ready(self, number: int, ready: Sequence[int]) -> None:
        """Check that a client is ready, as `close_round` does."""
        self.close_round(number, ready)

    def close_round(self, number: int, accepted: Sequence[int], sealed: bool = False) -> None:
        """Check that a round has a result.

        Raises:
            RunError: Every client was left out.
        """
        if not accepted and not sealed:
            raise RunError(
                f"round {number}: every client was left out; events.jsonl says why. The last complete round is "
                f"{number - 1}"
            )

    def update_clients(self, number: int) -> Sequence[int]:
        """Return no client: all take part from the beginning to the end."""
        return ()

    def evaluate(self, number: int, stages: Sequence[Stage]) -> Iterator[events.ClientScores]:
        """Score every client's model at each stage, and write the server's matrices."""
        for stage in stages:
            for client, found in self._score_models(self.clients, stage):
                if number == self.config.rounds and stage == self.context.method.evaluated_model:
                    self.final[client.dataset.index] = found
                parts = ((found.valid, client.dataset.valid), (found.test, client.dataset.test))
                scores = [facts_of(part, data.labels, self.config.computed_metrics) for part, data in parts]
                name, share = client.dataset.name, found.received_share
                yield events.ClientScores(number, stage, name, scores[0], scores[1], share)
        matrices = {n: torch.tensor(self.server.state[n]) for n in MATRICES if n in self.server.state}
        if matrices:
            self.folder.write_tensors(f"matrices/round-{number:04d}.safetensors", matrices, {})

    def save_checkpoint(self, number: int, needed: Collection[int] = ()) -> None:
        """Write the clients' and the server's state; before the first round there is none to keep."""
        if number:
            arrays = {**self.server.state, **self.server.bookkeeping()}
            self.folder.save_checkpoint(
                number,
                self._kept(),
                arrays,
                self.identity,
                count=self.config.keep_checkpoints,
                settings=self.config.model_dump(mode="json"),
                needed=needed,
            )

    # -- helpers

    def _kept(self) -> list[ClientState]:
        """Return the clients' states without the values that the next round's download replaces."""
        states = [client.state for client in self.clients]
        method, server, every_round = self.context.method, self.server, self.config.participation == 1
        if (
            not every_round
            or self.context.sums is not None  # a client may keep rows of its own
            or method.evaluated_model != "received"
            or any(method.download(server.state, index) is None for index in range(len(states)))
        ):
            return states
        received = {name for name, _ in self.shared_model.received}
        return [
            replace(state, tensors={name: t for name, t in state.tensors.items() if name not in received})
            for state in states
        ]

    def _score_models(self, clients: Sequence[Client], stage: Stage) -> Iterator[tuple[Client, ScoredModel]]:
        """Yield clients with their models at a stage, after their next download, and the scores.

        The models are scored in as many threads as clients train in, even one alone: threads change last digits.
        """

        def score(model: SharedModel, client: Client, stop: threading.Event) -> ScoredModel:
            arrived = None if stage in ("start", "trained") else self.server.arrives(client.dataset.index)
            return client.on(model).evaluated(stage, arrived)

        size = MIXED_GROUPS * self.at_once.threads
        for first in range(0, len(clients), size):
            group = clients[first : first + size]
            yield from zip(group, in_threads(self.shared_model, group, score, self.at_once.threads), strict=True)


def identity_of(config: RunConfig, data: FederatedData, shared_model: SharedModel) -> str:
    """Return the identity of the data and the model that a checkpoint may be continued with."""
    known = f"{config.run_id()} {content_hash(data)} {shared_model.fingerprint}"
    return f"{known} {shared_model.start_digest}".rstrip()
