"""One client between messages: its own data and settings, what it keeps on its disk, and its answers."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import MessageError, TrifedError
from trifed.config.run import RunConfig, make_config
from trifed.config.settings import GUARDS
from trifed.data import content_hash, make_client, rows_hash
from trifed.deployment.phases import check_asked_for
from trifed.deployment.protocol import Reply, Request, digest, read_layout, write_layout
from trifed.deployment.refusals import RefusalCode, RefusedError, code_of
from trifed.deployment.site_privacy import UNTOLD, key_of, site_privacy, within
from trifed.deployment.site_settings import LEFT, SiteSettings
from trifed.deployment.site_store import BASES, SiteStore, first_known
from trifed.federation.client import AcceptanceLimits, Client, ClientSettings, adapted_layout
from trifed.federation.client_model import save_client
from trifed.federation.client_update import ClientDataset, ClientState, score
from trifed.federation.context import decode_tensors, run_context
from trifed.federation.messages import encode_values
from trifed.federation.results import facts_of
from trifed.federation.shared_model import SharedModel, build_shared_model
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


class SiteProcess:
    """One client and one run. Nothing of it outlives the process but what lies in `store`."""

    def __init__(self, settings: SiteSettings) -> None:
        self.settings = settings
        self.run = ""
        self.config: RunConfig | None = None
        self.base: LoadedBase | None = None
        self.shared_model: SharedModel | None = None
        self.site: Client | None = None
        self.store: SiteStore | None = None
        self.digest = ""
        self.stamp: Stamp = ()
        self.data = self.rows = ""
        self.warned: set[str] = set()

    def answer(self, request: Request) -> Reply:
        """The reply to any request. An error's text goes to this client's log, and its code alone into `error`."""
        ways: dict[str, Callable[[Request], Reply]] = {
            "hello": self._hello, "open": self._open, "gradient": self._gradient,
            "frames": self._shared_projections, "train": self._train, "finish": self._finish,
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
        for setting, text in self.site.guards.warnings.items() if self.site else ():
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
        shared_model, _ = self._parts()
        return Reply(
            {
                "name": self.settings.name,
                "base": shared_model.fingerprint,
                "digest": self.digest,
            }
        )

    def _open(self, request: Request) -> Reply:
        shared_model, store = self._parts()
        if not request.facts.get("again"):
            store.begin()
        self._place(request.number("place"))
        site = self._site()
        if request.facts.get("again"):
            site.privacy.on_reopen(has_summary=site.context.method.summarise is not None)
        summary = site.summary(self.rows)
        parts = {} if summary is None else {"summary": summary}
        told: dict[str, Any] = {"examples": site.examples, "layout": write_layout(shared_model.layout)}
        told["data"] = store.keep_data(self.data)
        told["lora_bytes"] = shared_model.lora_bytes
        told["layers"] = (
            write_layout(adapted_layout(shared_model)) if site.context.method.shared_projections else "[]"
        )
        if request.facts.get("start"):
            header = site.context.header("start", 0, site.dataset.index)
            parts["start"] = encode_values(header, shared_model.start_values)
        return Reply(told, parts)

    def _gradient(self, request: Request) -> Reply:
        return Reply(parts={"gradient": self._at_hand(request).gradient()})

    def _shared_projections(self, request: Request) -> Reply:
        shared_model, store = self._parts()
        site, layout = self._at_hand(request), read_layout(request.text("layout"))
        header = site.context.header("frames", 0, site.dataset.index)
        shared_projections = decode_tensors(request.part("frames"), header, layout)[1]
        if store.last_round() is not None and store.has_other_shared_projections(shared_projections):
            raise RefusedError(
                RefusalCode.WRONG_PHASE, "other frames than a round was trained in; they are refused"
            )
        shared_model.set_shared_projections(shared_projections)
        store.keep_shared_projections(shared_projections)
        site.start()
        return Reply({"digest": digest(shared_model.layout, shared_model.start_values)})

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
        if self._lacks_shared_projections():
            return Reply(lost=True)
        sent = store.message(key_of(request)) if site.privacy.active else None
        if sent:
            site.privacy.on_release(number, sent)
            return Reply(UNTOLD, {"upload": sent})
        if counts == 0:
            site.start()
        else:
            found = store.state_after(counts, site.own)
            if found is None:
                site.privacy.on_state_lost()
                return Reply({"has": store.restored()}, lost=True)
            site.state = found
        return self._trained(request, site, store)

    def _trained(self, request: Request, site: Client, store: SiteStore) -> Reply:
        """One round from the state at hand; what it leaves is kept before it is told."""
        number, counts = request.number("round"), request.number("counts")
        began, before = time.monotonic(), site.state
        limits = AcceptanceLimits(self.settings.worse_by, self.settings.others_at_most)

        def keep(state: ClientState, upload: bytes | None) -> None:
            store.keep(number, counts, state, site.own)
            if site.privacy.active and upload:
                store.keep_message(key_of(request), upload)

        try:
            done = site.round(number, request.parts.get("download"), limits, keep)
        except TrifedError:
            site.state = before
            raise
        told: dict[str, Any] = {"loss": done.loss, "steps": done.steps, "kept_own": int(done.rejected_download)}
        told["seconds"] = round(time.monotonic() - began, 3)
        return Reply(UNTOLD if site.privacy.active else told, {"upload": done.upload} if done.upload else {})

    def _finish(self, request: Request) -> Reply:
        shared_model, store = self._parts()
        number, counts, site = request.number("round"), request.number("counts"), self._at_hand(request)
        if self._lacks_shared_projections():
            return Reply(lost=True)
        found = store.state_after(counts, site.own) if counts else site.state
        if found is None:
            return Reply({"has": store.restored()}, lost=True)
        site.state = found
        download, limits = (
            request.parts.get("download"),
            AcceptanceLimits(others_at_most=self.settings.others_at_most),
        )
        arrived = None if download is None else site.take(number, download, limits)
        tensors = site.tensors(site.context.method.evaluated_model, arrived)
        names = list(self._config().data.labels or [])
        save_client(store.model, shared_model, tensors, names, self._base().source)
        if not self.settings.tell_scores or site.privacy.active:
            return Reply()
        told: dict[str, Any] = {}
        for split in ("valid", "test"):
            scores = facts_of(score(shared_model, tensors, getattr(site.dataset, split), site.settings.training))
            told |= {f"{split}_{name}": value for name, value in scores.items()}
        return Reply(told)

    # -- what is at hand

    def _prepare(self, run: str, values: Mapping[str, Any]) -> None:
        """Take a run's settings, this client's own over them, and load the base model."""
        kept = SiteStore.settings_of(self.settings.folder / run)
        if kept is not None and any(kept.get(name) != values.get(name) for name in FIXED):
            raise RefusedError(
                RefusalCode.WRONG_RUN, f"{run}: the run began here with another {', '.join(FIXED)}; it is refused"
            )
        if run == self.run and self.shared_model is not None:
            return
        own: dict[str, Any] = {"data": deep_merge(self.settings.data, WHOLE_TABLE)}
        own |= {"model": {"name": self.settings.model}} if self.settings.model else {}
        own |= {"training": {"device": self.settings.device}} if self.settings.device else {}
        # Whoever leads the run does not say what may leave this client.
        own |= {"privacy": self.settings.privacy.model_dump(include=GUARDS)}
        config = make_config(deep_merge(values, own), f"the run's settings with those of {self.settings.name}")
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
        method = config.composed_method()
        self.shared_model = build_shared_model(
            base, method, config.data.labels or [""], config.seed, settings, task
        )
        self.digest = digest(
            self.shared_model.layout, self.shared_model.start_values
        )  # before frames, if there will be any
        self.run, self.config, self.base, self.site = run, config, base, None
        self.store = SiteStore.at(self.settings.folder / run, dict(values))

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
        values = SiteStore.settings_of(self.settings.folder / run)
        if values is None:
            return False
        self._prepare(run, values)
        return True

    def _place(self, place: int) -> None:
        """Read and cut this client's data as the `place`-th of all."""
        shared_model, config = self._parts()[0], self._config()
        stamp = stamp_of(config.data.source)
        data = make_client(config.data, config.seed, shared_model.task.roles, self.settings.name, place)
        self.data, self.stamp = content_hash(data), stamp  # only where they could be read
        self.rows = rows_hash(data)
        [mine] = data.clients
        client = ClientDataset(
            place,
            mine.name,
            shared_model.encode(mine.train),
            shared_model.encode(mine.valid),
            shared_model.encode(mine.test),
        )
        context = run_context(config, shared_model.layout, shared_model.fingerprint, self.run)
        labels = len(config.data.labels or [""])
        shared_projections = self._parts()[1].shared_projections()
        if shared_projections is not None:
            shared_model.set_shared_projections(shared_projections)
        privacy = site_privacy(config, self._parts()[1].folder, self.settings.name)
        self.site = Client(context, shared_model, client, ClientSettings.of(config, labels), privacy)
        self.site.start()

    def _data_changed(self, place: int, mark: str) -> bool:
        """Are the data others than those that the server knows by `mark`? Read again where a file changed."""
        _, store = self._parts()
        if stamp_of(self._config().data.source) != self.stamp:
            self._place(place)
        return not store.knows(self.data, mark)

    def _at_hand(self, request: Request) -> Client:
        """This client's side, from the disk where the process is new."""
        if self.site is None:
            self._place(request.number("place"))
        return self._site()

    def _lacks_shared_projections(self) -> bool:
        """Are frames missing that the method needs? They are sent again to who has lost what it had."""
        return (
            bool(self._site().context.method.shared_projections) and not self._parts()[1].has_shared_projections()
        )

    def _site(self) -> Client:
        if self.site is None:
            raise RefusedError(RefusalCode.WRONG_PHASE, f"{self.settings.name} was not opened")
        return self.site

    def _parts(self) -> tuple[SharedModel, SiteStore]:
        if self.shared_model is None or self.store is None:
            raise RefusedError(RefusalCode.WRONG_PHASE, f"{self.settings.name} was not greeted")
        return self.shared_model, self.store

    def _config(self) -> RunConfig:
        if self.config is None:
            raise RefusedError(RefusalCode.WRONG_PHASE, f"{self.settings.name} was not greeted")
        return self.config

    def _base(self) -> LoadedBase:
        if self.base is None:
            raise RefusedError(RefusalCode.WRONG_PHASE, f"{self.settings.name} was not greeted")
        return self.base
