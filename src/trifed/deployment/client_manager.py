"""The clients that are connected to a run between sites: greeting, refusing, and asking them by their index."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from trifed.common.errors import RunError
from trifed.config.settings import DeploymentSettings
from trifed.deployment.protocol import Channel, Fact, RefusalCode, Reply, Request, rejected_for
from trifed.deployment.site_settings import NAME_PATTERN
from trifed.deployment.wait_notices import WaitNotices, name_some
from trifed.federation import events
from trifed.federation.messages import Rejected
from trifed.federation.transport import ClientRecord

POLL_SECONDS = 1.0
"""Seconds between two looks at the connected nodes."""
UNDECIDED = ("", "")
"""The identity before enough clients agree on one."""
MAX_UNANSWERED = 3
"""Greetings that a node may leave without an answer before it is refused."""


@dataclass
class ClientManager:
    """The clients of one run.

    Attributes:
        names: Names in the order of the clients' indices, once the run has begun.
        nodes: Name → the node that answers to it now.
        registered_nodes: Name → the node whose key it is registered with.
        waiting: As `nodes`, for clients that connected after the run had begun.
        withdrawn: Names of clients that have left for good.
        refused: Nodes that may not take part.
        undecided: Node → its answer to the greeting, before enough clients agree on a base model.
        identity: The base model's fingerprint, and a digest of layout and start, the same for all clients.
    """

    channel: Channel
    settings: DeploymentSettings
    hello: Request
    log: events.Log
    sleep: Callable[[float], None] = time.sleep
    names: list[str] = field(default_factory=list)
    nodes: dict[str, int] = field(default_factory=dict)
    registered_nodes: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    undecided: Mapping[int, Reply] = field(default_factory=dict)
    unanswered: Counter[int] = field(default_factory=Counter)
    identity: tuple[str, str] = UNDECIDED

    def gather(self) -> None:
        """Wait for the clients of a new run, and give them indices in the order of their names.

        Raises:
            RunError: Too few clients connected in time.
        """
        self._wait(self.settings.clients, self.settings.clients)
        self.names = sorted(self.nodes)

    def resume(self, records: Sequence[ClientRecord], identity: tuple[str, str]) -> None:
        """Wait for the clients of a run that continues, with the base model of its beginning; the quorum suffices.

        Raises:
            RunError: Too few clients connected in time.
        """
        self.identity = identity
        self.names = [record.name for record in records]
        self.registered_nodes = {record.name: record.node for record in records}
        self.withdrawn = {record.name for record in records if record.left}
        self._wait(len(records) - len(self.withdrawn) or self.settings.clients, self.settings.quorum)

    def _wait(self, wanted: int, needed: int) -> None:
        waited, notices = 0.0, WaitNotices(self.log, first=0)
        while self._greet() < wanted and waited < self.settings.join_seconds:
            notices.give(lambda: self._not_connected(wanted), set(self.names) - self.withdrawn - set(self.nodes))
            self.sleep(POLL_SECONDS)
            waited += POLL_SECONDS
        if len(self.nodes) < needed:
            raise RunError(self._too_few(wanted))

    def _too_few(self, wanted: int) -> str:
        """Return why a run cannot begin or continue: fewer clients connected in time than it needs."""
        bases, refused = len({*map(_identity, self.undecided.values())}), len(self.refused)
        facts, remedy = "", "start the others' nodes"
        if refused:
            facts = f", and {'1 node was' if refused == 1 else f'{refused} nodes were'} refused"
            remedy = "correct the reason, which was printed above, and start the others' nodes"
        if bases > 1:
            facts, remedy = f", with {bases} different base models{facts}", "give all sites the same base model"
        return (
            f"{len(self.nodes) + len(self.undecided)} of {wanted} clients came within "
            f"{self.settings.join_seconds:g} seconds{facts}; {remedy}, or lower deployment.clients"
        )

    def _not_connected(self, wanted: int) -> str:
        """Return in words for which of the `wanted` clients the run waits."""
        missing = sorted(set(self.names) - self.withdrawn - set(self.nodes))
        if missing:
            return f"{name_some(missing)} to connect"
        connected = sorted({*self.nodes, *map(_name, self.undecided.values())})
        if len(connected) >= wanted:
            return f"clients with the same base model; connected with different ones: {name_some(connected)}"
        so_far = f" (connected: {name_some(connected)})" if connected else ""
        again = (
            "; a refused node is not asked again before the run is stopped and continued" if self.refused else ""
        )
        return f"{wanted - len(connected)} of {wanted} clients to connect{so_far}{again}"

    def ask(
        self,
        kind: str,
        facts: Mapping[int, Mapping[str, Fact]],
        parts: Mapping[int, Mapping[str, bytes]] | None = None,
    ) -> dict[int, Reply]:
        """Send a request to clients, and collect the replies that come in time, by index."""
        self._greet()  # a node that reconnected has another number
        connected = self.channel.nodes()
        common = {"run": self.hello.facts["run"], "seconds": self.settings.round_seconds}
        nodes = {client: self.nodes.get(self.names[client]) for client in facts}
        requests = {
            node: Request(kind, {**facts[client], **common, "place": client}, (parts or {}).get(client, {}))
            for client, node in nodes.items()
            if node is not None and node in connected
        }
        number = next((fact["round"] for fact in facts.values() if "round" in fact), None)
        notices, names = (
            WaitNotices(self.log),
            {node: self.names[client] for client, node in nodes.items() if node},
        )

        def missing(waiting: Collection[int]) -> None:
            late = sorted(names[node] for node in waiting)
            notices.give(lambda: f"replies of {name_some(late)}", late, None if number is None else int(number))

        replies = self.channel.ask(requests, self.settings.round_seconds, missing)
        for client, node in nodes.items():
            if node in replies and replies[node].lost:
                del self.nodes[self.names[client]]  # greeted again before it is asked again
        return {
            client: Reply(error="not_connected") if node not in connected else replies[node]
            for client, node in nodes.items()
            if node not in connected or node in replies
        }

    def check(self, reply: Reply | None) -> Reply | Rejected:
        """Return a reply that may be read, or the reason why it does not count."""
        if reply is None:
            return Rejected("no_answer", f"no answer within {self.settings.round_seconds:g} seconds")
        code = reply.error or ("lost" if reply.lost else None)
        return reply if code is None else rejected_for(code)

    def new_clients(self) -> list[str]:
        """Return the names of the clients that connected after the run had begun, and may join."""
        self._greet()
        return sorted(self.waiting)

    def add(self, name: str) -> int:
        """Give a waiting client the next index."""
        self.nodes[name] = self.waiting.pop(name)
        self.names.append(name)
        return len(self.names) - 1

    def refuse(self, name: str, rejected: Rejected) -> None:
        """Remove a client that could not be opened; the indices of those after it move up."""
        self.names.remove(name)
        self.registered_nodes.pop(name)
        node = self.nodes.pop(name, None)
        if node is not None:  # else it will be greeted again
            self._refuse(node, rejected.code, f"{name} could not be opened: {rejected.reason}")

    def _greet(self) -> int:
        """Greet nodes that are new; return the number of connected clients."""
        greeted_before = {*self.nodes.values(), *self.waiting.values(), *self.undecided}
        new = self.channel.nodes() - self.refused - greeted_before
        seconds = min(self.settings.join_seconds, self.settings.round_seconds)
        notices = WaitNotices(self.log)
        replies = self.channel.ask(
            dict.fromkeys(sorted(new), self.hello),
            seconds,
            lambda nodes: notices.give(lambda: f"the first reply of {len(nodes)} connected nodes"),
        )
        for node in sorted(new - set(replies)):
            self.unanswered[node] += 1
            if self.unanswered[node] == MAX_UNANSWERED:  # or it would hold up every round
                self._refuse(
                    node,
                    "no_answer",
                    f"node {node}: it did not answer {MAX_UNANSWERED} greetings, {seconds:g} seconds each",
                )
        for node, reply in sorted(replies.items()):
            if reply.error:
                self._refuse(node, reply.error, f"node {node}: {rejected_for(reply.error).reason}")
        greeted: Mapping[int, Reply] = {node: reply for node, reply in sorted(replies.items()) if not reply.error}
        if self.identity == UNDECIDED:
            greeted = self._decide({**self.undecided, **greeted})
        for node, reply in greeted.items():
            name = _name(reply)
            code = self._refusal_code(node, name, reply)
            if code is None:
                known = self.nodes if name in self.names or not self.names else self.waiting
                known[name] = self.registered_nodes[name] = node
                self.log(events.Joined(name))
            else:
                subject = "" if code == "bad_name" else f"{name}: "  # a bad name is not repeated
                self._refuse(node, code, f"{subject}{rejected_for(code).reason}")
        return len(self.nodes)

    def _decide(self, greeted: Mapping[int, Reply]) -> Mapping[int, Reply]:
        """Take the base model that enough clients have; return the answers that can be judged now."""
        self.undecided = {node: reply for node, reply in greeted.items() if node in self.channel.nodes()}
        votes = Counter({_name(reply): _identity(reply) for reply in self._candidates()}.values())
        most = max(sorted(votes), key=votes.__getitem__, default=UNDECIDED)
        clients, quorum = self.settings.clients, self.settings.quorum
        if votes[most] < min(clients, max(quorum, clients // 2 + 1)):
            return {}
        self.identity, decided, self.undecided = most, self.undecided, {}
        return decided

    def _candidates(self) -> list[Reply]:
        """Return the undecided answers with which nothing but their base model can be wrong."""
        codes = {node: self._refusal_code(node, _name(reply), reply) for node, reply in self.undecided.items()}
        return [self.undecided[node] for node, code in codes.items() if code == "other_base"]

    def _refusal_code(self, node: int, name: str, reply: Reply) -> RefusalCode | None:
        """Return why a node that was greeted may not take part; None if it may."""
        conditions: dict[RefusalCode, bool] = {
            "bad_name": not re.fullmatch(NAME_PATTERN, name),
            "method_mismatch": reply.facts.get("method_code") != self.hello.facts.get("method_code"),
            "other_base": _identity(reply) != self.identity,
            "left": name in self.withdrawn,
            "too_late": bool(self.names) and name not in self.names and not self.settings.late,
            "name_taken": {**self.waiting, **self.nodes}.get(name) in self.channel.nodes(),
            "other_key": self.settings.bound and self.registered_nodes.get(name, node) != node,
        }
        return next((code for code, holds in conditions.items() if holds), None)

    def _refuse(self, node: int, code: str, reason: str) -> None:
        self.refused.add(node)
        self.log(events.Refused(str(node), code, reason))


def _name(reply: Reply) -> str:
    return str(reply.facts.get("name", ""))[:200]


def _identity(reply: Reply) -> tuple[str, str]:
    return str(reply.facts.get("base", ""))[:64], str(reply.facts.get("digest", ""))[:64]
