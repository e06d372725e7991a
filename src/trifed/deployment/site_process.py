"""A site's answers to the server's requests, and all checks before an answer: one client in one process.

A `SiteProcess` has one run at a time in memory. All that outlives the process lies in the run's folder
(`site_store`), so a new process continues where the last one ended. `site_run` has the answer to each kind of
request.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import MessageError, TrifedError, one_line
from trifed.config.run import RunConfig, make_config
from trifed.config.run_identity import NO_NUMBERS
from trifed.config.settings import GUARDS, NAMED_LABELS
from trifed.deployment.greeting import digest_of_settings, settings_taken
from trifed.deployment.protocol import (
    MOST_TEXT,
    RefusedError,
    Reply,
    Request,
    code_of,
    digest,
    read_json,
)
from trifed.deployment.release_log import record_release
from trifed.deployment.site_policy import (
    check_base,
    check_columns,
    check_labels,
    check_method,
    check_privacy_limits,
    check_sealing,
    check_site_policy,
)
from trifed.deployment.site_run import SiteRun
from trifed.deployment.site_settings import LEFT, SiteSettings
from trifed.deployment.site_store import SiteStore
from trifed.federation.training.device_placement import narrow_frozen_weights, slow_precision
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS, code_hash
from trifed.tasks import TASKS

LOGGER = logging.getLogger(__name__)

FIXED = ("task", "method", "rounds", "privacy", "sealing")
"""Settings of a run that no later greeting may change, because they decide what the site may be asked for."""
WHOLE_TABLE: dict[str, Any] = {"clients": {"split": "sizes", "sizes": [1.0]}, "test": None}
"""Settings of [data] that make all rows of a site's source one client."""


ANSWERS: dict[str, Callable[[SiteRun, Request], Reply]] = {
    "open": SiteRun.open,
    "gradient": SiteRun.gradient,
    "frames": SiteRun.shared_projections,
    "ready": lambda run, request: run.ready(request),
    "train": lambda run, request: run.train(request),
    "send": lambda run, request: run.send(request),
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
        except Exception as error:  # a fault of this package or of a method from outside
            LOGGER.exception("'%s' failed; the run is loaded anew from the disk", one_line(request.kind, 20))
            reply, self.run = Reply(error=code_of(error)), None
        try:
            run, number = self.run, request.facts.get("round")
            sent = run.tensors_sent(number if isinstance(number, int) else 0) if run else {}
            epsilon = run.spent_epsilon() if run else None
            record_release(self.settings.folder, request, reply, sent, epsilon)
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
        check_asked_for(request, run.config, run.store, self.settings.may_go_back)
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
        loaded = self.run if self.run and self.run.name == name else None
        if loaded is None or (loaded.config.sealing.on and loaded.greeted != digest_of_settings(values)):
            self._refuse_other_numbers(name, earlier, values)
            self.run = load_run(name, values, self.settings)
            return self.run
        return loaded

    def _refuse_other_numbers(
        self, name: str, earlier: Mapping[str, Any] | None, values: Mapping[str, Any]
    ) -> None:
        """Check that a sealed run goes on with settings that mean what those it began with mean.

        Settings that only a newer server sends, at their defaults, change nothing.

        Raises:
            RefusedError: Another setting that can change a number: sites could train for some rounds so that their
                later changes are small, and show those of another site in a sum.
        """
        now = merged_settings(values, self.settings)
        if earlier is None or not now.sealing.on:
            return
        before = merged_settings(earlier, self.settings)
        if before.model_dump(exclude=NO_NUMBERS) != now.model_dump(exclude=NO_NUMBERS):
            raise RefusedError(
                "wrong_run",
                f"{name}: the sealed run began here with other settings that change numbers; it is refused. "
                "Put them back at the server, or start a new run",
            )


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
    config = merged_settings(values, site)
    check_privacy_limits(config, site)
    check_site_policy(config, site)
    check_sealing(config, site)
    check_columns(config, site)
    task = TASKS[config.task]
    if config.task in NAMED_LABELS and not config.data.labels:
        raise RefusedError(
            "settings_unusable",
            "data.labels: missing; the run must name all labels, because no client sees those of the others",
        )
    if config.task in NAMED_LABELS:
        check_labels(config, site)
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
    narrow_frozen_weights(shared_model.model, config.training, shared_model.parameters.values())
    for warning in slow_precision(config.training):
        LOGGER.warning("%s", warning)
    store, start = SiteStore.at(site.folder / name, values), shared_model.exchanged_start
    make = sealed_site_run() if config.sealing.on else SiteRun
    found, greeted = digest(shared_model.exchanged, start), digest_of_settings(values)
    return make(name, site, config, shared_model, store, found, greeted)


def merged_settings(values: Mapping[str, Any], site: SiteSettings) -> RunConfig:
    """Return the settings of a run as the server sent them, with the site's own in place of some.

    Raises:
        ConfigError: The merged settings have mistakes.
    """
    own_training = site.training.model_dump(exclude_none=True)
    own = {
        "data": deep_merge(site.data, WHOLE_TABLE),
        "model": {"name": site.model} if site.model else {},
        "training": {"device": site.device} if site.device else {},
        "client_settings": {site.name: own_training} if own_training else {},
        "privacy": site.privacy.model_dump(include=GUARDS),  # the site decides what may leave it
    }
    return make_config(deep_merge(settings_taken(values), own), f"the run's settings with those of {site.name}")


def sealed_site_run() -> type[SiteRun]:
    """Return the class of a sealed run, which needs the package cryptography; only sealed runs do."""
    from trifed.deployment.sealed_site_run import SealedSiteRun

    return SealedSiteRun


def check_asked_for(request: Request, config: RunConfig, store: SiteStore, may_go_back: bool) -> None:
    """Refuse a request that a server which follows the run's settings never sends, before any computation.

    Two requests pass and are checked later by `SiteRun`: a train request to a site that was not opened (it replies
    `changed`, and is opened again), and frames that the site has lost or already has.

    Args:
        request: The request.
        config: The run's settings.
        store: The run's folder at this site.
        may_go_back: Whether the site lets the server undo rounds that were done.

    Raises:
        RefusedError: The method does not ask for it, or not in this phase, or the run would go back.
        MessageError: The request lacks the facts of its kind.
    """
    kind = request.kind
    if kind in ("gradient", "frames") and not METHODS[config.method.name].shared_projections:
        raise RefusedError("not_asked_for", f"'{config.method.name}' has no {kind}; it is refused")
    if kind == "gradient" and config.privacy.on:
        raise RefusedError("not_asked_for", "under [privacy] no noise covers a gradient; it is refused")
    phase = _wrong_phase(request, store, may_go_back) or _wrong_round(request, config.rounds)
    if phase:
        raise RefusedError("wrong_phase", f"got '{kind}', but {phase}; it is refused")
    if kind == "train" and not may_go_back:
        number, last = request.number("round"), store.last_round() or 0
        if number <= last and store.goes_back(number, request.number("counts")):
            raise RefusedError(
                "no_going_back",
                f"the server asks for round {number} again, and this site has done round {last}; it takes no part "
                f"until the run has passed that round, unless its node.toml has may_go_back = true",
            )


def _wrong_phase(request: Request, store: SiteStore, may_go_back: bool) -> str:
    """Return why a request does not fit the phase of the run, by the files at this site; empty if it does."""
    kind, trained = request.kind, store.last_round() is not None
    conditions = {
        "the run is finished": kind != "finish" and store.finished() and not may_go_back,
        "the run was not opened": kind in ("gradient", "frames", "ready", "send", "finish") and not store.opened(),
        "the opening is over": (kind == "gradient" and (trained or store.has_shared_projections()))
        or (kind == "ready" and trained),
        "a round was trained already": (
            kind == "open" and trained and not request.facts.get("again") and not may_go_back
        ),
    }
    return next((reason for reason, holds in conditions.items() if holds), "")


def _wrong_round(request: Request, rounds: int) -> str:
    """Return why there is no such round; empty if there is."""
    if request.kind not in ("train", "finish"):
        return ""
    number, counts = request.number("round"), request.number("counts")
    first, last = (rounds + 1, rounds + 1) if request.kind == "finish" else (1, rounds)
    if first <= number <= last and counts < number:
        return ""
    return f"round {number} after round {counts} is not between {first} and {last}, and after what counts"
