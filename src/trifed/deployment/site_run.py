"""One client's part in one run: the model and the data in memory, and the answer to every request of that run.

`load_run` merges the run's settings with the site's own, checks them and the base model against what the site
accepts, and loads the model. The data are read when a request first needs them, and again when a file changed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import TrifedError
from trifed.config.run import RunConfig, make_config
from trifed.config.settings import GUARDS
from trifed.data import content_hash, make_client, rows_hash
from trifed.deployment.protocol import Reply, Request, digest, read_layout, write_layout
from trifed.deployment.refusals import RefusalCode, RefusedError
from trifed.deployment.site_privacy import (
    WITHHELD,
    check_privacy_limits,
    check_site_policy,
    request_key,
    site_privacy,
)
from trifed.deployment.site_settings import SiteSettings
from trifed.deployment.site_store import BASES, SiteStore, first_known
from trifed.federation.client import AcceptanceLimits, Client, ClientSettings, adapted_layout
from trifed.federation.client_model import save_client
from trifed.federation.client_update import ClientDataset, ClientState, score
from trifed.federation.context import decode_tensors, run_context
from trifed.federation.messages import encode_values
from trifed.federation.privacy_report import accounts_in
from trifed.federation.results import facts_of
from trifed.federation.shared_model import SharedModel, build_shared_model
from trifed.privacy.ledger import EVERYTHING
from trifed.similarity import Summary
from trifed.tasks import TASKS
from trifed.tasks.base_model import LoadedBase

FIXED = ("task", "method", "rounds", "privacy")
"""Settings of a run that no later greeting may change, because they decide what the site may be asked for."""
WHOLE_TABLE: dict[str, Any] = {"clients": {"split": "sizes", "sizes": [1.0]}, "test": None}
"""Settings of [data] that make all rows of a site's source one client."""

FileStates = tuple[tuple[str, int, int], ...]


def file_states(source: str | list[str]) -> FileStates:
    """Return name, size and time of change of each file of a data source; empty if it is no path."""
    paths = [Path(name) for name in ([source] if isinstance(source, str) else source)]
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    states = [(str(file), file.stat()) for file in files if file.is_file()]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


@dataclass
class SiteRun:
    """A run that is loaded at a site.

    Attributes:
        name: identity of the run, and name of its folder.
        settings: the site's own settings.
        config: settings of the run, merged with the site's own.
        base: the base model.
        shared_model: the base model with adapters.
        store: the run's folder.
        digest: digest of the layout and start of the values that are sent, before any shared projections.
        client: the client's side of the run; None until the data are read.
        data_hash: hash of the data with their split.
        rows_hash: hash of the data's rows alone.
        files: states of the data's files when they were read.
    """

    name: str
    settings: SiteSettings
    config: RunConfig
    base: LoadedBase
    shared_model: SharedModel
    store: SiteStore
    digest: str
    client: Client | None = None
    data_hash: str = ""
    rows_hash: str = ""
    files: FileStates = ()

    # -- answers to requests

    def open(self, request: Request) -> Reply:
        """Read the data, and reply with the client's facts and summary."""
        again = bool(request.facts.get("again"))
        if not again:
            self.store.reset()
        client = self._read_data(request.number("place"))
        method = client.context.method
        if again:
            client.privacy.on_reopen(has_summary=method.summarise is not None)
        summary = client.summary(self.rows_hash)
        parts = {} if summary is None else {"summary": summary}
        if request.facts.get("start"):
            header = client.context.header("start", 0, client.dataset.index)
            parts["start"] = encode_values(header, self.shared_model.start_values)
        layers = adapted_layout(self.shared_model) if method.shared_projections else ()
        facts: dict[str, Any] = {
            "examples": client.examples,
            "layout": write_layout(self.shared_model.layout),
            "data": self.store.save_data_hash(self.data_hash),
            "lora_bytes": self.shared_model.lora_bytes,
            "layers": write_layout(layers),
        }
        return Reply(facts, parts)

    def gradient(self, request: Request) -> Reply:
        """Reply with the gradient of the first step, for a method that has shared projections."""
        return Reply(parts={"gradient": self._client(request).gradient()})

    def shared_projections(self, request: Request) -> Reply:
        """Take the projections that the server computed from all gradients."""
        client, layout = self._client(request), read_layout(request.text("layout"))
        header = client.context.header("frames", 0, client.dataset.index)
        projections = decode_tensors(request.part("frames"), header, layout)[1]
        if self.store.last_round() is not None and self.store.has_other_shared_projections(projections):
            raise RefusedError(
                RefusalCode.WRONG_PHASE, "other frames than a round was trained in; they are refused"
            )
        self.shared_model.set_shared_projections(projections)
        self.store.save_shared_projections(projections)
        client.start()
        return Reply({"digest": digest(self.shared_model.layout, self.shared_model.start_values)})

    def train(self, request: Request) -> Reply:
        """Train one round from the state that the server counts on, and reply with the upload."""
        number, counts, num_clients = (request.number(fact) for fact in ("round", "counts", "asked"))
        client = self._client(request)
        if file_states(self.config.data.source) != self.files:
            client = self._read_data(request.number("place"))
        if not self.store.has_data(self.data_hash, request.text("data")):
            return Reply({"changed": 1}, error=RefusalCode.DATA_CHANGED)
        if num_clients < self.settings.at_least:
            raise RefusedError(
                RefusalCode.TOO_FEW_CLIENTS,
                f"the round has {num_clients} clients, and at_least is {self.settings.at_least}; it takes no part",
            )
        if self._lacks_shared_projections(client):
            return Reply(lost=True)
        key = request_key(request) if client.privacy.active else ""
        upload = self.store.upload_for(key) if key else None
        if upload:
            client.privacy.on_release(number, upload)
            return Reply(WITHHELD, {"upload": upload})
        if counts == 0:
            client.start()
        elif not self._restore(client, counts):
            client.privacy.on_state_lost()
            return Reply({"has": self.store.rebase()}, lost=True)
        return self._trained(request, client, key)

    def _trained(self, request: Request, client: Client, key: str) -> Reply:
        """Train from the state in memory; the new state is on the disk before the upload leaves."""
        number, counts = request.number("round"), request.number("counts")
        began, before = time.monotonic(), client.state

        def save(state: ClientState, upload: bytes | None) -> None:
            self.store.save_round(number, counts, state, client.local_init)
            if key and upload:
                self.store.save_upload(key, upload)

        try:
            limits = AcceptanceLimits(self.settings.worse_by, self.settings.others_at_most)
            update = client.round(number, request.parts.get("download"), limits, save)
        except TrifedError:
            client.state = before
            raise
        facts: dict[str, Any] = {
            "loss": update.loss,
            "steps": update.steps,
            "kept_own": int(update.rejected_download),
            "seconds": round(time.monotonic() - began, 3),
        }
        return Reply(WITHHELD if key else facts, {"upload": update.upload} if update.upload else {})

    def finish(self, request: Request) -> Reply:
        """Take the last download, save the client's model, and reply with its scores where the site allows it."""
        number, counts, client = request.number("round"), request.number("counts"), self._client(request)
        if self._lacks_shared_projections(client):
            return Reply(lost=True)
        if counts and not self._restore(client, counts):
            return Reply({"has": self.store.rebase()}, lost=True)
        download, limits = (
            request.parts.get("download"),
            AcceptanceLimits(others_at_most=self.settings.others_at_most),
        )
        received = None if download is None else client.take(number, download, limits)
        tensors = client.tensors(client.context.method.evaluated_model, received)
        labels = list(self.config.data.labels or [])
        save_client(self.store.model, self.shared_model, tensors, labels, self.base.source)
        if not self.settings.tell_scores or client.privacy.active:
            return Reply()
        splits = {"valid": client.dataset.valid, "test": client.dataset.test}
        scores = {
            f"{split}_{name}": value
            for split, data in splits.items()
            for name, value in facts_of(score(self.shared_model, tensors, data, self.config.training)).items()
        }
        return Reply(scores)

    # -- facts for the site's record

    def tensors_sent(self) -> dict[str, list[str]]:
        """Return the names of the tensors in each message that leaves the site, by the message's name."""
        sent = [name for name, _ in self.shared_model.layout]
        gradient = [name for name, _ in adapted_layout(self.shared_model)]
        return {
            "upload": sent,
            "start": sent,
            "gradient": gradient,
            "summary": [field.name for field in fields(Summary)],
        }

    def spent_epsilon(self) -> float | None:
        """Return ε of one training example that the run has spent here; None without a ledger."""
        lines = [line for account in accounts_in(self.store.folder) for line in account.spent]
        return next((line.epsilon for line in lines if line.covers == EVERYTHING), None)

    # -- the client in memory

    def _client(self, request: Request) -> Client:
        return self.client or self._read_data(request.number("place"))

    def _read_data(self, place: int) -> Client:
        """Read the site's data as those of the client at `place`, and make its side of the run anew."""
        files, config, model = file_states(self.config.data.source), self.config, self.shared_model
        data = make_client(config.data, config.seed, model.task.roles, self.settings.name, place)
        # Only after the data could be read.
        self.files, self.data_hash, self.rows_hash = files, content_hash(data), rows_hash(data)
        [rows] = data.clients
        splits = (model.encode(split) for split in (rows.train, rows.valid, rows.test))
        context = run_context(config, model.layout, model.fingerprint, self.name)
        projections = self.store.shared_projections()
        if projections is not None:
            model.set_shared_projections(projections)
        settings = ClientSettings.of(config, len(config.data.labels or [""]))
        settings = replace(settings, tells_examples=self.settings.tell_examples)
        privacy = site_privacy(config, self.store.folder, self.settings.name)
        client = Client(context, model, ClientDataset(place, rows.name, *splits), settings, privacy)
        client.start()
        self.client = client
        return client

    def _restore(self, client: Client, round_number: int) -> bool:
        """Set the client's state to that after a round; False if the state is lost."""
        state = self.store.state_after(round_number, client.local_init)
        if state is not None:
            client.state = state
        return state is not None

    def _lacks_shared_projections(self, client: Client) -> bool:
        """Return True if the site lost projections that the method needs; the server then sends them again."""
        return bool(client.context.method.shared_projections) and not self.store.has_shared_projections()


def load_run(name: str, values: Mapping[str, Any], site: SiteSettings) -> SiteRun:
    """Return a run with its base model loaded.

    Args:
        name: the run's identity.
        values: settings of the run as the server sent them.
        site: the site's own settings, which replace those of the run.

    Raises:
        RefusedError: the run asks for what the site does not accept, or the base model is another than before.
        ConfigError: the merged settings have mistakes.
    """
    own: dict[str, Any] = {"data": deep_merge(site.data, WHOLE_TABLE)}
    own |= {"model": {"name": site.model}} if site.model else {}
    own |= {"training": {"device": site.device}} if site.device else {}
    own |= {"privacy": site.privacy.model_dump(include=GUARDS)}  # the site decides what may leave it
    config = make_config(deep_merge(values, own), f"the run's settings with those of {site.name}")
    check_privacy_limits(config, site)
    check_site_policy(config, site)
    task = TASKS[config.task]
    if task.labelled and not config.data.labels:
        raise RefusedError(
            RefusalCode.SETTINGS_UNUSABLE,
            "data.labels: missing; the run must name all labels, because no client sees those of the others",
        )
    base = task.load(config.model.name, config.model.dtype)
    check_base(site, f"{config.model.name} as {config.model.dtype}", base.fingerprint)
    shared_model = build_shared_model(
        base,
        config.composed_method(),
        config.data.labels or [""],
        config.seed,
        (config.model, config.adapter, config.training),
        task,
    )
    start_digest = digest(shared_model.layout, shared_model.start_values)
    store = SiteStore.at(site.folder / name, values)
    return SiteRun(name, site, config, base, shared_model, store, start_digest)


def check_base(site: SiteSettings, model: str, fingerprint: str) -> None:
    """Check a base model against the site's settings, and against its first load at this site.

    Args:
        site: the site's settings.
        model: name and type of the model.
        fingerprint: sha256 of its weights.

    Raises:
        RefusedError: the weights are others.
    """
    if not fingerprint.startswith(site.base):
        problem = f"{site.name} accepts only {site.base[:16]} (base)"
    else:
        first = first_known(site.folder, model, fingerprint)
        if first == fingerprint:
            return
        problem = (
            f"it was {first[:16]} when {site.name} first loaded it; put that back, or, if the change is meant, "
            f"remove its line from the site's {BASES}"
        )
    raise RefusedError(RefusalCode.BASE_MISMATCH, f"the base model here is {fingerprint[:16]}, but {problem}")
