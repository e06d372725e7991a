"""Requests and replies between the server and clients at sites, independent of how they are transported.

::

    request  content                                        reply
    hello    the run's settings, without its data; a hash   name, base model, digest of layout and start, hash of
             of the code of its method                      the code of the method
    open     whether the start is asked for; `again` if     examples, a mark of the data, layout, summary, perhaps
             the data changed                               the start; number of features, if summaries are raw
    gradient nothing                                        the first gradient, for methods with frames
    frames   the frames                                     the new digest
    train    the round, the last round that counts, the     the upload; `back_to`: the round to which the client
             mark, the number of clients; the download      has gone back for it. In a sealed run not the
                                                            upload but `ready`, a signed key of this round
    ready    sealed runs, before round 1: the same facts    `ready`, for the sum of label holders
    send     sealed runs: the terms of a sum                the masked `sum`
    finish   the last download                              scores, if the client shares them

Instead of an upload a client may report that its data `changed`, that it has `left` for good, or that its state
is lost, with the round of the backup that it `has`, and a mark of this new `beginning` that later requests repeat.
Instead of any reply it may send a code of a closed list, never text: an error's text can hold labels, names and
paths, so a site writes it to its own log. The server has its own sentence for every code.

Every request but the greeting names the run and the client's index (`place`). The method's messages, in `parts`,
are those of `federation.messages` and are checked there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from trifed.common.errors import (
    BudgetError,
    ConfigError,
    DataError,
    GuardError,
    MessageError,
    ModelError,
    RunError,
)
from trifed.federation.messages import LARGEST, MOST_NUMBER, Rejected

if TYPE_CHECKING:
    from trifed.methods.packing import Layout, Vector

MOST_TENSORS, MOST_AXES, MOST_VALUES, MOST_NAME = 20_000, 8, 2**36, 500
"""Limits of a layout: tensors, axes and characters of the name of one, values of all together."""
MOST_TEXT = 4 * 1024 * 1024
"""Characters of the longest texts: a layout, and a run's settings."""
Fact = str | int | float
AT_THE_SERVER = {
    "deployment", "baselines", "baseline_rates", "metrics", "metric", "generated_answers", "keep", "patience",
    "trackers", "keep_checkpoints", "client_settings",
}  # fmt: skip
"""Settings that a server does not send, and that a site does not take from one."""
LEFT_AT_HOME = {"source", "test", "clients", "hub_split", "hub_subset", "sheet"}
"""Settings of [data] that only a client itself gives."""
AT_THE_CLIENTS = "(each client's own)"
"""`data.source` of a run between sites at the server, which has no data."""

RefusalCode = Literal[
    # sent by a site
    "bad_request",
    "not_asked_for",
    "not_sealed",
    "no_site_keys",
    "unknown_site",
    "other_holders",
    "sum_sent",
    "not_ready",
    "wrong_phase",
    "wrong_run",
    "left",
    "data_changed",
    "data_unusable",
    "model_unusable",
    "base_mismatch",
    "settings_unusable",
    "privacy_limit",
    "method_unknown",
    "method_not_allowed",
    "method_mismatch",
    "gradients_off",
    "counts_off",
    "raw_summaries_off",
    "limits_unusable",
    "guard",
    "too_few_clients",
    "no_going_back",
    "columns_not_allowed",
    "labels_not_allowed",
    "storage",
    "unreachable",
    "no_settings",
    "other",
    # found by the server
    "lost",
    "no_answer",
    "not_connected",
    "bad_reply",
    "starts_elsewhere",
    "other_base",
    "bad_name",
    "name_taken",
    "other_key",
    "too_late",
    "other_sites",
    # found by the server, or by a site
    "too_few_for_a_sum",
    "sum_incomplete",
    "sum_unreadable",
]
"""Reasons for a request that is not answered or a reply that is not accepted."""

REASONS: dict[RefusalCode, str] = {
    "bad_request": "it could not read the request; install the same version of trifed at server and sites",
    "not_asked_for": "the run's method or its [privacy] does not ask for such a request",
    "not_sealed": "it takes part only in sealed runs (sealed_only in its node.toml); set sealing.on = true",
    "no_site_keys": "it has no list of the sites' keys, or is not in it: run `trifed flower trust` there",
    "unknown_site": "a site of the sum is not in its list of keys, or has not signed its key of the round",
    "other_holders": "it was sent other label holders than the sites have signed, and sends no part",
    "sum_sent": "it has already sent a part for this round, or the same numbers with other sites, and does not "
    "send them again",
    "not_ready": "it no longer has its key of this round: its process ended, or it got another request in between",
    "wrong_phase": "the request does not fit the phase of the run at this site",
    "wrong_run": "it has stored a run of this name with other settings",
    "left": "it has left for good",
    "data_changed": "its data changed; it sends its facts again before the next round",
    "data_unusable": "its data cannot be used",
    "model_unusable": "it cannot use the base model",
    "base_mismatch": "its base model is not the one that it accepts",
    "settings_unusable": "the run's settings, with its own, cannot be used",
    "privacy_limit": "the run asks for more than its privacy limits allow",
    "method_unknown": "the run's method is not installed there",
    "method_not_allowed": "its `methods` do not list the run's method",
    "method_mismatch": "its code of the run's method is not the server's; install the same version",
    "gradients_off": "it sends no exact gradients, and the run's method asks for one",
    "counts_off": "it does not report its number of examples, and the run's method asks for that",
    "raw_summaries_off": "it sends no summaries of raw features, and the run's method asks for one",
    "limits_unusable": "its others_at_most or worse_by cannot be used with the run's method",
    "guard": "its message could reveal single examples",
    "too_few_clients": "the round has fewer clients than its at_least asks for",
    "no_going_back": "it has done this round, and goes back only with may_go_back = true in its node.toml",
    "columns_not_allowed": "the run reads columns that it does not allow",
    "labels_not_allowed": "the run names other labels than it allows",
    "storage": "it cannot read or write its files",
    "unreachable": "its process with the model ended or cannot be reached",
    "no_settings": "its node was started without --node-config 'node=\"/…/node.toml\"'",
    "other": "it could not answer",
    "lost": "it does not have the state that the server expects; it continues from its own, or from the start",
    "no_answer": "it did not answer in time",
    "not_connected": "its node is not connected",
    "bad_reply": "its answer does not have the requested form",
    "starts_elsewhere": "its initial values are not the server's; install the same version of trifed everywhere",
    "other_base": "its base model or its initial values are not those of the others",
    "bad_name": "its name is not made of letters, digits, '.', '_' and '-'",
    "name_taken": "another client has the same name; give each its own",
    "other_key": "its name belongs to another key; if the site has a new key, set deployment.bound = false",
    "too_late": "it connected after this run began, and deployment.late is false",
    "other_sites": "it has another list of the sites' keys than most sites; store the newest list at every site "
    "with `trifed flower trust`",
    "too_few_for_a_sum": "there are too few sites for a sum: see sealing.at_least, at_least in the sites' "
    "node.toml, and the fixed minimum of 3",
    "sum_incomplete": "another site of its sum did not send, so the sum cannot be read; nothing of it counts",
    "sum_unreadable": "the sum is out of range: a site sent wrong numbers, or sites received different values",
}
"""The server's sentence for each code; the site's own log has the details."""
AT_SITE = {
    "bad_request", "wrong_phase", "wrong_run", "data_unusable", "model_unusable", "base_mismatch",
    "settings_unusable", "privacy_limit", "guard", "columns_not_allowed", "labels_not_allowed", "storage",
    "unreachable", "other", "unknown_site", "other_holders", "no_site_keys", "sum_sent", "not_ready",
}  # fmt: skip
"""Codes whose details are only in the site's log."""

CODES: dict[type[Exception], RefusalCode] = {
    GuardError: "guard",
    BudgetError: "privacy_limit",
    MessageError: "bad_request",
    DataError: "data_unusable",
    ModelError: "model_unusable",
    ConfigError: "settings_unusable",
    OSError: "storage",
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
    return next((code for kind, code in CODES.items() if isinstance(error, kind)), "other")


def read_code(value: object) -> RefusalCode | None:
    """Read a received code: None for an empty one, `other` for an unknown one."""
    return next((code for code in REASONS if code == value), "other") if value else None


class _Message:
    """Facts and parts, which the other side may have left out or made up."""

    facts: Mapping[str, Fact]
    parts: Mapping[str, bytes]

    def text(self, name: str, most: int = 200) -> str:
        """Return a fact that is a text of at most `most` characters; MessageError if it is not."""
        found = self.facts.get(name)
        if not isinstance(found, str) or len(found) > most:
            raise self._refused(name, f"a text of at most {most} characters")
        return found

    def number(self, name: str, most: int = MOST_NUMBER) -> int:
        """Return a fact that is a whole number from 0 to `most`; MessageError if it is not."""
        found = self.facts.get(name)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= most:
            raise self._refused(name, f"a whole number from 0 to {most}")
        return found

    def real(self, name: str, finite: bool = True) -> float:
        """Return a fact that is a number of a sane size, or NaN if it need not be `finite`; else MessageError."""
        found = self.facts.get(name)
        number = found if isinstance(found, int | float) and not isinstance(found, bool) else math.inf
        if not abs(number) <= LARGEST and (finite or number == number):
            raise self._refused(name, f"a number of at most {LARGEST:g}")
        return float(number)

    def _refused(self, name: str, expected: str) -> MessageError:
        """Return the error for a fact; it shows a short number, or the type of anything else, but no text."""
        found = self.facts.get(name)
        short = isinstance(found, float) or (isinstance(found, int) and abs(found) < 10**18)
        shown = repr(found) if short else f"'{type(found).__name__}'"
        return MessageError(f"'{name}': got {shown}, expected {expected}; it is refused")

    def part(self, name: str) -> bytes:
        """Return a part; MessageError if it is missing."""
        if name not in self.parts:
            raise MessageError(f"'{name}' is missing; the message is refused")
        return self.parts[name]


@dataclass(frozen=True)
class Request(_Message):
    """A request to a client; `parts` are encoded messages by name."""

    kind: str
    facts: Mapping[str, Fact] = field(default_factory=dict)
    parts: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply(_Message):
    """A client's reply; `error` says why there is no answer, `lost` that the client's state is lost."""

    facts: Mapping[str, Fact] = field(default_factory=dict)
    parts: Mapping[str, bytes] = field(default_factory=dict)
    error: RefusalCode | None = None
    lost: bool = False

    def written_facts(self) -> dict[str, Fact]:
        """Return all that is not in `parts`, as facts of a message."""
        return {**self.facts, "lost": int(self.lost), "error": self.error or ""}

    @classmethod
    def read(cls, facts: Mapping[str, Any], parts: Mapping[str, bytes]) -> Reply:
        """Return the reply in a message whose facts are those of `written_facts`."""
        rest = {"lost": 0, "error": "", **facts}
        lost, error = bool(rest.pop("lost")), read_code(rest.pop("error"))
        return cls(rest, parts, error, lost)


Missing = Callable[[Collection[int]], None]
"""Takes the nodes that have not replied yet; called about every second."""


class Channel(Protocol):
    """A connection to clients, each a node with a number."""

    def nodes(self) -> set[int]:
        """Return the nodes that are connected now."""

    def ask(self, requests: Mapping[int, Request], seconds: float, missing: Missing) -> dict[int, Reply]:
        """Send requests by node; return the replies that come within `seconds`, and report who is `missing`."""


def digest(layout: Layout, start: Vector) -> str:
    """Return 16 hex digits over layout and common start, which all clients of a run agree on."""
    return hashlib.sha256(write_layout(layout).encode() + start.tobytes()).hexdigest()[:16]


def write_layout(layout: Layout) -> str:
    """Write a layout as JSON."""
    return json.dumps([[name, list(shape)] for name, shape in layout])


def read_layout(text: str) -> Layout:
    """Read a layout.

    Raises:
        MessageError: The text is none, or larger than that of any model.
    """
    try:
        found = tuple((_name(name), tuple(_size(size) for size in shape)) for name, shape in read_json(text))
    except (ValueError, TypeError) as error:
        raise MessageError(f"layout: got no list of names and shapes ({error}); it is refused") from error
    sizes = {name: math.prod(shape) for name, shape in found if len(shape) <= MOST_AXES}
    if not len(sizes) == len(found) <= MOST_TENSORS or sum(sizes.values()) > MOST_VALUES:
        raise MessageError(
            f"layout: got {len(found)} tensors, expected at most {MOST_TENSORS} of different names, with up "
            f"to {MOST_AXES} axes each and {MOST_VALUES} values together; it is refused"
        )
    return found


def read_json(text: str | bytes) -> Any:
    """Read JSON; ValueError for anything else, also for a text that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > MOST_NAME:
        raise TypeError(f"a name is a text of at most {MOST_NAME} characters")
    return value


def _size(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_NUMBER:
        raise TypeError(f"a size is a whole number from 1 to {MOST_NUMBER}")
    return value
