"""A site's answers to the server's requests, and all checks before an answer: one client in one process.

A `SiteProcess` has one run at a time in memory. All that outlives the process lies in the run's folder
(`site_store`), so a new process continues where the last one ended. `site_run` has the answer to each kind of
request.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import MessageError, TrifedError, one_line
from trifed.config.run import DEFAULT_METHOD, RunConfig, make_config
from trifed.config.settings import GUARDS
from trifed.deployment.protocol import MOST_TEXT, RefusedError, Reply, Request, code_of, digest, read_json
from trifed.deployment.release_log import record_release
from trifed.deployment.site_run import SiteRun
from trifed.deployment.site_settings import LEFT, SiteSettings
from trifed.deployment.site_store import BASES, COLUMNS, SiteStore, first_known
from trifed.federation.privacy_report import promise
from trifed.federation.shared_model import build_shared_model
from trifed.methods import METHODS, ORIGINS, code_hash
from trifed.privacy import RECORD
from trifed.privacy.ledger import EVERYTHING
from trifed.tasks import TASKS

LOGGER = logging.getLogger(__name__)

FIXED = ("task", "method", "rounds", "privacy")
"""Settings of a run that no later greeting may change, because they decide what the site may be asked for."""
WHOLE_TABLE: dict[str, Any] = {"clients": {"split": "sizes", "sizes": [1.0]}, "test": None}
"""Settings of [data] that make all rows of a site's source one client."""


ANSWERS: dict[str, Callable[[SiteRun, Request], Reply]] = {
    "open": SiteRun.open,
    "gradient": SiteRun.gradient,
    "frames": SiteRun.shared_projections,
    "train": SiteRun.train,
    "finish": SiteRun.finish,
}
"""Kind of request → its answer; "hello" is answered apart."""


class SiteProcess:
    """A site's process. `run`: the run that is loaded, None before the first request."""

    def __init__(self, settings: SiteSettings) -> None:
        self.settings = settings
        self.run: SiteRun | None = None

    def answer(self, request: Request) -> Reply:
        """Return the reply to a request; of an error the text goes to the site's log, the code to the server."""
        try:
            reply = self._answer(request)
            client = self.run.client if self.run else None
            while client and client.guards.new_warnings:  # the server does not get them
                LOGGER.warning("%s", one_line(client.guards.new_warnings.pop(0)))
        except (TrifedError, OSError) as error:
            reply = self._refusal(request, error)
        try:
            run = self.run
            tensors, epsilon = (run.tensors_sent(), run.spent_epsilon()) if run else ({}, None)
            record_release(self.settings.folder, request, reply, tensors, epsilon)
        except (TrifedError, OSError) as error:  # what cannot be written down does not leave
            return self._refusal(request, error)
        return reply

    def _refusal(self, request: Request, error: Exception) -> Reply:
        LOGGER.warning("'%s' refused: %s", one_line(request.kind, 20), one_line(error, 2000))
        return Reply(error=code_of(error))

    def _answer(self, request: Request) -> Reply:
        kinds = ("hello", *ANSWERS)
        if request.kind not in kinds:
            raise MessageError(f"got a request of another kind, expected one of {', '.join(kinds)}")
        name = request.text("run")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}", name):  # it is the name of a folder
            raise MessageError(f"'run': got {name!r}, expected letters, digits and '-'; it is refused")
        if request.kind == "hello":
            return self._hello(name, request)
        if (self.settings.folder / LEFT).is_file():
            return Reply({"left": 1}, error="left")
        run = self.run if self.run and self.run.name == name else self.resume(name)
        if run is None:
            return Reply(lost=True)  # even the settings; the server sends them again
        check_asked_for(request, run.config, run.store)
        return ANSWERS[request.kind](run, request)

    def _hello(self, name: str, request: Request) -> Reply:
        try:
            values = read_json(request.text("config", MOST_TEXT))
        except ValueError as error:
            raise MessageError(f"the run's settings cannot be read ({error}); they are refused") from error
        if not isinstance(values, dict):
            raise MessageError(f"the run's settings: got {type(values).__name__}, expected a table; refused")
        check_method(values, request.facts.get("method_code"), self.settings)
        run = self._load(name, values)
        return Reply(
            {
                "name": self.settings.name,
                "base": run.shared_model.fingerprint,
                "digest": run.digest,
                "method_code": code_hash(METHODS[run.config.method.name]),
            }
        )

    def resume(self, name: str) -> SiteRun | None:
        """Load a run from its folder; None if the site does not have it."""
        values = SiteStore.settings_of(self.settings.folder / name)
        return None if values is None else self._load(name, values)

    def _load(self, name: str, values: Mapping[str, Any]) -> SiteRun:
        """Load a run with the settings that the server sent, unless it is loaded."""
        earlier = SiteStore.settings_of(self.settings.folder / name)
        if earlier is not None and any(earlier.get(setting) != values.get(setting) for setting in FIXED):
            raise RefusedError(
                "wrong_run", f"{name}: the run began here with another {', '.join(FIXED)}; it is refused"
            )
        if self.run is None or self.run.name != name:
            self.run = load_run(name, values, self.settings)
        return self.run


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
    own = {
        "data": deep_merge(site.data, WHOLE_TABLE),
        "model": {"name": site.model} if site.model else {},
        "training": {"device": site.device} if site.device else {},
        "privacy": site.privacy.model_dump(include=GUARDS),  # the site decides what may leave it
    }
    config = make_config(deep_merge(values, own), f"the run's settings with those of {site.name}")
    check_privacy_limits(config, site)
    check_site_policy(config, site)
    check_columns(config, site)
    task = TASKS[config.task]
    if task.labelled and not config.data.labels:
        raise RefusedError(
            "settings_unusable",
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
    store = SiteStore.at(site.folder / name, values)
    return SiteRun(name, site, config, shared_model, store, digest(shared_model.layout, shared_model.start_values))


def check_base(site: SiteSettings, model: str, fingerprint: str) -> None:
    """Check a base model against the site's settings, and against its first load at this site.

    Args:
        site: the site's settings.
        model: name and type of the model.
        fingerprint: sha256 of its weights.

    Raises:
        RefusedError: the weights are others.
    """
    found = f"the base model here is {fingerprint[:16]}, but"
    if not fingerprint.startswith(site.base):
        raise RefusedError("base_mismatch", f"{found} {site.name} accepts only {site.base[:16]} (base)")
    first = first_known(site.folder, BASES, model, fingerprint)
    if first != fingerprint:
        raise RefusedError(
            "base_mismatch",
            f"{found} it was {first[:16]} when {site.name} first loaded it; put that back, or, if the change is "
            f"meant, remove its line from the site's {BASES}",
        )


def check_privacy_limits(config: RunConfig, settings: SiteSettings) -> None:
    """Check that a run keeps within the site's privacy limits.

    Raises:
        RefusedError: ε of a training example over the whole run exceeds `most_epsilon`, or is infinite; or
            training is noised and the site has `worse_by`, which would choose by exact losses.
    """
    limit, name = settings.most_epsilon, settings.name
    if config.privacy.training and settings.worse_by is not None:
        raise RefusedError(
            "privacy_limit",
            f"{name}: worse_by chooses by exact losses, which privacy.training does not cover; leave it out",
        )
    if limit is None:
        return
    lines = promise(config) if config.privacy.on else []
    epsilon = next((line.epsilon for line in lines if line.covers == EVERYTHING), math.inf)
    if epsilon > limit:
        what = f"has {epsilon:.2f}" if math.isfinite(epsilon) else "protects not everything that leaves"
        raise RefusedError(
            "privacy_limit",
            f"{name} takes part in runs of ε up to {limit:g}, {RECORD} (most_epsilon), and this run {what}",
        )


def check_site_policy(config: RunConfig, site: SiteSettings) -> None:
    """Check that a run asks for no kind of message that the site does not send.

    Raises:
        RefusedError: The method asks for an exact gradient and `gradients` is false; or it sends label counts
            without noise and `tell_examples` is false.
    """
    method, name = config.composed_method(), site.name
    if method.shared_projections and not site.gradients:
        raise RefusedError(
            "gradients_off",
            f"method.name: '{config.method.name}' asks for an exact gradient of the data; {name} sends none "
            f"unless its node.toml has gradients = true",
        )
    if method.summarise and not site.tell_examples and not config.privacy.summary:
        raise RefusedError(
            "counts_off",
            f"method.name: '{config.method.name}' sends the number of examples of each label; {name} does "
            f"not, because its node.toml has tell_examples = false",
        )


def check_columns(config: RunConfig, site: SiteSettings) -> None:
    """Check that a run reads no other columns than the site allows, or than the first run here has read.

    Raises:
        RefusedError: The run's settings name another column.
    """
    data = config.data
    read = {data.label, *(role.column(data) for role in TASKS[config.task].roles)} - {"", None}
    names = json.dumps(sorted(map(str, read)))
    allowed = site.columns
    if allowed is None:
        allowed = json.loads(first_known(site.folder, COLUMNS, str(data.source), names))
    if not read <= set(allowed):
        raise RefusedError(
            "columns_not_allowed",
            f"data: the run reads the columns {names}, and {site.name} allows {json.dumps(allowed)}; if that is "
            f"meant, set columns = {names} in node.toml",
        )


def check_method(values: Mapping[str, Any], server_hash: object, site: SiteSettings) -> None:
    """Check the method that a run's settings name: a server names one, the site runs what is installed here.

    Args:
        values: Settings of the run as the server sent them.
        server_hash: Hash of the code of the method at the server, see `code_hash`.
        site: The site's own settings.

    Raises:
        RefusedError: The method is not installed here, the site does not allow it, or its code differs.
    """
    table = values.get("method", {})
    name = str(table.get("name", DEFAULT_METHOD)) if isinstance(table, Mapping) else str(table)
    if name not in METHODS:
        raise RefusedError("method_unknown", f"method.name: got '{name}', which is not installed at {site.name}")
    if name not in (METHODS.keys() - ORIGINS.keys() if site.methods is None else site.methods):
        raise RefusedError(
            "method_not_allowed",
            f"methods: {site.name} does not allow '{name}'; add it to `methods` if you trust its code",
        )
    own_hash = code_hash(METHODS[name])
    if server_hash != own_hash:
        raise RefusedError(
            "method_mismatch",
            f"'{name}': its code here has the hash {own_hash}, at the server {server_hash!r}; install the same "
            f"version",
        )


def check_asked_for(request: Request, config: RunConfig, store: SiteStore) -> None:
    """Refuse a request that a server which follows the run's settings never sends, before any computation.

    Two requests pass and are checked later by `SiteRun`: a train request to a site that was not opened (it replies
    `changed`, and is opened again), and frames that the site has lost or already has.

    Raises:
        RefusedError: The method does not ask for it, or not in this phase.
        MessageError: The request lacks the facts of its kind.
    """
    kind = request.kind
    if kind in ("gradient", "frames") and not METHODS[config.method.name].shared_projections:
        raise RefusedError("not_asked_for", f"'{config.method.name}' has no {kind}; it is refused")
    if kind == "gradient" and config.privacy.on:
        raise RefusedError("not_asked_for", "under [privacy] no noise covers a gradient; it is refused")
    phase = _wrong_phase(request, store) or _wrong_round(request, config.rounds, store.counted_round() or 0)
    if phase:
        raise RefusedError("wrong_phase", f"got '{kind}', but {phase}; it is refused")


def _wrong_phase(request: Request, store: SiteStore) -> str:
    """Return why a request does not fit the phase of the run, by the files at this site; empty if it does."""
    kind, trained = request.kind, store.last_round() is not None
    conditions = {
        "the run is finished": kind != "finish" and store.finished(),
        "the run was not opened": kind in ("gradient", "frames", "finish") and not store.opened(),
        "the opening is over": kind == "gradient" and (trained or store.has_shared_projections()),
        "a round was trained already": kind == "open" and trained and not request.facts.get("again"),
    }
    return next((reason for reason, holds in conditions.items() if holds), "")


def _wrong_round(request: Request, rounds: int, counted: int) -> str:
    """Return why a round cannot be next; empty if it can. `counted`: the last round that counts at the server."""
    if request.kind not in ("train", "finish"):
        return ""
    number, counts = request.number("round"), request.number("counts")
    first, last = (rounds + 1, rounds + 1) if request.kind == "finish" else (counted + 1, rounds)
    if first <= number <= last and counts < number:
        return ""
    return f"round {number} after round {counts} is not between {first} and {last}, and after what counts"
