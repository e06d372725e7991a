"""A client's life in a run that is under way: it comes late, its data change, it leaves for good."""

from __future__ import annotations

from collections.abc import Callable

from trifed.config import RunConfig
from trifed.errors import MessageError, RunError
from trifed.federation.server import Server
from trifed.federation.store import RunFolder
from trifed.sites.opening import send_frames, tell_summary
from trifed.sites.protocol import Reply
from trifed.sites.records import Member, Records
from trifed.sites.roll import Roll


class Life:
    """What happens to clients between two rounds.

    `changed`, `gone`: places of clients that said in the last round that their data changed, or that they leave.
    """

    def __init__(
        self, server: Server, members: list[Member], roll: Roll, records: Records, tell: Callable[..., None]
    ) -> None:
        self.server = server
        self.members = members
        self.roll = roll
        self.records = records
        self.tell = tell
        self.changed: set[int] = set()
        self.gone: set[int] = set()

    def note(self, place: int, reply: Reply) -> None:
        """Take note of what a client says of itself in the place of what it was asked for."""
        if reply.facts.get("left"):
            self.gone.add(place)
        elif reply.facts.get("changed"):
            self.changed.add(place)
        elif reply.lost:  # it may have a backup of an earlier round
            has = reply.facts.get("has", 0)
            self.members[place].counts = has if isinstance(has, int) and 0 < has < 2**31 else 0
            self.server.forget(place)

    def go_on(self, number: int) -> bool:
        """All that is to be done before round `number`; are there other clients or summaries now than before?"""
        left = self.take_leave(number)
        changed = [place for place in sorted(self.changed) if self._open_again(number, place)]
        self.changed = set()
        late = [name for name in self.roll.look() if self._let_in(number, name)]
        moved = [member for member in self.members if self.roll.bound[member.name] != member.node]
        for member in moved:  # with another key, where the run allows that
            member.node = self.roll.bound[member.name]
        self._resend_frames(number)
        return bool(left or changed or late or moved)

    def take_leave(self, number: int) -> bool:
        """Withdraw those that leave; are there any?"""
        names = names_of(self.members)
        asked = {names.index(name) for name in self.records.leaving() if name in names}
        leaving = [place for place in sorted(self.gone | asked) if not self.members[place].left]
        for place in leaving:
            withdraw(self.server, self.members, place)
            self.roll.gone.add(names[place])
            self.tell(event="withdrawn", round=number, client=names[place])
        self.gone = set()
        return bool(leaving)

    def _open_again(self, number: int, place: int) -> bool:
        member = self.members[place]
        reply = self.roll.ask("open", {place: {"start": 0, "again": 1}}).get(place)
        examples = self._take_in(place, reply)
        if isinstance(examples, str):
            self.tell(event="left out", round=number, client=member.name, reason=examples)
            return False
        member.examples = examples
        self._tell_of(number, "changed", place, reply)
        return True

    def _let_in(self, number: int, name: str) -> bool:
        place = self.roll.enrol(name)
        reply = self.roll.ask("open", {place: {"start": 0}}).get(place)
        examples = self._take_in(place, reply)
        if isinstance(examples, str):
            self.roll.dismiss(name, f"{name} could not be opened: {examples}")
            return False
        self.members.append(Member(name, self.roll.bound[name], examples))
        self._tell_of(number, "came late", place, reply)
        return True

    def _take_in(self, place: int, reply: Reply | None) -> int | str:
        """How many examples a client has that was opened, once the server has what it told; else what is wrong."""
        reason = self.roll.reason_against(reply)
        if reply is None or reason is not None:
            return reason or ""
        try:
            examples = reply.number("examples")
            summary = reply.part("summary") if self.server.terms.method.summarise else None
            self.server.admit(place, summary)
        except MessageError as error:
            return str(error)
        return examples

    def _tell_of(self, number: int, event: str, place: int, reply: Reply | None) -> None:
        name = self.members[place].name
        self.tell(event=event, round=number, client=name, examples=self.members[place].examples)
        if reply is not None and "summary" in reply.parts:
            tell_summary(self.tell, name, reply.parts["summary"])

    def _resend_frames(self, number: int) -> None:
        """To whoever has none: who came late, or lost its disk."""
        without = [place for place, member in enumerate(self.members) if not member.counts and not member.left]
        if number > 1 and without and self.server.terms.method.frames:
            send_frames(self.server, self.roll, without, self.records.folder, self.tell)


def names_of(members: list[Member]) -> list[str]:
    """By place."""
    return [member.name for member in members]


def withdraw(server: Server, members: list[Member], place: int) -> None:
    """Delete what is a client's own, and ask it for nothing more."""
    server.withdraw(place)
    members[place].left = True
    members[place].examples = members[place].counts = 0


def withdraw_from(folder: RunFolder, config: RunConfig, name: str) -> bool:
    """Withdraw a client from a run's folder: at once, or, False, by whoever leads the run before its next round.

    Raises:
        RunError: no run between sites has begun there, or it has no such client.
    """
    records = Records(folder)
    there = names_of([member for member in records.members if not member.left])
    if name not in there:
        known = ", ".join(there) or "none: no run between sites has begun there"
        raise RunError(f"{folder.path}: no client '{name}'; its clients are {known}")
    if records.busy():
        records.leave_next(name)
        return False
    with records.held():
        done, server, members = records.load(config)
        withdraw(server, members, names_of(members).index(name))
        folder.append({"event": "withdrawn", "round": done + 1, "client": name})
        records.keep(members)
        records.save(done, server, members)
    return True
