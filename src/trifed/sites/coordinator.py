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

import numpy as np

from trifed.config import RunConfig
from trifed.errors import MessageError, RunError
from trifed.federation.client import SAMPLING
from trifed.federation.messages import array_sizes, decode_values, layout_sizes, manifest
from trifed.federation.results import summarise_events
from trifed.federation.server import Server, layout_of
from trifed.federation.store import Event, RunFolder
from trifed.federation.terms import terms_of
from trifed.methods.interface import State, Upload
from trifed.methods.packing import Layout, Tensors, Vector, pack, unpack
from trifed.sites.protocol import (
    FACTS,
    LEFT_AT_HOME,
    Channel,
    Reply,
    Request,
    digest,
    read_layout,
    write_layout,
)
from trifed.sites.roll import Roll
from trifed.tasks import TASKS
from trifed.training import seeded

KNOWN, COUNTS, START = "known/", "counts", "start"
"""Beside the method's state in a checkpoint: what each client had last, its last round that counts, the start."""

Parts = dict[int, Mapping[str, bytes]]


class Coordinator:
    """One run under way, kept in `folder`.

    `counts`: by a client's place the last round of which its upload was accepted, 0 before that; `examples`: by
    place, to train on.
    """

    def __init__(
        self, config: RunConfig, channel: Channel, folder: RunFolder, listener: Callable[[Event], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.config = config
        self.folder = folder
        self.listener = listener
        self.kept: dict[str, Any] = folder.read_json(FACTS) if (folder.path / FACTS).is_file() else {}
        self.name = self.kept.get("run") or f"{config.run_id()}-{secrets.token_hex(4)}"
        hello = Request("hello", {"run": self.name, "config": settings_to_send(config)})
        self.roll = Roll(channel, config.deployment, hello, self._tell, sleep)
        self.counts: dict[int, int] = {}
        self.examples: dict[int, int] = {}

    def run(self) -> None:
        """From the last whole round, or from the beginning, to the end.

        Raises:
            RunError: too few clients, or too few uploads in a round; running in the same folder again goes on.
        """
        if self.kept:
            self._check_kept()
        else:  # what is left of a run that never began
            (self.folder.path / "events.jsonl").unlink(missing_ok=True)
        self.roll.gather(self.kept.get("clients", []))
        first = self._continue() if self.kept else self._begin()
        for number in range(first, self.config.rounds + 1):
            self._round(number)
            self._save(number)
        self._finish()

    # -- before the first round

    def _begin(self) -> int:
        names = self.roll.names
        places = range(len(names))
        opened = self.roll.ask("open", {place: {"start": int(place == 0)} for place in places})
        self.roll.need_all(opened, "be opened")
        self.examples = {place: reply.number("examples") for place, reply in sorted(opened.items())}
        layout, start = self._agree_on_start(opened[0])
        self._serve(layout, start)
        self._tell(**self._facts("started"), examples=list(self.examples.values()))
        if self.server.terms.method.frames:
            self._agree_on_frames(read_layout(opened[0].text("layers")))
        summaries = {p: reply.parts["summary"] for p, reply in sorted(opened.items()) if "summary" in reply.parts}
        for place, payload in summaries.items():
            self._tell(event="summary", client=names[place], up=manifest(payload, array_sizes(payload)))
        self.server.open(summaries)
        self._save(0)
        base, common = self.roll.agreed
        self.kept = {
            "run": self.name, "clients": names, "examples": list(self.examples.values()), "base": base,
            "digest": common, "layout": write_layout(layout),
            "lora_bytes": opened[0].number("lora_bytes"),
        }  # fmt: skip
        self.folder.write_json(FACTS, self.kept)
        return 1

    def _serve(self, layout: Layout, start: Vector) -> None:
        terms = terms_of(self.config, layout, self.roll.agreed[0], self.name)
        self.server = Server(terms, len(self.roll.names), start)

    def _agree_on_start(self, told: Reply) -> tuple[Layout, Vector]:
        """What travels, and its common start, as one client says; all have named the same digest of it."""
        layout = read_layout(told.text("layout"))
        expected = terms_of(self.config, layout, self.roll.agreed[0], self.name).header("start", 0, 0)
        start = decode_values(told.part("start"), expected, layout)[1]
        if digest(layout, start) != self.roll.agreed[1]:
            raise RunError(f"{self.roll.names[0]} sent another start than it had named; leave it out")
        return layout, start

    def _agree_on_frames(self, layers: Layout) -> None:
        names = self.roll.names
        answers = self.roll.ask("gradient", {place: {} for place, count in self.examples.items() if count})
        gradients = {place: reply.part("gradient") for place, reply in sorted(answers.items())}
        for place, payload in gradients.items():
            self._tell(event="opening", client=names[place], up=manifest(payload, layout_sizes(layers)))
        frames = self.server.frames(gradients, layers)
        layout = layout_of(frames)
        parts: Parts = {place: {"frames": self.server.frames_for(place, frames)} for place in range(len(names))}
        told = self.roll.ask("frames", {place: {"layout": write_layout(layout)} for place in parts}, parts)
        self.roll.need_all(told, "take the frames")
        for place in parts:
            sizes = manifest(parts[place]["frames"], layout_sizes(layout))
            self._tell(event="opening", client=names[place], down=sizes)
        self.server.start = self._start_with(frames)
        wanted = digest(self.server.terms.wire.layout, self.server.start)
        if any(reply.text("digest") != wanted for reply in told.values()):
            raise RunError("the clients start elsewhere from the same frames; give all the same version of trifed")

    def _start_with(self, frames: Tensors) -> Vector:
        """The common start, where a core starts as the frames say."""
        layout = self.server.terms.wire.layout
        own = unpack(self.server.start, layout)
        return pack({name: frames.get(name, own[name]) for name, _ in layout}, layout)

    # -- rounds

    def _round(self, number: int) -> None:
        began = time.monotonic()
        places = self._participants(number)
        answers, downloads = self._send("train", number, places)
        uploads: list[Upload] = []
        taken = 0
        for place in places:
            reason = self.roll.reason_against(answers.get(place))
            if reason is None:
                try:
                    uploads += self._take(number, place, answers[place], downloads[place])
                    taken += 1
                except MessageError as error:
                    reason = str(error)
            if reason is not None:
                self._leave_out(number, place, answers.get(place), reason)
        if taken < self.config.deployment.quorum:
            raise RunError(
                f"round {number}: {taken} of {len(places)} clients sent what counts, and deployment.quorum is "
                f"{self.config.deployment.quorum}; the run stands at round {number - 1} and can be resumed"
            )
        self.server.aggregate(uploads)
        self._tell(event="round", round=number, clients=taken, seconds=round(time.monotonic() - began, 2))

    def _take(self, number: int, place: int, reply: Reply, sent: Mapping[str, bytes]) -> list[Upload]:
        """Accept one client's answer; its upload, where the method has any. Raises what is against it."""
        loss, steps, wire = reply.real("loss"), reply.number("steps"), self.server.terms.wire
        uploads, up = [], {}
        if wire.layout:
            uploads = [self.server.accept(number, place, reply.part("upload"), self.examples[place])]
            up = wire.manifest(reply.part("upload"))
        self.counts[place] = number
        down = wire.manifest(sent["download"]) if sent else {}
        name = self.roll.names[place]
        if reply.facts.get("kept_own"):
            self._tell(event="kept its own", round=number, client=name)
        self._tell(event="trained", round=number, client=name, loss=loss, steps=steps, up=up, down=down)
        return uploads

    def _leave_out(self, number: int, place: int, reply: Reply | None, reason: str) -> None:
        if reply is not None and reply.lost:
            self.counts[place] = 0
            self.server.forget(place)
        self._tell(event="left out", round=number, client=self.roll.names[place], reason=reason)

    def _finish(self) -> None:
        number, places = self.config.rounds + 1, list(range(len(self.roll.names)))
        answers, downloads = self._send("finish", number, places)
        for place in places:
            reason = self.roll.reason_against(answers.get(place))
            if reason is not None:
                self._leave_out(number, place, answers.get(place), reason)
                continue
            if downloads[place]:
                sizes = self.server.terms.wire.manifest(downloads[place]["download"])
                self._tell(event="delivered", round=number, client=self.roll.names[place], down=sizes)
            self._tell_scores(place, answers[place])
        self._tell(event="finished", round=self.config.rounds)
        self.folder.write_json("summary.json", self._summary())

    def _summary(self) -> dict[str, Any]:
        """As of a simulated run; without what clients keep to themselves."""
        config, scored = self.config, self.server.terms.method.scored
        return {
            "name": config.name,
            "task": config.task,
            "metric": TASKS[config.task].metric,
            "method": config.method.name,
            "seed": config.seed,
            "rounds": config.rounds,
            **summarise_events(self.folder.events(), scored, self.kept["lora_bytes"]),
            "controls": {},
        }

    def _send(self, kind: str, number: int, places: list[int]) -> tuple[dict[int, Reply], Parts]:
        """Ask clients with what the server has for each; their answers, and what was sent."""
        asked = {place: {"round": number, "counts": self.counts.get(place, 0)} for place in places}
        downloads: Parts = {}
        for place in places:
            payload = self.server.download(number, place)
            downloads[place] = {} if payload is None else {"download": payload}
        return self.roll.ask(kind, asked, downloads), downloads

    def _tell_scores(self, place: int, told: Reply) -> None:
        """The scores of a client that tells them."""
        if "test_accuracy" not in told.facts:
            return
        parts = {
            split: {fact: told.real(f"{split}_{fact}") for fact in ("loss", "accuracy", "examples")}
            for split in ("valid", "test")
        }
        scored, name = self.server.terms.method.scored, self.roll.names[place]
        self._tell(event="scores", round=self.config.rounds, stage=scored, client=name, **parts)

    def _participants(self, number: int) -> list[int]:
        able = [place for place, count in sorted(self.examples.items()) if count]
        wanted = max(1, round(self.config.participation * len(able)))
        if wanted >= len(able):
            return able
        drawn = seeded(self.config.seed, SAMPLING, number).choice(len(able), wanted, replace=False)
        return [able[place] for place in sorted(drawn)]

    # -- what is kept

    def _save(self, number: int) -> None:
        counts = np.array([self.counts.get(place, 0) for place in range(len(self.roll.names))], np.int64)
        known = {f"{KNOWN}{place}": values for place, values in self.server.known.items()}
        kept: State = {**self.server.state, **known, COUNTS: counts, START: self.server.start}
        self.folder.save_checkpoint(number, [], kept, self.name)

    def _check_kept(self) -> None:
        """Only an unfinished run of the same settings can go on."""
        if not self.name.startswith(f"{self.config.run_id()}-"):
            raise RunError(
                f"{self.folder.path}: the settings changed since this run began; put them back, or give the run "
                f"another name or folder"
            )
        if any(event["event"] == "finished" for event in self.folder.events()):
            raise RunError(f"{self.folder.path}: this run is finished; give the new one another name or folder")

    def _continue(self) -> int:
        """Take up the last whole round; the number of the next.

        Raises:
            RunError: the clients' base model is not that of the rounds that are done.
        """
        checkpoint = self.folder.load_checkpoint(self.name)
        if checkpoint is None:
            raise RunError(f"{self.folder.path}: the checkpoint is gone; start a new run")
        if [*self.roll.agreed] != [self.kept["base"], self.kept["digest"]]:
            raise RunError("the clients have another base model than when this run began; put that back")
        done, _, state = checkpoint
        self.counts = {place: int(number) for place, number in enumerate(state.pop(COUNTS))}
        self.examples = dict(enumerate(self.kept["examples"]))
        self._serve(read_layout(self.kept["layout"]), state.pop(START).astype(np.float32))
        known = {int(n.removeprefix(KNOWN)): a for n, a in state.items() if n.startswith(KNOWN)}
        self.server.known = {place: values.astype(np.float32) for place, values in known.items()}
        self.server.state = {name: array for name, array in state.items() if not name.startswith(KNOWN)}
        self._tell(**self._facts("resumed"), round=done)
        return done + 1

    def _facts(self, event: str) -> Event:
        method = self.server.terms.method
        return {"event": event, "method": method.name, "scored": method.scored, "clients": self.roll.names}

    def _tell(self, **event: Any) -> None:
        self.folder.append(event)
        self.listener(event)


def settings_to_send(config: RunConfig) -> str:
    """A run's settings as JSON, without what is the clients' own or the server's alone."""
    values = config.model_dump(mode="json", exclude_none=True, exclude={"deployment", "baselines", "trackers"})
    values["data"] = {name: value for name, value in values["data"].items() if name not in LEFT_AT_HOME}
    return json.dumps(values)
