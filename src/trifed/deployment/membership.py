"""A client's life in a run that is under way: it comes late, its data change, it leaves for good."""

from __future__ import annotations

from collections.abc import Callable

from trifed.common.errors import MessageError, RunError
from trifed.config.run import RunConfig
from trifed.deployment.checkpoint import ClientRecord, ServerCheckpoint
from trifed.deployment.client_manager import ClientManager
from trifed.deployment.handshake import member_of, send_shared_projections, tell_summary
from trifed.deployment.protocol import Reply
from trifed.deployment.refusals import Refusal, RefusalCode
from trifed.federation.run_folder import RunFolder
from trifed.federation.server import Server


class Membership:
    """What happens to clients between two rounds.

    `unknown`, `gone`: places of clients that said in the last round that their data are not those that the server
    knows, or that they leave.
    """

    def __init__(
        self,
        server: Server,
        members: list[ClientRecord],
        client_manager: ClientManager,
        checkpoint: ServerCheckpoint,
        tell: Callable[..., None],
    ) -> None:
        self.server = server
        self.members = members
        self.client_manager = client_manager
        self.checkpoint = checkpoint
        self.tell = tell
        self.unknown: set[int] = set()
        self.gone: set[int] = set()

    def note(self, place: int, reply: Reply) -> None:
        """Take note of what a client says of itself in the place of what it was asked for."""
        if reply.facts.get("left"):
            self.gone.add(place)
        elif reply.facts.get("changed"):
            self.unknown.add(place)
        elif reply.lost:  # it may have a backup of an earlier round
            has = reply.facts.get("has", 0)
            if "has" not in reply.facts:  # all is lost, and what it told of its data
                self.unknown.add(place)
            self.members[place].counts = has if isinstance(has, int) and 0 < has < 2**31 else 0
            self.server.forget(place)

    def go_on(self, number: int) -> bool:
        """All that is to be done before round `number`; are there other clients or summaries now than before?"""
        left = self.take_leave(number)
        again = [place for place in sorted(self.unknown) if self._open_again(number, place)]
        self.unknown = set()
        late = [name for name in self.client_manager.look() if self._let_in(number, name)]
        moved = [member for member in self.members if self.client_manager.bound[member.name] != member.node]
        for member in moved:  # with another key, where the run allows that
            member.node = self.client_manager.bound[member.name]
        self._resend_shared_projections(number)
        return bool(left or again or late or moved)

    def take_leave(self, number: int) -> bool:
        """Withdraw those that leave; are there any?"""
        names = names_of(self.members)
        asked = {names.index(name) for name in self.checkpoint.leaving() if name in names}
        leaving = [place for place in sorted(self.gone | asked) if not self.members[place].left]
        for place in leaving:
            withdraw(self.server, self.members, place)
            self.client_manager.gone.add(names[place])
            self.tell(event="withdrawn", round=number, client=names[place])
        self.gone = set()
        return bool(leaving)

    def _open_again(self, number: int, place: int) -> bool:
        old = self.members[place]
        told = self._open(place, old.name, again=1)
        if isinstance(told, Refusal):
            leave_out(self.tell, number, old.name, told)
            return False
        old.examples, old.data = told.examples, told.data
        self._tell_of(number, "opened again", old)
        return True

    def _let_in(self, number: int, name: str) -> bool:
        told = self._open(self.client_manager.enrol(name), name)
        if isinstance(told, Refusal):
            self.client_manager.dismiss(name, told)
            return False
        self.members.append(told)
        self._tell_of(number, "came late", told)
        return True

    def _open(self, place: int, name: str, again: int = 0) -> ClientRecord | Refusal:
        """The client as it says it is, once the server has its summary; else what is wrong."""
        reply = self.client_manager.ask("open", {place: {"start": 0, "again": again}}).get(place)
        refusal = self.client_manager.refusal_of(reply)
        if reply is None or refusal is not None:
            return refusal or Refusal.of(RefusalCode.NO_ANSWER)
        try:
            found = member_of(self.client_manager, name, reply)
            summary = reply.part("summary") if self.server.context.method.summarise else None
            self.server.admit(place, summary)
        except MessageError as error:
            return Refusal(RefusalCode.BAD_REPLY, str(error))
        if summary is not None:
            tell_summary(self.tell, name, summary)
        return found

    def _tell_of(self, number: int, event: str, member: ClientRecord) -> None:
        self.tell(event=event, round=number, client=member.name, examples=member.examples)

    def _resend_shared_projections(self, number: int) -> None:
        """To whoever has none: who came late, or lost its disk."""
        without = [place for place, member in enumerate(self.members) if not member.counts and not member.left]
        if number == 1 or not without or not self.server.context.method.shared_projections:
            return
        told = send_shared_projections(
            self.server, self.client_manager, without, self.checkpoint.folder, self.tell
        )
        for place in without:
            refusal = self.client_manager.refusal_of(told.get(place))
            if refusal is not None:
                leave_out(self.tell, number, self.members[place].name, refusal)


def leave_out(tell: Callable[..., None], number: int, name: str, refusal: Refusal) -> None:
    """Log that a client is left out of a round, and why."""
    tell(event="left out", round=number, client=name, code=refusal.code.value, reason=refusal.reason)


def names_of(members: list[ClientRecord]) -> list[str]:
    """By place."""
    return [member.name for member in members]


def withdraw(server: Server, members: list[ClientRecord], place: int) -> None:
    """Delete what is a client's own, and ask it for nothing more."""
    server.withdraw(place)
    members[place].left = True
    members[place].examples = members[place].counts = 0


def withdraw_from(folder: RunFolder, config: RunConfig, name: str) -> bool:
    """Withdraw a client from a run's folder: at once, or, False, by whoever leads the run before its next round.

    Raises:
        RunError: no run between sites has begun there, or it has no such client.
    """
    checkpoint = ServerCheckpoint(folder)
    there = names_of([member for member in checkpoint.members if not member.left])
    if name not in there:
        known = ", ".join(there) or "none: no run between sites has begun there"
        raise RunError(f"{folder.path}: no client '{name}'; its clients are {known}")
    if checkpoint.busy():
        checkpoint.leave_next(name)
        return False
    with checkpoint.held():
        done, server, members = checkpoint.load(config)
        withdraw(server, members, names_of(members).index(name))
        folder.append({"event": "withdrawn", "round": done + 1, "client": name})
        checkpoint.save(done, server, members)
    return True
