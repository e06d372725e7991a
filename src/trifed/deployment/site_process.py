"""A site's answers to the server's requests: one client, and one run at a time, in one process.

All that outlives the process lies in the run's folder (`site_store`), so a new process continues where the last
one ended. `site_run` has the answer to each kind of request.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from trifed.common.errors import MessageError, TrifedError
from trifed.deployment.phases import check_asked_for
from trifed.deployment.protocol import Reply, Request
from trifed.deployment.refusals import RefusalCode, RefusedError, code_of
from trifed.deployment.release_log import record_release
from trifed.deployment.site_methods import check_method
from trifed.deployment.site_run import FIXED, SiteRun, load_run
from trifed.deployment.site_settings import LEFT, SiteSettings
from trifed.deployment.site_store import SiteStore
from trifed.methods import METHODS, code_hash

LOGGER = logging.getLogger(__name__)
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")

ANSWERS: dict[str, Callable[[SiteRun, Request], Reply]] = {
    "open": SiteRun.open,
    "gradient": SiteRun.gradient,
    "frames": SiteRun.shared_projections,
    "train": SiteRun.train,
    "finish": SiteRun.finish,
}
"""By kind of request, besides "hello"."""


class SiteProcess:
    """A site's process. `run`: the run that is loaded, None before the first request."""

    def __init__(self, settings: SiteSettings) -> None:
        self.settings = settings
        self.run: SiteRun | None = None
        self.logged: set[str] = set()

    def answer(self, request: Request) -> Reply:
        """Return the reply to a request; of an error the text goes to the site's log, the code to the server."""
        try:
            reply = self._answer(request)
            self._log_warnings()
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
        LOGGER.warning("'%s' refused: %s", request.kind, error)
        return Reply(error=code_of(error))

    def _answer(self, request: Request) -> Reply:
        kinds = ("hello", *ANSWERS)
        if request.kind not in kinds:
            raise MessageError(f"got '{request.kind}', expected one of {', '.join(kinds)}")
        name = request.text("run")
        if not RUN_NAME.fullmatch(name):  # it is the name of a folder
            raise MessageError(f"'run': got {name!r}, expected letters, digits and '-'; it is refused")
        if request.kind == "hello":
            return self._hello(name, request)
        if (self.settings.folder / LEFT).is_file():
            return Reply({"left": 1}, error=RefusalCode.LEFT)
        run = self.run if self.run and self.run.name == name else self.resume(name)
        if run is None:
            return Reply(lost=True)  # even the settings; the server sends them again
        check_asked_for(request, run.config, run.store)
        return ANSWERS[request.kind](run, request)

    def _hello(self, name: str, request: Request) -> Reply:
        try:
            values = json.loads(request.text("config"))
        except ValueError as error:
            raise MessageError(f"the run's settings cannot be read ({error}); they are refused") from error
        check_method(values, request.facts.get("method_code"), self.settings)
        run = self._load(name, values)
        facts = {"name": self.settings.name, "base": run.shared_model.fingerprint, "digest": run.digest}
        return Reply({**facts, "method_code": code_hash(METHODS[run.config.method.name])})

    def resume(self, name: str) -> SiteRun | None:
        """Load a run from its folder; None if the site does not have it."""
        values = SiteStore.settings_of(self.settings.folder / name)
        return None if values is None else self._load(name, values)

    def _load(self, name: str, values: Mapping[str, Any]) -> SiteRun:
        """Load a run with the settings that the server sent, unless it is loaded."""
        earlier = SiteStore.settings_of(self.settings.folder / name)
        if earlier is not None and any(earlier.get(setting) != values.get(setting) for setting in FIXED):
            raise RefusedError(
                RefusalCode.WRONG_RUN, f"{name}: the run began here with another {', '.join(FIXED)}; it is refused"
            )
        if self.run is None or self.run.name != name:
            self.run = load_run(name, values, self.settings)
        return self.run

    def _log_warnings(self) -> None:
        """Log each guard's first warning here; the server does not get it."""
        warnings = self.run.client.guards.warnings if self.run and self.run.client else {}
        for setting in warnings.keys() - self.logged:
            LOGGER.warning("%s", warnings[setting])
            self.logged.add(setting)
