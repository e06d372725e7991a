"""What server and clients say to each other where they do not share a process, whatever carries it.

::

    hello    the run's settings, without its data        -> name, base model, what travels (a digest)
    open     nothing; `again`: its data changed           -> examples, its mark of the data, what travels, summary,
                                                            perhaps the start
    gradient nothing                                     -> the first gradient, where the method makes frames of it
    frames   frames                                      -> the new digest
    train    round, the client's last round that counts, its mark, how many are asked; the download -> the upload
    finish   the last download                           -> scores, where the client tells them

In the place of an upload a client may say that its data `changed`, that it has `left` for good, or that it has
lost what the server counts on, and the round of the backup that it `has`. In the place of any answer it sends a
code of `refusals`, never words.

All but the greeting name the run and the client's place among all. Messages of the method itself, in `parts`, are
those of `messages` and are checked there.
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
"""Of [data]: what only a client itself says."""


class _Said:
    """Facts and messages, which the other side may have forgotten, or made up."""

    facts: Mapping[str, Fact]
    parts: Mapping[str, bytes]

    def text(self, name: str) -> str:
        """A fact that is a text; MessageError where it is none."""
        found = self.facts.get(name)
        if not isinstance(found, str):
            raise MessageError(f"'{name}': got {_shown(found)}, expected a text; it is refused")
        return found

    def number(self, name: str) -> int:
        """A fact that is a whole number of at least 0; MessageError where it is none."""
        found = self.facts.get(name)
        if not isinstance(found, int) or found < 0:
            raise MessageError(
                f"'{name}': got {_shown(found)}, expected a whole number of at least 0; it is refused"
            )
        return found

    def real(self, name: str) -> float:
        """A fact that is a number, perhaps NaN; MessageError where it is none."""
        found = self.facts.get(name)
        if not isinstance(found, int | float):
            raise MessageError(f"'{name}': got {_shown(found)}, expected a number; it is refused")
        return float(found)

    def part(self, name: str) -> bytes:
        """A message; MessageError where it is missing."""
        if name not in self.parts:
            raise MessageError(f"'{name}' is missing; what is without it is refused")
        return self.parts[name]


@dataclass(frozen=True)
class Request(_Said):
    """What a client is asked. `parts`: messages by name."""

    kind: str
    facts: Mapping[str, Fact] = field(default_factory=dict)
    parts: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply(_Said):
    """What a client answers. `error`: why it cannot; `lost`: it lacks what the server counts on."""

    facts: Mapping[str, Fact] = field(default_factory=dict)
    parts: Mapping[str, bytes] = field(default_factory=dict)
    error: RefusalCode | None = None
    lost: bool = False


class Channel(Protocol):
    """The way to the clients, each a node with a number."""

    def nodes(self) -> set[int]:
        """Those that can be asked now."""

    def ask(self, requests: Mapping[int, Request], seconds: float) -> dict[int, Reply]:
        """The answers that come in time, by node; a node that broke is not among them."""


def _shown(value: object) -> str:
    """A fact in an error's text: a number as it is, of anything else its type alone, which is nobody's words."""
    return repr(value) if isinstance(value, int | float) else f"'{type(value).__name__}'"


def digest(layout: Layout, start: Vector) -> str:
    """Sixteen hex digits over what travels and where it starts: clients that share a run agree on it."""
    found = hashlib.sha256(write_layout(layout).encode())
    found.update(start.tobytes())
    return found.hexdigest()[:16]


def write_layout(layout: Layout) -> str:
    """Names and shapes as JSON."""
    return json.dumps([[name, list(shape)] for name, shape in layout])


def read_layout(text: str) -> Layout:
    """The inverse; MessageError where it is none."""
    try:
        found = tuple((str(name), tuple(int(size) for size in shape)) for name, shape in json.loads(text))
    except (ValueError, TypeError) as error:
        raise MessageError(f"what travels: got no list of names and shapes ({error}); it is refused") from error
    if any(size < 1 for _, shape in found for size in shape):
        raise MessageError("what travels: got an empty shape; it is refused")
    return found
