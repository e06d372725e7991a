"""Requests and replies between the server and clients at sites, independent of how they are transported.

::

    hello    the run's settings, without its data, and   -> name, base model, what travels (a digest), hash of the
             a hash of the code of its method               code of the method
    open     nothing; `again`: its data changed           -> examples, its mark of the data, what travels, summary,
                                                            perhaps the start
    gradient nothing                                     -> the first gradient, where the method makes frames of it
    frames   frames                                      -> the new digest
    train    round, the client's last round that counts, its mark, how many are asked; the download -> the upload
    finish   the last download                           -> scores, where the client tells them

Instead of an upload a client may report that its data `changed`, that it has `left` for good, or that its state
is lost, with the round of the backup that it `has`. Instead of any reply it may send a code, never text.

Every request but the greeting names the run and the client's index (`place`). The method's messages, in `parts`,
are those of `federation.messages` and are checked there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from trifed.common.errors import MessageError
from trifed.deployment.refusals import RefusalCode
from trifed.methods.packing import Layout, Vector

Fact = str | int | float
LEFT_AT_HOME = {"source", "test", "clients", "hub_split", "hub_subset"}
"""Settings of [data] that only a client itself gives."""


class _Message:
    """Facts and parts, which the other side may have left out or made up."""

    facts: Mapping[str, Fact]
    parts: Mapping[str, bytes]

    def text(self, name: str) -> str:
        """Return a fact that is a text; MessageError if it is not."""
        found = self.facts.get(name)
        if not isinstance(found, str):
            raise MessageError(f"'{name}': got {_shown(found)}, expected a text; it is refused")
        return found

    def number(self, name: str) -> int:
        """Return a fact that is a whole number of at least 0; MessageError if it is not."""
        found = self.facts.get(name)
        if not isinstance(found, int) or found < 0:
            raise MessageError(
                f"'{name}': got {_shown(found)}, expected a whole number of at least 0; it is refused"
            )
        return found

    def real(self, name: str) -> float:
        """Return a fact that is a number, perhaps NaN; MessageError if it is not."""
        found = self.facts.get(name)
        if not isinstance(found, int | float):
            raise MessageError(f"'{name}': got {_shown(found)}, expected a number; it is refused")
        return float(found)

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


class Channel(Protocol):
    """A connection to clients, each a node with a number."""

    def nodes(self) -> set[int]:
        """Return the nodes that are connected now."""

    def ask(self, requests: Mapping[int, Request], seconds: float) -> dict[int, Reply]:
        """Send requests by node; return the replies that come within `seconds`."""


def _shown(value: object) -> str:
    """Format a fact for an error: a number as it is, the type of anything else, so that no text is repeated."""
    return repr(value) if isinstance(value, int | float) else f"'{type(value).__name__}'"


def digest(layout: Layout, start: Vector) -> str:
    """Return 16 hex digits over layout and common start, which all clients of a run agree on."""
    return hashlib.sha256(write_layout(layout).encode() + start.tobytes()).hexdigest()[:16]


def write_layout(layout: Layout) -> str:
    """Write a layout as JSON."""
    return json.dumps([[name, list(shape)] for name, shape in layout])


def read_layout(text: str) -> Layout:
    """Read a layout; MessageError if the text is none."""
    try:
        found = tuple((str(name), tuple(int(size) for size in shape)) for name, shape in json.loads(text))
    except (ValueError, TypeError) as error:
        raise MessageError(f"what travels: got no list of names and shapes ({error}); it is refused") from error
    if any(size < 1 for _, shape in found for size in shape):
        raise MessageError("what travels: got an empty shape; it is refused")
    return found
