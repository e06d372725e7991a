"""Codes for requests that are not answered and replies that do not count.

An error's text can hold labels, names and paths, so a site writes it to its own log and sends a code of a closed
list. The server has its own sentence for every code.
"""

from __future__ import annotations

from enum import StrEnum

from trifed.common.errors import (
    BudgetError,
    ConfigError,
    DataError,
    GuardError,
    MessageError,
    ModelError,
    RunError,
)
from trifed.federation.messages import Rejected


class RefusalCode(StrEnum):
    """Reasons for a request that is not answered or a reply that is not accepted."""

    # sent by a site
    BAD_REQUEST = "bad_request"
    NOT_ASKED_FOR = "not_asked_for"
    WRONG_PHASE = "wrong_phase"
    WRONG_RUN = "wrong_run"
    LEFT = "left"
    DATA_CHANGED = "data_changed"
    DATA_UNUSABLE = "data_unusable"
    MODEL_UNUSABLE = "model_unusable"
    BASE_MISMATCH = "base_mismatch"
    SETTINGS_UNUSABLE = "settings_unusable"
    PRIVACY_LIMIT = "privacy_limit"
    METHOD_UNKNOWN = "method_unknown"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    METHOD_MISMATCH = "method_mismatch"
    GRADIENTS_OFF = "gradients_off"
    COUNTS_OFF = "counts_off"
    GUARD = "guard"
    TOO_FEW_CLIENTS = "too_few_clients"
    STORAGE = "storage"
    UNREACHABLE = "unreachable"
    NO_SETTINGS = "no_settings"
    OTHER = "other"
    # found by the server
    LOST = "lost"
    NO_ANSWER = "no_answer"
    NOT_CONNECTED = "not_connected"
    BAD_REPLY = "bad_reply"
    STARTS_ELSEWHERE = "starts_elsewhere"
    OTHER_BASE = "other_base"
    BAD_NAME = "bad_name"
    NAME_TAKEN = "name_taken"
    OTHER_KEY = "other_key"
    TOO_LATE = "too_late"


REASONS: dict[RefusalCode, str] = {
    RefusalCode.BAD_REQUEST: "it could not read the request; give server and sites the same trifed",
    RefusalCode.NOT_ASKED_FOR: "the run's method or its [privacy] does not ask for such a request",
    RefusalCode.WRONG_PHASE: "the request does not fit how far the run is at this site",
    RefusalCode.WRONG_RUN: "it keeps a run of this name with other settings",
    RefusalCode.LEFT: "it has left for good",
    RefusalCode.DATA_CHANGED: "its data changed; it is opened again before the next round",
    RefusalCode.DATA_UNUSABLE: "its data cannot be used",
    RefusalCode.MODEL_UNUSABLE: "it cannot use the base model",
    RefusalCode.BASE_MISMATCH: "its base model is not the one that it accepts",
    RefusalCode.SETTINGS_UNUSABLE: "the run's settings, with its own, cannot be used",
    RefusalCode.PRIVACY_LIMIT: "the run asks for more than its privacy limits allow",
    RefusalCode.METHOD_UNKNOWN: "the run's method is not installed there",
    RefusalCode.METHOD_NOT_ALLOWED: "its `methods` do not list the run's method",
    RefusalCode.METHOD_MISMATCH: "its code of the run's method is not the server's; install the same version",
    RefusalCode.GRADIENTS_OFF: "it sends no exact gradients, and the run's method asks for one",
    RefusalCode.COUNTS_OFF: "it does not say how many examples it has, and the run's method asks for that",
    RefusalCode.GUARD: "what it would send could show single examples",
    RefusalCode.TOO_FEW_CLIENTS: "the round has fewer clients than its at_least asks for",
    RefusalCode.STORAGE: "it cannot read or write its files",
    RefusalCode.UNREACHABLE: "its process with the model ended or cannot be reached",
    RefusalCode.NO_SETTINGS: "its node was started without --node-config 'node=\"/…/node.toml\"'",
    RefusalCode.OTHER: "it could not answer",
    RefusalCode.LOST: "it lost what it had, and starts anew",
    RefusalCode.NO_ANSWER: "it did not answer in time",
    RefusalCode.NOT_CONNECTED: "its node is not connected",
    RefusalCode.BAD_REPLY: "its answer is not what was asked for",
    RefusalCode.STARTS_ELSEWHERE: "it starts elsewhere from the same frames; give all the same trifed",
    RefusalCode.OTHER_BASE: "it has another base model, or starts elsewhere, than the others",
    RefusalCode.BAD_NAME: "its name is not made of letters, digits, '.', '_' and '-'",
    RefusalCode.NAME_TAKEN: "a client of the same name is there already; give each its own",
    RefusalCode.OTHER_KEY: "it has another key than before; if that is so, set deployment.bound = false",
    RefusalCode.TOO_LATE: "it was not there when this run began, and deployment.late is false",
}
"""The server's sentence for each code; the site's own log has the details."""
AT_SITE = {
    RefusalCode.BAD_REQUEST, RefusalCode.WRONG_PHASE, RefusalCode.WRONG_RUN, RefusalCode.DATA_UNUSABLE,
    RefusalCode.MODEL_UNUSABLE, RefusalCode.BASE_MISMATCH, RefusalCode.SETTINGS_UNUSABLE,
    RefusalCode.PRIVACY_LIMIT, RefusalCode.GUARD, RefusalCode.STORAGE, RefusalCode.UNREACHABLE, RefusalCode.OTHER,
}  # fmt: skip
"""Codes whose details are in the site's log alone."""

CODES: dict[type[Exception], RefusalCode] = {
    GuardError: RefusalCode.GUARD,
    BudgetError: RefusalCode.PRIVACY_LIMIT,
    MessageError: RefusalCode.BAD_REQUEST,
    DataError: RefusalCode.DATA_UNUSABLE,
    ModelError: RefusalCode.MODEL_UNUSABLE,
    ConfigError: RefusalCode.SETTINGS_UNUSABLE,
    OSError: RefusalCode.STORAGE,
}


class RefusedError(RunError):
    """A request that a site refuses; the server gets `code`, and the text stays at the site."""

    def __init__(self, code: RefusalCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def rejected_for(code: RefusalCode) -> Rejected:
    """Return the rejection for a code, with the server's sentence for it."""
    hint = "; its own log says why" if code in AT_SITE else ""
    return Rejected(code, f"{REASONS[code]}{hint}")


def code_of(error: Exception) -> RefusalCode:
    """Return the code that is sent instead of an error's text."""
    if isinstance(error, RefusedError):
        return error.code
    return next((code for kind, code in CODES.items() if isinstance(error, kind)), RefusalCode.OTHER)


def read_code(value: object) -> RefusalCode | None:
    """Read a received code: None for an empty one, `other` for an unknown one."""
    if not value:
        return None
    return RefusalCode(value) if isinstance(value, str) and value in REASONS else RefusalCode.OTHER
