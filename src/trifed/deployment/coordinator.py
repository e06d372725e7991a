"""A whole run, led from a server that shares nothing with the clients but messages; whatever carries these.

A client that does not answer in time, or answers what is not to be accepted, is left out of that round with the
reason in the log: the round is then the one from which it was absent. Below the quorum the run stops, and goes on
from its last whole round when it is asked to.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from trifed.common.errors import MessageError, RunError
from trifed.config.run import RunConfig
from trifed.config.settings import GUARDS
from trifed.deployment.checkpoint import ServerCheckpoint
from trifed.deployment.client_manager import ClientManager
from trifed.deployment.handshake import agree_on_shared_projections, begin, open_clients
from trifed.deployment.membership import Membership, leave_out
from trifed.deployment.protocol import LEFT_AT_HOME, Channel, Fact, Reply, Request, read_layout
from trifed.deployment.refusals import Refusal, RefusalCode
from trifed.federation.client_update import SAMPLING
from trifed.federation.privacy_report import promise
from trifed.federation.results import summarise_events
from trifed.federation.run_folder import Event, RunFolder
from trifed.federation.training import seeded
from trifed.methods.base import Upload
from trifed.privacy import facts_of
from trifed.tasks import TASKS

Parts = dict[int, Mapping[str, bytes]]


class Coordinator:
    """One run under way, kept in `folder`. `members`: its clients by place; `server`: once it has begun."""

    def __init__(
        self, config: RunConfig, channel: Channel, folder: RunFolder, listener: Callable[[Event], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.config = config
        self.folder = folder
        self.listener = listener
        self.checkpoint = ServerCheckpoint(folder)
        self.name = self.checkpoint.facts.get("run") or f"{config.run_id()}-{secrets.token_hex(4)}"
        hello = Request("hello", {"run": self.name, "config": settings_to_send(config)})
        self.client_manager = ClientManager(channel, config.deployment, hello, self._tell, sleep)

    def run(self) -> None:
        """From the last whole round, or from the beginning, to the end.

        Raises:
            RunError: too few clients, or too few uploads in a round; running in the same folder again goes on.
        """
        with self.checkpoint.held():
            first = self._continue() if self.checkpoint.facts else self._begin()
            self.membership = Membership(
                self.server, self.members, self.client_manager, self.checkpoint, self._tell
            )
            for number in range(first, self.config.rounds + 1):
                self._before(number)
                self._round(number)
                self.checkpoint.save(number, self.server, self.members)
            self._before(self.config.rounds + 1)
            self._finish()

    # -- before the first round

    def _begin(self) -> int:
        (self.folder.path / "events.jsonl").unlink(missing_ok=True)  # of a run that never began
        self.client_manager.gather()
        self.server, self.members, opened = open_clients(self.config, self.name, self.client_manager)
        self._tell(**self._facts("started"), examples=[member.examples for member in self.members])
        if self.server.context.method.shared_projections:
            layers = read_layout(opened[0].text("layers"))
            agree_on_shared_projections(
                self.server, self.client_manager, self.members, layers, self.folder, self._tell
            )
        begin(self.server, self.members, opened, self._tell)
        lora = opened[0].number("lora_bytes")
        self.checkpoint.save(0, self.server, self.members)
        self.checkpoint.write(self.name, self.server, self.client_manager.agreed, lora)
        return 1

    def _continue(self) -> int:
        """Take up the last whole round; the number of the next.

        Raises:
            RunError: other settings, the run is over, or the clients' base model is not that of the rounds done.
        """
        facts, path = self.checkpoint.facts, self.folder.path
        if not self.name.startswith(f"{self.config.run_id()}-"):
            raise RunError(
                f"{path}: the settings changed since this run began; put them back, or give the run another name "
                f"or folder"
            )
        if any(event["event"] == "finished" for event in self.folder.events()):
            raise RunError(f"{path}: this run is finished; give the new one another name or folder")
        done, self.server, self.members = self.checkpoint.load(self.config)
        self.client_manager.gone = {member.name for member in self.members if member.left}
        self.client_manager.bound = {member.name: member.node for member in self.members}
        self.client_manager.gather([member.name for member in self.members])
        if [*self.client_manager.agreed] != [facts["base"], facts["digest"]]:
            raise RunError("the clients have another base model than when this run began; put that back")
        self._tell(**self._facts("resumed"), round=done)
        return done + 1

    # -- rounds

    def _before(self, number: int) -> None:
        """Who comes, goes, or has other data now."""
        if self.membership.go_on(number):
            self._keep(number - 1)

    def _keep(self, number: int) -> None:
        self.checkpoint.save(number, self.server, self.members)
        self.checkpoint.left()

    def _round(self, number: int) -> None:
        began = time.monotonic()
        places = self._participants(number)
        answers, downloads = self._send("train", number, places)
        uploads: list[Upload] = []
        taken = 0
        for place in places:
            refusal = self.client_manager.refusal_of(answers.get(place))
            if refusal is None:
                try:
                    uploads += self._take(number, place, answers[place], downloads[place])
                    taken += 1
                except MessageError as error:
                    refusal = Refusal(RefusalCode.BAD_REPLY, str(error))
            if refusal is not None:
                self._leave_out(number, place, answers.get(place), refusal)
        if taken < self.config.deployment.quorum:
            raise RunError(
                f"round {number}: {taken} of {len(places)} clients sent what counts, and deployment.quorum is "
                f"{self.config.deployment.quorum}; the run stands at round {number - 1} and can be resumed"
            )
        self.server.aggregate(uploads)
        self._tell(event="round", round=number, clients=taken, seconds=round(time.monotonic() - began, 2))

    def _take(self, number: int, place: int, reply: Reply, sent: Mapping[str, bytes]) -> list[Upload]:
        """Accept one client's answer; its upload, where the method has any. Raises what is against it."""
        loss, steps, wire = reply.real("loss"), reply.number("steps"), self.server.context.compression
        seconds, member = reply.real("seconds"), self.members[place]
        uploads, up = [], {}
        if wire.layout:
            uploads = [self.server.accept(number, place, reply.part("upload"), member.examples)]
            up = wire.manifest(reply.part("upload"))
        member.counts = number
        down = wire.manifest(sent["download"]) if sent else {}
        if reply.facts.get("kept_own"):
            self._tell(event="kept its own", round=number, client=member.name)
        self._tell(
            event="trained", round=number, client=member.name, loss=loss, steps=steps, seconds=seconds, up=up,
            down=down,
        )  # fmt: skip
        return uploads

    def _leave_out(self, number: int, place: int, reply: Reply | None, refusal: Refusal) -> None:
        if reply is not None:
            self.membership.note(place, reply)
        leave_out(self._tell, number, self.members[place].name, refusal)

    def _finish(self) -> None:
        number = self.config.rounds + 1
        places = [place for place, member in enumerate(self.members) if not member.left]
        answers, downloads = self._send("finish", number, places)
        for place in places:
            refusal = self.client_manager.refusal_of(answers.get(place))
            if refusal is not None:
                self._leave_out(number, place, answers.get(place), refusal)
                continue
            if downloads[place]:
                sizes = self.server.context.compression.manifest(downloads[place]["download"])
                self._tell(event="delivered", round=number, client=self.members[place].name, down=sizes)
            self._tell_scores(place, answers[place])
        if self.membership.take_leave(number):
            self._keep(self.config.rounds)
        self._tell(event="finished", round=self.config.rounds)
        self.folder.write_json("summary.json", self._summary())

    def _summary(self) -> dict[str, Any]:
        """As of a simulated run; without what clients keep to themselves."""
        config, evaluated_model = self.config, self.server.context.method.evaluated_model
        return {
            "name": config.name,
            "task": config.task,
            "metric": TASKS[config.task].metric,
            "method": config.method.name,
            "seed": config.seed,
            "rounds": config.rounds,
            **summarise_events(self.folder.events(), evaluated_model, self.checkpoint.facts["lora_bytes"]),
            "controls": {},
            **({"privacy": {"promised": facts_of(promise(config))}} if config.privacy.on else {}),
        }

    def _send(self, kind: str, number: int, places: list[int]) -> tuple[dict[int, Reply], Parts]:
        """Ask clients with what the server has for each; their answers, and what was sent."""
        about: dict[str, Fact] = {"round": number, "asked": len(places)}
        asked = {
            place: {**about, "counts": self.members[place].counts, "data": self.members[place].data}
            for place in places
        }
        downloads: Parts = {}
        for place in places:
            payload = self.server.download(number, place)
            downloads[place] = {} if payload is None else {"download": payload}
        return self.client_manager.ask(kind, asked, downloads), downloads

    def _tell_scores(self, place: int, told: Reply) -> None:
        """The scores of a client that tells them."""
        if "test_accuracy" not in told.facts:
            return
        parts = {
            split: {fact: told.real(f"{split}_{fact}") for fact in ("loss", "accuracy", "examples")}
            for split in ("valid", "test")
        }
        evaluated_model, name = self.server.context.method.evaluated_model, self.members[place].name
        self._tell(event="scores", round=self.config.rounds, stage=evaluated_model, client=name, **parts)

    def _participants(self, number: int) -> list[int]:
        able = [place for place, member in enumerate(self.members) if member.examples]
        wanted = max(1, round(self.config.participation * len(able)))
        if wanted >= len(able):
            return able
        drawn = seeded(self.config.seed, SAMPLING, number).choice(len(able), wanted, replace=False)
        return [able[place] for place in sorted(drawn)]

    def _facts(self, event: str) -> Event:
        method = self.server.context.method
        return {
            "event": event,
            "method": method.name,
            "scored": method.evaluated_model,
            "clients": self.client_manager.names,
        }

    def _tell(self, **event: Any) -> None:
        self.folder.append(event)
        self.listener(event)


def settings_to_send(config: RunConfig) -> str:
    """A run's settings as JSON, without what is the clients' own or the server's alone."""
    away = {"deployment", "baselines", "trackers"}
    values: dict[str, Any] = config.model_dump(mode="json", exclude_none=True, exclude=away)
    values["data"] = {name: value for name, value in values["data"].items() if name not in LEFT_AT_HOME}
    agreed = {name: value for name, value in values.pop("privacy").items() if name not in GUARDS}
    return json.dumps({**values, "privacy": agreed} if agreed else values)
