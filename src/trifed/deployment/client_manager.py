"""Who takes part in a run between sites: greeting, refusing, and asking clients by their place among all."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trifed.common.errors import RunError
from trifed.config.settings import DeploymentSettings
from trifed.deployment.protocol import Channel, Fact, Reply, Request
from trifed.deployment.refusals import Refusal, RefusalCode
from trifed.deployment.site_settings import NAME_PATTERN

NAME = re.compile(NAME_PATTERN)
LOOK_AGAIN = 1.0
"""Seconds between two looks at who is there."""
PATIENCE = 3
"""Greetings that a node may leave without an answer."""


class ClientManager:
    """The clients of one run.

    `names`: in the order of their places, once the run has begun; `nodes`: the node that answers to a name now;
    `bound`: the node that a name stays with; `waiting`: as `nodes`, of clients that came after the run began;
    `gone`: names of those that left for good; `refused`: nodes that may not take part; `agreed`: the base model's
    fingerprint, and a digest of what travels.
    """

    def __init__(
        self, channel: Channel, settings: DeploymentSettings, hello: Request, tell: Callable[..., None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.channel = channel
        self.settings = settings
        self.hello = hello
        self.tell = tell
        self.sleep = sleep
        self.names: list[str] = []
        self.nodes: dict[str, int] = {}
        self.bound: dict[str, int] = {}
        self.waiting: dict[str, int] = {}
        self.gone: set[str] = set()
        self.refused: set[int] = set()
        self.silent: Counter[int] = Counter()
        self.agreed = ("", "")

    def gather(self, names: Sequence[str] = ()) -> None:
        """Greet clients until there are enough. `names`: of a run that goes on, by place.

        Raises:
            RunError: too few came in time.
        """
        self.names = list(names)
        wanted, waited = len(set(names) - self.gone) or self.settings.clients, 0.0
        while self._greet() < wanted and waited < self.settings.join_seconds:
            self.sleep(LOOK_AGAIN)
            waited += LOOK_AGAIN
        if len(self.nodes) < (self.settings.quorum if names else wanted):
            raise RunError(
                f"{len(self.nodes)} of {wanted} clients came within {self.settings.join_seconds:g} seconds; start "
                f"the others' nodes, or lower deployment.clients"
            )
        if not names:
            self.names = sorted(self.nodes)

    def ask(
        self,
        kind: str,
        asked: Mapping[int, Mapping[str, Fact]],
        parts: Mapping[int, Mapping[str, bytes]] | None = None,
    ) -> dict[int, Reply]:
        """The answers of clients by place, of those that are there and answer in time."""
        self._greet()  # who came back has another number
        here = self.channel.nodes()
        about = {"run": self.hello.facts["run"], "seconds": self.settings.round_seconds}
        nodes = {place: self.nodes.get(self.names[place]) for place in asked}
        requests = {
            node: Request(kind, {**asked[place], **about, "place": place}, (parts or {}).get(place, {}))
            for place, node in nodes.items()
            if node is not None and node in here
        }
        answers = self.channel.ask(requests, self.settings.round_seconds)
        for place, node in nodes.items():
            if node in answers and answers[node].lost:
                del self.nodes[self.names[place]]  # greeted again before it is asked again
        absent = {
            place: Reply(error=RefusalCode.NOT_CONNECTED) for place, node in nodes.items() if node not in here
        }
        return absent | {place: answers[node] for place, node in nodes.items() if node in answers}

    def look(self) -> list[str]:
        """Who has come since the run began, and may be let in."""
        self._greet()
        return sorted(self.waiting)

    def enrol(self, name: str) -> int:
        """Give a client that waits the next place."""
        self.nodes[name] = self.waiting.pop(name)
        self.names.append(name)
        return len(self.names) - 1

    def dismiss(self, name: str, refusal: Refusal) -> None:
        """A client that was enrolled cannot take part; all others have their places from now on."""
        self.names.remove(name)
        self.bound.pop(name)
        node = self.nodes.pop(name, None)
        if node is not None:  # else it will be greeted again
            self._refuse(node, Refusal(refusal.code, f"{name} could not be opened: {refusal.reason}"))

    def refusal_of(self, reply: Reply | None) -> Refusal | None:
        """Why an answer does not count before it is read; None where it may."""
        if reply is None:
            return Refusal(RefusalCode.NO_ANSWER, f"no answer within {self.settings.round_seconds:g} seconds")
        code = reply.error or (RefusalCode.LOST if reply.lost else None)
        return None if code is None else Refusal.of(code)

    def need_all(self, answers: Mapping[int, Reply], what: str) -> None:
        """Before the first round everybody counts; RunError where somebody did not answer as asked."""
        for place, name in enumerate(self.names):
            refusal = self.refusal_of(answers.get(place))
            if refusal is not None:
                raise RunError(f"{name} could not {what}: {refusal.reason}; mend it, and start the run again")

    def _greet(self) -> int:
        """Ask nodes that are new who they are; how many clients there are now."""
        new = self.channel.nodes() - self.refused - {*self.nodes.values(), *self.waiting.values()}
        seconds = min(self.settings.join_seconds, self.settings.round_seconds)
        answers = self.channel.ask(dict.fromkeys(sorted(new), self.hello), seconds)
        for node in sorted(new - set(answers)):
            self.silent[node] += 1
            if self.silent[node] == PATIENCE:  # or it would hold up every round
                reason = f"a node did not answer {PATIENCE} greetings, {seconds:g} seconds each"
                self._refuse(node, Refusal(RefusalCode.NO_ANSWER, reason))
        told = {node: reply for node, reply in sorted(answers.items()) if not reply.error}
        for node, reply in sorted(answers.items()):
            if reply.error:
                self._refuse(node, Refusal.of(reply.error))
        if self.agreed == ("", "") and told:  # those that most have
            votes = Counter(_identity(reply) for reply in told.values())
            self.agreed = max(sorted(votes), key=votes.__getitem__)
        for node, reply in told.items():
            self._welcome(node, reply)
        return len(self.nodes)

    def _welcome(self, node: int, reply: Reply) -> None:
        name = str(reply.facts.get("name", ""))
        code = self._against(node, name, reply)
        if code == RefusalCode.BAD_NAME:  # what stands there is not repeated
            self._refuse(node, Refusal.of(code))
        elif code is not None:
            self._refuse(node, Refusal(code, f"{name}: {Refusal.of(code).reason}"))
        else:
            here = self.nodes if name in self.names or not self.names else self.waiting
            here[name] = self.bound[name] = node
            self.tell(event="joined", client=name)

    def _against(self, node: int, name: str, reply: Reply) -> RefusalCode | None:
        """Why a node that was greeted may not take part; None where it may."""
        against = {
            RefusalCode.BAD_NAME: not NAME.fullmatch(name),
            RefusalCode.OTHER_BASE: _identity(reply) != self.agreed,
            RefusalCode.LEFT: name in self.gone,
            RefusalCode.TOO_LATE: bool(self.names) and name not in self.names and not self.settings.late,
            RefusalCode.NAME_TAKEN: {**self.waiting, **self.nodes}.get(name) in self.channel.nodes(),
            RefusalCode.OTHER_KEY: self.settings.bound and self.bound.get(name, node) != node,
        }
        return next((code for code, holds in against.items() if holds), None)

    def _refuse(self, node: int, refusal: Refusal) -> None:
        self.refused.add(node)
        self.tell(event="refused", node=str(node), code=refusal.code.value, reason=refusal.reason)


def _identity(reply: Reply) -> tuple[str, str]:
    facts: Mapping[str, Any] = reply.facts
    return str(facts.get("base", "")), str(facts.get("digest", ""))
