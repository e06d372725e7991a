"""One client's part in one run: the model and the data in memory, and the answer to every request of that run.

The data are read when a request first needs them, and again when a file changed. Noise under [privacy] comes from
the operating system's generator, never from the run's seed, which the server has.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load

from trifed.common.errors import MessageError, TrifedError
from trifed.config.run import RunConfig
from trifed.data import content_hash, make_client, rows_hash
from trifed.deployment.protocol import (
    MOST_TEXT,
    Fact,
    RefusedError,
    Reply,
    Request,
    digest,
    read_layout,
    write_layout,
)
from trifed.deployment.site_settings import SiteSettings
from trifed.deployment.site_store import SiteStore
from trifed.federation.client import Client
from trifed.federation.client_model import save_client
from trifed.federation.client_settings import AcceptanceLimits, ClientSettings
from trifed.federation.client_update import ClientDataset, ClientState, score
from trifed.federation.context import RunContext, decode_tensors, run_context
from trifed.federation.dp_mechanism import digest_of, make_privacy
from trifed.federation.messages import encode_values, read_header
from trifed.federation.privacy_report import accounts_in
from trifed.federation.results import facts_of
from trifed.federation.run_folder import PRIVACY
from trifed.federation.shared_projections import adapted_layout
from trifed.federation.training.class_weights import class_weights
from trifed.federation.training.shared_model import SharedModel
from trifed.privacy import secure_noise
from trifed.privacy.ledger import EVERYTHING
from trifed.similarity import Summary

WITHHELD: dict[str, Fact] = {"loss": math.nan, "steps": 0, "kept_own": 0, "seconds": 0.0}
"""Reported under privacy in place of facts that depend on the client's data."""

FileStates = tuple[tuple[str, int, int], ...]


def file_states(source: str | list[str]) -> FileStates:
    """Return name, size and time of change of each file of a data source; empty if it is no path."""
    paths = [Path(name) for name in ([source] if isinstance(source, str) else source)]
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file())


@dataclass
class SiteRun:
    """A run that is loaded at a site.

    Attributes:
        name: identity of the run, and name of its folder.
        settings: the site's own settings.
        config: settings of the run, merged with the site's own.
        shared_model: the base model with adapters.
        store: the run's folder.
        digest: digest of the layout and start of the values that go either way, before any shared projections.
        greeted: digest of the settings that the server sent, see `greeting.digest_of_settings`.
        client: the client's side of the run; None until the data are read.
        data_hash: hash of the data with their split.
        rows_hash: hash of the data's rows alone.
        files: states of the data's files when they were read.
    """

    name: str
    settings: SiteSettings
    config: RunConfig
    shared_model: SharedModel
    store: SiteStore
    digest: str
    greeted: str
    client: Client | None = None
    data_hash: str = ""
    rows_hash: str = ""
    files: FileStates = ()

    # -- answers to requests

    def open(self, request: Request) -> Reply:
        """Read the data, and reply with the client's facts and summary."""
        again = request.facts.get("again")
        back = not again and self.store.last_round() is not None  # to before this client joined
        if not again:
            self.store.reset()
        client = self._read_data(request)
        method = client.context.method
        if again:
            client.privacy.on_reopen(has_summary=method.summarise is not None)
        summary = client.summary(self.rows_hash)
        parts = {} if summary is None else {"summary": summary}
        if request.facts.get("start"):
            parts["start"] = encode_values(
                client.context.header("start", 0, client.dataset.index), self.shared_model.exchanged_start
            )
        layers = adapted_layout(self.shared_model) if method.shared_projections else ()
        facts: dict[str, Any] = {
            "examples": client.examples,
            "layout": write_layout(self.shared_model.exchanged),
            "data": self.store.save_data_hash(self.data_hash),
            "lora_bytes": self.shared_model.lora_bytes,
            "layers": write_layout(layers),
        }
        if client.context.options.raw_summary():
            facts["features"] = self.shared_model.model.hidden
        return Reply({**facts, "back_to": 0} if back else facts, parts)

    def gradient(self, request: Request) -> Reply:
        """Reply with the gradient of the first step, for a method that has shared projections."""
        return Reply(parts={"gradient": self._client(request).gradient()})

    def shared_projections(self, request: Request) -> Reply:
        """Set the projections that the server computed from all gradients."""
        client, layout = self._client(request), read_layout(request.text("layout", MOST_TEXT))
        projections = decode_tensors(
            request.part("frames"), client.context.header("frames", 0, client.dataset.index), layout
        )[1]
        if self.store.last_round() is not None and self.store.has_other_shared_projections(projections):
            raise RefusedError(
                "wrong_phase", "the shared projections are not those of the earlier rounds; they are refused"
            )
        self.shared_model.set_shared_projections(projections)
        self.store.save_shared_projections(projections)
        client.start()
        return Reply({"digest": digest(self.shared_model.exchanged, self.shared_model.exchanged_start)})

    def train(self, request: Request) -> Reply:
        """Train one round from the state that the server counts on, and reply with the upload."""
        number, num_clients = request.number("round"), request.number("asked")
        client = self._client(request)
        if file_states(self.config.data.source) != self.files:
            client = self._read_data(request)
        if not self.store.has_data(self.data_hash, request.text("data")):
            return Reply({"changed": 1}, error="data_changed")
        if num_clients < self.settings.at_least:
            raise RefusedError(
                "too_few_clients",
                f"the round has {num_clients} clients, and at_least is {self.settings.at_least}; it takes no part",
            )
        if self._lacks_shared_projections(client):
            return Reply(lost=True)
        key = self._request_key(request, client)
        upload = self.store.upload_for(key) if key else None
        if upload:
            client.privacy.on_release(number, upload)
            return Reply(WITHHELD, {"upload": upload})
        if not self._continue_from(client, request):
            return self._state_lost(client, request)
        return self._trained(request, client, key)

    def _trained(self, request: Request, client: Client, key: str) -> Reply:
        """Train from the state in memory; the new state is on the disk before the upload leaves."""
        number, counts = request.number("round"), request.number("counts")
        began, before = time.monotonic(), client.state
        back: dict[str, Fact] = {"back_to": counts} if self._goes_back(request) else {}

        def save(state: ClientState, upload: bytes | None) -> None:
            self.store.save_round(number, counts, state, client.local_init, self.settings.keep_rounds)
            if key and upload:
                self.store.save_upload(key, upload)

        try:
            update = client.round(
                number,
                request.parts.get("download"),
                self._limits(),
                save,
            )
        except TrifedError:
            client.state = before
            raise
        facts: dict[str, Any] = {
            "loss": update.loss,
            "steps": update.steps,
            "kept_own": int(update.rejected_download),
            "seconds": round(time.monotonic() - began, 3),
        }
        return Reply((WITHHELD if key else facts) | back, {"upload": update.upload} if update.upload else {})

    def finish(self, request: Request) -> Reply:
        """Read the last download, save the client's model, and reply with its scores where the site allows it."""
        number, client = request.number("round"), self._client(request)
        if self._lacks_shared_projections(client):
            return Reply(lost=True)
        if not self._continue_from(client, request):
            return self._state_lost(client, request)
        download = request.parts.get("download")
        received = None if download is None else client.accept(number, download, self._limits())
        tensors = client.tensors(client.context.method.evaluated_model, received)
        save_client(
            self.store.model,
            self.shared_model,
            tensors,
            self.config.data.labels or [],
            self.shared_model.base.source,
        )
        if not self.tells_scores or client.privacy.active:
            return Reply()
        splits = {"valid": client.dataset.valid, "test": client.dataset.test}
        return Reply(
            {
                f"{split}_{name}": value
                for split, data in splits.items()
                for name, value in facts_of(score(self.shared_model, tensors, data, self.config.training)).items()
            }
        )

    def ready(self, request: Request) -> Reply:
        """Refuse to be ready for a sum: the run is not sealed."""
        raise RefusedError("not_asked_for", f"'{request.kind}': the run is not sealed; it is refused")

    def send(self, request: Request) -> Reply:
        """Refuse to send a part of a sum: the run is not sealed."""
        raise RefusedError("not_asked_for", f"'{request.kind}': the run is not sealed; it is refused")

    # -- what is told

    @property
    def tells_scores(self) -> bool:
        """True if the site sends the server its final model's scores on held-out data (`tell_scores`)."""
        return self.settings.tell_scores

    # -- facts for the site's record

    def tensors_sent(self, number: int) -> dict[str, list[str]]:
        """Return the names of the tensors in each message of round `number` that leaves, by the message's name."""
        part = self.client.context.part(number) if self.client and number else None
        sent = [name for name, _ in (part.layout if part else self.shared_model.layout)]
        gradient = [name for name, _ in adapted_layout(self.shared_model)]
        return {
            "upload": sent,
            "sum": sent if number else [],
            "start": [name for name, _ in self.shared_model.exchanged],
            "gradient": gradient,
            "summary": [field.name for field in fields(Summary)],
        }

    def spent_epsilon(self) -> float | None:
        """Return ε of one training example that the run has spent here; None without a ledger."""
        lines = [line for account in accounts_in(self.store.folder) for line in account.spent]
        return next((line.epsilon for line in lines if line.covers == EVERYTHING), None)

    # -- the client in memory

    def _request_key(self, request: Request, client: Client) -> str:
        """Return the key of a request whose upload is kept, to be sent again as it was; empty without noise."""
        return request_key(request, client.context) if client.privacy.active else ""

    def _limits(self) -> AcceptanceLimits:
        return AcceptanceLimits(self.settings.worse_by, self.settings.others_at_most)

    def _client(self, request: Request) -> Client:
        return self.client or self._read_data(request)

    def _read_data(self, request: Request) -> Client:
        """Read the site's data as those of the client that is asked, and make its side of the run anew."""
        config, model, index = self.config, self.shared_model, request.number("place")
        files = file_states(config.data.source)
        data = make_client(config.data, config.seed, model.task.roles, self.settings.name, index)
        # Only after the data could be read.
        self.files, self.data_hash, self.rows_hash = files, content_hash(data), rows_hash(data)
        [rows] = data.clients
        projections = self.store.shared_projections()
        if projections is not None:
            model.set_shared_projections(projections)
        settings = ClientSettings.of(config, len(config.data.labels or [""]), self.settings.name)
        self.client = Client(
            run_context(config, model.exchanged, model.fingerprint, self.name, model.model.hidden),
            model,
            ClientDataset(
                index,
                rows.name,
                *map(model.encode, (rows.train, rows.valid, rows.test)),
                class_weights=class_weights(
                    config.training.class_weights, config.data.labels or [], rows.train.labels
                ),
            ),
            replace(settings, tells_examples=settings.tells_examples and self.settings.tell_examples),
            make_privacy(config, self.settings.name, self.store.folder / PRIVACY, lambda *_: secure_noise),
        )
        self.client.start()
        return self.client

    def _continue_from(self, client: Client, request: Request) -> bool:
        """Set the client's state to the one that the server counts on; False if there is none that can be used."""
        counts = request.number("counts")
        if counts == 0:
            client.start()
            return True
        if self._goes_back(request) and not self.settings.may_go_back:
            return False
        state = self.store.state_after(counts, client.local_init, request.facts.get("beginning"))
        client.state = state or client.state
        return state is not None

    def _goes_back(self, request: Request) -> bool:
        return self.store.goes_back(request.number("round"), request.number("counts"))

    def _state_lost(self, client: Client, request: Request) -> Reply:
        """Reply which state there is instead: the last one, or none if the run went back to before all of them."""
        if self._goes_back(request) and self.settings.may_go_back:
            return Reply({"has": 0}, lost=True)
        client.privacy.on_state_lost()
        has, beginning = self.store.rebase()
        return Reply({"has": has, "beginning": beginning}, lost=True)

    def _lacks_shared_projections(self, client: Client) -> bool:
        """Return True if the site lost projections that the method needs; the server then sends them again."""
        return bool(client.context.method.shared_projections) and not self.store.has_shared_projections()


def request_key(request: Request, context: RunContext) -> str:
    """Return a text that identifies a train request: a repeated request gets the same upload.

    Raises:
        MessageError: The download cannot be read.
    """
    download, place, number = "none", request.number("place"), request.number("round")
    try:
        if "download" in request.parts:
            payload, sizes = request.parts["download"], context.downloads.sizes
            read_header(payload, context.header("download", number, place), sum(sizes.values()))
            download = digest_of(load(payload))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MessageError(f"the download is not a readable message ({error}); it is refused") from error
    return f"{place} {number} {request.number('counts')} {download}"
