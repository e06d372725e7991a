"""Clients that join a run between sites, have changed data, or leave for good."""

from __future__ import annotations

from dataclasses import dataclass, field

from trifed.common.errors import LockedError, MessageError, RunError
from trifed.common.lock import held
from trifed.config.run import RunConfig
from trifed.deployment.checkpoint import ServerCheckpoint
from trifed.deployment.client_manager import ClientManager
from trifed.deployment.handshake import client_record
from trifed.deployment.protocol import Reply
from trifed.federation import events
from trifed.federation.base_server import BaseServer
from trifed.federation.messages import Rejected, summary_manifest
from trifed.federation.run_folder import RunFolder
from trifed.federation.transport import ClientRecord


@dataclass
class Membership:
    """Changes of the clients between two rounds.

    Attributes:
        changed: Clients that have to be opened again because their data differ from those at the last opening.
        leaving: Clients that have asked to leave for good.
    """

    server: BaseServer
    records: list[ClientRecord]
    client_manager: ClientManager
    checkpoint: ServerCheckpoint
    log: events.Log
    changed: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)

    def note(self, client: int, reply: Reply) -> None:
        """Note that a client leaves, has other data, or has lost its state, as its reply says."""
        if reply.facts.get("left"):
            self.leaving.add(client)
        elif reply.facts.get("changed"):
            self.changed.add(client)
        elif reply.lost:
            backup = reply.facts.get("has", 0)  # the round of a backup of the client's state
            if "has" not in reply.facts:  # the client's whole folder is lost, its mark of the data too
                self.changed.add(client)
            record = self.records[client]
            record.counts = backup if isinstance(backup, int) and 0 < backup < 2**31 else 0
            record.beginning = str(reply.facts.get("beginning", ""))[:100]
            self.server.forget(client)

    def update(self, number: int) -> bool:
        """Carry out every change that is due before round `number`; return whether there was one."""
        left = self.withdraw_leaving(number)
        reopened = [client for client in sorted(self.changed) if self._open_again(number, client)]
        self.changed = set()
        joined = [name for name in self.client_manager.new_clients() if self._add(number, name)]
        nodes = self.client_manager.registered_nodes
        moved = [record for record in self.records if nodes[record.name] != record.node]
        for record in moved:  # its node has another key, if the run allows that
            record.node = nodes[record.name]
        return bool(left or reopened or joined or moved)

    def withdraw_leaving(self, number: int) -> bool:
        """Withdraw the clients that leave; return whether there was one."""
        requested = self.checkpoint.leaving()
        leaving = [
            client
            for client, record in enumerate(self.records)
            if not record.left and (client in self.leaving or record.name in requested)
        ]
        for client in leaving:
            self.dismiss(client)
            self.log(events.Withdrawn(number, self.records[client].name))
        if leaving:
            self.checkpoint.forget_earlier()
        self.leaving = set()
        return bool(leaving)

    def dismiss(self, client: int) -> None:
        """Delete a client's values, and ask it for nothing more; its index stays."""
        withdraw(self.server, self.records[client], client)
        self.client_manager.withdrawn.add(self.records[client].name)

    def _open_again(self, number: int, client: int) -> bool:
        record = self.records[client]
        opened = self._open(client, record.name, again=1)
        if isinstance(opened, Rejected):
            self.log(events.LeftOut(number, record.name, opened.code, opened.reason))
            return False
        record.examples, record.data = opened.examples, opened.data
        self.log(events.OpenedAgain(number, record.name, record.examples))
        return True

    def _add(self, number: int, name: str) -> bool:
        opened = self._open(self.client_manager.add(name), name)
        if isinstance(opened, Rejected):
            self.client_manager.refuse(name, opened)
            return False
        self.records.append(opened)
        self.log(events.CameLate(number, name, opened.examples))
        return True

    def _open(self, client: int, name: str, again: int = 0) -> ClientRecord | Rejected:
        """Open a client during the run, and give its summary to the server."""
        replies = self.client_manager.ask("open", {client: {"start": 0, "again": again}})
        reply = self.client_manager.check(replies.get(client))
        if isinstance(reply, Rejected):
            return reply
        try:
            record = client_record(self.client_manager, name, reply)
            payload = reply.part("summary") if self.server.context.method.summarise else None
            summary = None if payload is None else self.server.read_summary(client, payload)
        except MessageError as error:
            return Rejected("bad_reply", str(error))
        self.server.admit(client, summary, name)
        if payload is not None and summary is not None:
            self.log(events.SummaryReceived(name, summary_manifest(payload, summary)))
        return record


def withdraw(server: BaseServer, record: ClientRecord, client: int) -> None:
    """Delete a client's values, and ask it for nothing more."""
    server.withdraw(client)
    record.left = True
    record.examples = record.counts = 0


def withdraw_from(folder: RunFolder, config: RunConfig, name: str) -> bool:
    """Withdraw a client from a run's folder.

    Returns:
        True if the client is withdrawn; False if the process that leads the run will do it before its next round.

    Raises:
        RunError: No run between sites has begun there, or it has no such client.
    """
    checkpoint = ServerCheckpoint(folder, config.keep_checkpoints)
    clients = [record.name for record in checkpoint.records if not record.left]
    if name not in clients:
        known = ", ".join(clients) or "none: no run between sites has begun there"
        raise RunError(f"{folder.path}: no client '{name}'; its clients are {known}")
    try:
        with held(folder.path):
            done, server, records = checkpoint.load(config)
            client = [record.name for record in records].index(name)
            withdraw(server, records[client], client)
            folder.append(events.Withdrawn(done + 1, name).to_dict())
            checkpoint.forget_earlier()
            checkpoint.save(done, server, records)
    except LockedError:
        checkpoint.leave_next(name)
        return False
    return True
