"""One client between messages: its own data and settings, what it keeps on its disk, and its answers."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trifed.config import RunConfig, make_config
from trifed.data import content_hash, make_client, rows_hash
from trifed.errors import MessageError, TrifedError
from trifed.federation.client import Client, ClientState, score
from trifed.federation.exports import save_client
from trifed.federation.messages import encode_values
from trifed.federation.results import facts_of
from trifed.federation.site import Limits, Site, adapted_layout
from trifed.federation.terms import decode_tensors, terms_of
from trifed.federation.workbench import Workbench, build_workbench
from trifed.methods import METHODS
from trifed.nested import layer
from trifed.settings import GUARDS
from trifed.sites.node_privacy import UNTOLD, key_of, noising_at, within
from trifed.sites.node_settings import LEFT, NodeSettings
from trifed.sites.node_store import BASES, NodeStore, first_known
from trifed.sites.phases import check_asked_for
from trifed.sites.protocol import Reply, Request, digest, read_layout, write_layout
from trifed.sites.refusals import RefusalCode, RefusedError, code_of
from trifed.tasks import TASKS
from trifed.tasks.base_model import LoadedBase

LOGGER = logging.getLogger(__name__)
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")
FIXED = ("task", "method", "rounds", "privacy")
"""Of a run's settings: what no later greeting changes, for it says what the site may be asked for."""
WHOLE_TABLE: dict[str, Any] = {"clients": {"split": "sizes", "sizes": [1.0]}, "test": None}

Stamp = tuple[tuple[str, int, int], ...]


def stamp_of(source: str | list[str]) -> Stamp:
    """Name, size and time of change of a source's files; nothing where it is no path."""
    paths = [Path(name) for name in ([source] if isinstance(source, str) else source)]
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    states = [(str(file), file.stat()) for file in files if file.is_file()]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


class Node:
    """One client and one run. Nothing of it outlives the process but what lies in `store`."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.run = ""
        self.config: RunConfig | None = None
        self.base: LoadedBase | None = None
        self.bench: Workbench | None = None
        self.site: Site | None = None
        self.store: NodeStore | None = None
        self.digest = ""
        self.stamp: Stamp = ()
        self.data = self.rows = ""
        self.warned: set[str] = set()

    def answer(self, request: Request) -> Reply:
        """The reply to any request. An error's text goes to this client's log, and its code alone into `error`."""
        ways: dict[str, Callable[[Request], Reply]] = {
            "hello": self._hello, "open": self._open, "gradient": self._gradient, "frames": self._frames,
            "train": self._train, "finish": self._finish,
        }  # fmt: skip
        try:
            if request.kind not in ways:
                raise MessageError(f"got '{request.kind}', expected one of {', '.join(ways)}")
            run = request.text("run")
            if not RUN_NAME.fullmatch(run):  # it names a folder
                raise MessageError(f"'run': got {run!r}, expected letters, digits and '-'; it is refused")
            if request.kind != "hello" and (self.settings.folder / LEFT).is_file():
                return Reply({"left": 1}, error=RefusalCode.LEFT)
            if request.kind != "hello" and run != self.run and not self._take_up(run):
                return Reply(lost=True)  # not even the run's settings: it is greeted again
            if request.kind != "hello":
                check_asked_for(request, self._config(), self._parts()[1])
            return self._say_warnings(ways[request.kind](request))
        except (TrifedError, OSError) as error:
            LOGGER.warning("'%s' refused: %s", request.kind, error)
            return Reply(error=code_of(error))

    def _say_warnings(self, reply: Reply) -> Reply:
        """Say here, and not to the server, what was let out although there is something against it."""
        for setting, text in self.site.warned.items() if self.site else ():
            if setting not in self.warned:
                LOGGER.warning("%s", text)
                self.warned.add(setting)
        return reply

    # -- what is asked

    def _hello(self, request: Request) -> Reply:
        try:
            values = json.loads(request.text("config"))
        except ValueError as error:
            raise MessageError(f"the run's settings cannot be read ({error}); they are refused") from error
        self._prepare(request.text("run"), values)
        bench, _ = self._parts()
        return Reply(
            {
                "name": self.settings.name,
                "base": bench.fingerprint,
                "digest": self.digest,
            }
        )

    def _open(self, request: Request) -> Reply:
        bench, store = self._parts()
        if not request.facts.get("again"):
            store.begin()
        self._place(request.number("place"))
        site = self._site()
        if site.noising and request.facts.get("again"):
            site.noising.opened_again(summarises=site.terms.method.summarise is not None)
        summary = site.summary(self.rows)
        parts = {} if summary is None else {"summary": summary}
        told: dict[str, Any] = {"examples": site.examples, "layout": write_layout(bench.layout)}
        told["data"] = store.keep_data(self.data)
        told["lora_bytes"] = bench.lora_bytes
        told["layers"] = write_layout(adapted_layout(bench)) if site.terms.method.frames else "[]"
        if request.facts.get("start"):
            header = site.terms.header("start", 0, site.client.index)
            parts["start"] = encode_values(header, bench.start_values)
        return Reply(told, parts)

    def _gradient(self, request: Request) -> Reply:
        return Reply(parts={"gradient": self._at_hand(request).gradient()})

    def _frames(self, request: Request) -> Reply:
        bench, store = self._parts()
        site, layout = self._at_hand(request), read_layout(request.text("layout"))
        header = site.terms.header("frames", 0, site.client.index)
        frames = decode_tensors(request.part("frames"), header, layout)[1]
        if store.last_round() is not None and store.has_other_frames(frames):
            raise RefusedError(
                RefusalCode.WRONG_PHASE, "other frames than a round was trained in; they are refused"
            )
        bench.fix_frames(frames)
        store.keep_frames(frames)
        site.start()
        return Reply({"digest": digest(bench.layout, bench.start_values)})

    def _train(self, request: Request) -> Reply:
        _, store = self._parts()
        number, counts, site = request.number("round"), request.number("counts"), self._at_hand(request)
        if self._data_changed(request.number("place"), request.text("data")):
            return Reply({"changed": 1}, error=RefusalCode.DATA_CHANGED)
        site = self._site()
        if request.number("asked") < self.settings.at_least:
            least = self.settings.at_least
            raise RefusedError(
                RefusalCode.TOO_FEW_CLIENTS, f"it takes no part in a round of fewer than {least} clients"
            )
        if self._lacks_frames():
            return Reply(lost=True)
        sent = store.message(key_of(request)) if site.noising else None
        if site.noising and sent:
            site.noising.enter(number, sent)
            return Reply(UNTOLD, {"upload": sent})
        if counts == 0:
            site.start()
        else:
            found = store.state_after(counts, site.own)
            if found is None:
                if site.noising:
                    site.noising.lose()
                return Reply({"has": store.restored()}, lost=True)
            site.state = found
        return self._trained(request, site, store)

    def _trained(self, request: Request, site: Site, store: NodeStore) -> Reply:
        """One round from the state at hand; what it leaves is kept before it is told."""
        number, counts = request.number("round"), request.number("counts")
        began, before = time.monotonic(), site.state
        limits = Limits(self.settings.worse_by, self.settings.others_at_most)

        def keep(state: ClientState, upload: bytes | None) -> None:
            store.keep(number, counts, state, site.own)
            if site.noising and upload:
                store.keep_message(key_of(request), upload)

        try:
            done = site.round(number, request.parts.get("download"), limits, keep)
        except TrifedError:
            site.state = before
            raise
        told: dict[str, Any] = {"loss": done.loss, "steps": done.steps, "kept_own": int(done.kept_own)}
        told["seconds"] = round(time.monotonic() - began, 3)
        return Reply(UNTOLD if site.noising else told, {"upload": done.upload} if done.upload else {})

    def _finish(self, request: Request) -> Reply:
        bench, store = self._parts()
        number, counts, site = request.number("round"), request.number("counts"), self._at_hand(request)
        if self._lacks_frames():
            return Reply(lost=True)
        found = store.state_after(counts, site.own) if counts else site.state
        if found is None:
            return Reply({"has": store.restored()}, lost=True)
        site.state = found
        download, limits = request.parts.get("download"), Limits(others_at_most=self.settings.others_at_most)
        arrived = None if download is None else site.take(number, download, limits)
        tensors = site.tensors(site.terms.method.scored, arrived)
        names = list(self._config().data.labels or [])
        save_client(store.model, bench, tensors, names, self._base().source)
        if not self.settings.tell_scores or site.noising:
            return Reply()
        told: dict[str, Any] = {}
        for split in ("valid", "test"):
            scores = facts_of(score(bench, tensors, getattr(site.client, split), site.training))
            told |= {f"{split}_{name}": value for name, value in scores.items()}
        return Reply(told)

    # -- what is at hand

    def _prepare(self, run: str, values: Mapping[str, Any]) -> None:
        """Take a run's settings, this client's own over them, and load the base model."""
        kept = NodeStore.settings_of(self.settings.folder / run)
        if kept is not None and any(kept.get(name) != values.get(name) for name in FIXED):
            raise RefusedError(
                RefusalCode.WRONG_RUN, f"{run}: the run began here with another {', '.join(FIXED)}; it is refused"
            )
        if run == self.run and self.bench is not None:
            return
        own: dict[str, Any] = {"data": layer(self.settings.data, WHOLE_TABLE)}
        own |= {"model": {"name": self.settings.model}} if self.settings.model else {}
        own |= {"training": {"device": self.settings.device}} if self.settings.device else {}
        # Whoever leads the run does not say what may leave this client.
        own |= {"privacy": self.settings.privacy.model_dump(include=GUARDS)}
        config = make_config(layer(values, own), f"the run's settings with those of {self.settings.name}")
        within(config, self.settings)
        task = TASKS[config.task]
        if task.labelled and not config.data.labels:
            raise RefusedError(
                RefusalCode.SETTINGS_UNUSABLE,
                "data.labels: the run has to name all labels, for no client sees those of the others",
            )
        base = task.load(config.model.name, config.model.dtype)
        self._know(base, f"{config.model.name} as {config.model.dtype}")
        settings = (config.model, config.adapter, config.training)
        method = METHODS[config.method.name]
        self.bench = build_workbench(base, method, config.data.labels or [""], config.seed, settings, task)
        self.digest = digest(self.bench.layout, self.bench.start_values)  # before frames, if there will be any
        self.run, self.config, self.base, self.site = run, config, base, None
        self.store = NodeStore.at(self.settings.folder / run, dict(values))

    def _know(self, base: LoadedBase, name: str) -> None:
        """Refuse other weights than this client wants, or than it had when it first loaded a model so named."""
        site, wanted, found = self.settings.name, self.settings.base, base.fingerprint
        if not found.startswith(wanted):
            raise RefusedError(
                RefusalCode.BASE_MISMATCH,
                f"the base model here is {found[:16]}, and {site} takes none but {wanted[:16]}",
            )
        known = first_known(self.settings.folder, name, found)
        if known != found:
            raise RefusedError(
                RefusalCode.BASE_MISMATCH,
                f"the base model here is {found[:16]}, and it was {known[:16]} when {site} first loaded it; put "
                f"that back, or, if the change is meant, take its line out of the site's {BASES}",
            )

    def _take_up(self, run: str) -> bool:
        """Go on with a run that this process has not seen: from the disk, if it is there."""
        values = NodeStore.settings_of(self.settings.folder / run)
        if values is None:
            return False
        self._prepare(run, values)
        return True

    def _place(self, place: int) -> None:
        """Read and cut this client's data as the `place`-th of all."""
        bench, config = self._parts()[0], self._config()
        stamp = stamp_of(config.data.source)
        data = make_client(config.data, config.seed, bench.task.roles, self.settings.name, place)
        self.data, self.stamp = content_hash(data), stamp  # only where they could be read
        self.rows = rows_hash(data)
        [mine] = data.clients
        client = Client(
            place, mine.name, bench.encode(mine.train), bench.encode(mine.valid), bench.encode(mine.test)
        )
        terms = terms_of(config, bench.layout, bench.fingerprint, self.run)
        labels = len(config.data.labels or [""])
        frames = self._parts()[1].frames()
        if frames is not None:
            bench.fix_frames(frames)
        noising = noising_at(config, self._parts()[1].folder, self.settings.name)
        about = (config.training, config.seed, config.rounds, labels, config.privacy, noising)
        self.site = Site(terms, bench, client, *about)
        self.site.start()

    def _data_changed(self, place: int, mark: str) -> bool:
        """Are the data others than those that the server knows by `mark`? Read again where a file changed."""
        _, store = self._parts()
        if stamp_of(self._config().data.source) != self.stamp:
            self._place(place)
        return not store.knows(self.data, mark)

    def _at_hand(self, request: Request) -> Site:
        """This client's side, from the disk where the process is new."""
        if self.site is None:
            self._place(request.number("place"))
        return self._site()

    def _lacks_frames(self) -> bool:
        """Are frames missing that the method needs? They are sent again to who has lost what it had."""
        return bool(self._site().terms.method.frames) and not self._parts()[1].has_frames()

    def _site(self) -> Site:
        if self.site is None:
            raise RefusedError(RefusalCode.WRONG_PHASE, f"{self.settings.name} was not opened")
        return self.site

    def _parts(self) -> tuple[Workbench, NodeStore]:
        if self.bench is None or self.store is None:
            raise RefusedError(RefusalCode.WRONG_PHASE, f"{self.settings.name} was not greeted")
        return self.bench, self.store

    def _config(self) -> RunConfig:
        if self.config is None:
            raise RefusedError(RefusalCode.WRONG_PHASE, f"{self.settings.name} was not greeted")
        return self.config

    def _base(self) -> LoadedBase:
        if self.base is None:
            raise RefusedError(RefusalCode.WRONG_PHASE, f"{self.settings.name} was not greeted")
        return self.base
