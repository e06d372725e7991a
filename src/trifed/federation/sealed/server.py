"""The server of a sealed run: groups of clients, one reference a group, and sums in place of uploads.

The method's state holds nothing that depends on one client's update alone: for each group the reference and the
steps, for each client its group and which reference it has. All messages of a group's clients are changes against
the group's reference; a client that lacks the last one gets it whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import MessageError
from trifed.federation.base_server import BaseServer
from trifed.federation.compression import Compression, block_starts
from trifed.federation.context import RunContext
from trifed.federation.messages import BAD_REPLY, Header, Rejected, decode
from trifed.federation.sealed.groups import group_of_newcomer, groups_of
from trifed.federation.sealed.numbers import (
    MAGNITUDE_BITS,
    Integers,
    bits_of_count,
    centred,
    first_steps,
    largest_magnitude,
    lengths_of_blocks,
    next_steps,
    unpack_bits,
)
from trifed.federation.sealed.proof import MEMBERS, SIGNED, OpeningProof
from trifed.federation.sealed.rules import SumRules, SumTerms
from trifed.federation.server import Server
from trifed.methods.packing import Vector, select
from trifed.methods.sealed import ALONE
from trifed.similarity import Summary

INCOMPLETE, UNREADABLE, NO_PART = "sum_incomplete", "sum_unreadable", "no_part_before"
"""Codes of a client that is left out: a client of its sum has sent no part, its sum cannot be one of such parts,
and it has itself sent no part when it was asked last."""
OF_CLIENTS = (
    "group", "has", "opening", "changed", "missed", "waits", "proved", "opened_parts", "opened_signatures",
)  # fmt: skip
"""Arrays of the state with a row for each client."""
MOST_WAITS = 8
"""A client that never sends its part is in a list once in 2^8 rounds."""

Wanted = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Name of an array → its type and shape."""


@dataclass(frozen=True)
class SumPart:
    """One client's part of a sum: integers modulo 2^bits, and magnitudes modulo 2^16.

    There are no magnitudes before round 1, and with noise. A signature, with the digest `members` of what it is
    on beside the part, there is before round 1 alone.
    """

    integers: Integers
    magnitudes: Integers
    signature: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(SIGNED, np.uint8))
    members: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(MEMBERS, np.uint8))


@dataclass(frozen=True)
class Lists:
    """The clients of a round's sums.

    Attributes:
        sums: The clients of each sum.
        few: Clients of groups with too few for a sum.
        alone: Clients without a group.
        waiting: Clients that sent no part before, while the others of their group are enough.
    """

    sums: list[list[int]]
    few: list[int]
    alone: list[int]
    waiting: list[int]


class SealedServer(BaseServer):
    """The server of one sealed run.

    Its `state` has the arrays of `methods.sealed.download_of_group`, and beside these `before` and `wanted`,
    (n_groups, n_values): the reference before, and what the present one is a rounded form of; `steps`,
    (n_groups, n_blocks); `holders`, (n_groups, n_labels). For each client, (n_clients,): `opening`, whether it was
    in the sum before round 1; `changed`, whether it was opened again since; `missed`, how many times in a row it
    sent no part; `waits`, the last round of whose lists it is left out for that; `proved`, whether it has had the
    proof of its group's label holders. The proof is in `opened_parts`, (n_clients, n_labels), masked,
    `opened_signatures`, (n_clients, 64), and `opened_members`, (n_groups, 32).
    """

    @property
    def rules(self) -> SumRules:
        """The rules of the run's sums."""
        rules = self.context.sums
        if rules is None:
            raise ValueError("the run is not sealed")
        return rules

    # -- before the first round

    def open(self, summaries: Mapping[int, Summary]) -> None:
        """Begin: with noised summaries if groups follow from them, else with none."""
        super().open(summaries)
        given = self.context.aggregation.groups == "given"
        group = groups_of(self.context, self.summaries, self.clients, self.names, self.rules.at_least)
        n_groups = len(self.context.aggregation.members) if given else int(group.max(initial=ALONE)) + 1
        sent = self.context.compression.layout
        start = np.tile(select(self.start, self.context.exchanged, sent), (n_groups, 1))
        labels, stepped = self.rules.labels(sent), self.rules.stepped(sent)
        steps = np.tile(first_steps(stepped, self.rules.learning_rate), (n_groups, 1))
        self.state = {
            "group": group,
            "has": np.zeros(self.clients, np.int64),
            "opening": np.zeros(self.clients, bool),
            "changed": np.zeros(self.clients, bool),
            "missed": np.zeros(self.clients, np.int64),
            "waits": np.zeros(self.clients, np.int64),
            "sums": np.zeros(n_groups, np.int64),
            "now": start,
            "before": start.copy(),
            "wanted": start.copy(),
            "steps": steps,
            "holders": np.zeros((n_groups, labels), np.int64),
            "proved": np.zeros(self.clients, bool),
            "opened_parts": np.zeros((self.clients, labels), np.uint16),
            "opened_signatures": np.zeros((self.clients, SIGNED), np.uint8),
            "opened_members": np.zeros((n_groups, MEMBERS), np.uint8),
        }

    @property
    def counts_holders(self) -> bool:
        """True if the run begins with a sum of how many clients hold each label."""
        return self.rules.labels(self.context.compression.layout) > 0

    # -- clients that join or leave

    def admit(self, client: int, summary: Summary | None, name: str = "") -> None:
        """Add a client, whose index is the next one, or note that a known one was opened again.

        The group of a known client never changes. Nobody knows which labels it holds now.
        """
        new = client >= self.clients
        super().admit(client, summary, name)
        if not self.state:
            return
        if not new:
            self._set(client, changed=self.state["opening"][client], proved=False)
            return
        groups = self.state["group"].astype(np.int64)
        group = group_of_newcomer(self.context, self.summaries, groups, client, self.names)
        for array in OF_CLIENTS:
            kept = self.state[array]
            self.state[array] = np.concatenate([kept, np.zeros((1, *kept.shape[1:]), kept.dtype)])
        self._set(client, group=group)

    def recall(self, client: int, memory: Mapping[str, Vector]) -> None:
        """Do nothing, because the references are in the state."""

    def forget(self, client: int) -> None:
        """Go back to the common start for a client; the sums that it was part of stay."""
        if self.state:
            self._set(client, has=0)

    # -- rounds

    def download(self, number: int, client: int) -> bytes | None:
        """Return the message that a client begins round `number` with; None if it has its group's reference.

        A client that has the one before gets the change, equal for all, and any other the whole reference.
        """
        values = self.context.method.download(self.state, client)
        if values is None:
            return None
        header, group = self.context.header("download", number, client), int(self.state["group"][client])
        if self.state["has"][client] == self.state["sums"][group] - 1:
            before, wanted = (self.state[name][group].astype(np.float32) for name in ("before", "wanted"))
            return self.context.downloads.encode(header, wanted, before)
        return Compression(self.context.downloads.layout).encode(header, values, values)

    def arrives(self, client: int) -> Vector | None:
        """Return the values that a client has after its next download, (n_values,); None if nothing is sent."""
        return self.context.method.download(self.state, client)

    def lists(self, clients: Sequence[int], number: int = 0) -> Lists:
        """Return which of a round's clients are summed together.

        A client that sent no part before waits, unless there is no sum without it; in `number` 0 nobody waits.
        """
        group, least = self.state["group"], self.rules.at_least
        found = Lists([], [], [client for client in clients if group[client] == ALONE], [])
        for g in range(len(self.state["sums"])):
            members = sorted(client for client in clients if group[client] == g)
            here = [client for client in members if self.state["waits"][client] < number or not number]
            if len(here) >= least:
                found.sums.append(here)
                found.waiting.extend(client for client in members if client not in here)
            else:
                (found.sums.append if len(members) >= least else found.few.extend)(members)
        return found

    def note_parts(self, number: int, sent: Sequence[int], missing: Sequence[int]) -> None:
        """Note which clients have sent their parts; one that has not waits for 1, 2, 4, ... rounds."""
        for client in sent:
            self._set(client, missed=0, waits=0)
        for client in missing:
            missed = int(self.state["missed"][client])
            self._set(client, proved=False, missed=missed + 1, waits=number + 2 ** min(missed, MOST_WAITS))

    def note_few(self, clients: Sequence[int]) -> None:
        """Note that clients without a sum keep what they trained, so each has the reference that it was sent."""
        for client in clients:
            self._set(client, has=self.state["sums"][self.state["group"][client]])

    def terms(self, number: int, clients: Sequence[int]) -> SumTerms:
        """Return the terms of a sum of clients of one group; round 0 is the sum of label holders."""
        if number == 0:
            return SumTerms(clients)
        group, opening = int(self.state["group"][clients[0]]), self.state["opening"].astype(bool)
        members = np.flatnonzero(opening & (self.state["group"] == group) & self.counts_holders)
        changed = [int(client) for client in members if self.state["changed"][client]]
        steps, holders = self.state["steps"][group].astype(np.float16), self.state["holders"][group]
        proof = None if self.state["proved"][list(clients)].all() else self._proof(group, members)
        counts = holders.astype(np.uint16)
        return SumTerms(clients, steps, counts, [int(c) for c in members], changed, proof=proof)

    def _proof(self, group: int, members: NDArray[np.int64]) -> OpeningProof | None:
        """Return the proof of a group's label holders; None if there was no sum of them."""
        if not len(members):
            return None
        parts, signatures = (self.state[f"opened_{name}"][members] for name in ("parts", "signatures"))
        names = [self.names[client] if client < len(self.names) else str(client) for client in members]
        digest = self.state["opened_members"][group].astype(np.uint8)
        return OpeningProof(names, digest, parts.astype(np.uint16), signatures.astype(np.uint8))

    def read_part(self, number: int, client: int, payload: bytes, sum_terms: SumTerms) -> SumPart | Rejected:
        """Check a client's part of a sum, and return it."""
        header = self.context.header("upload", number, client)
        layout, n = self.context.compression.layout, len(sum_terms.clients)
        count = int(lengths_of_blocks(layout).sum()) if number else self.rules.labels(layout)
        bits = self.rules.bits(n, layout) if number else bits_of_count(n)
        wanted: Wanted = {"sum": (np.dtype(np.uint8), (-(-count * bits // 8),))}
        if number and not self.rules.noise:
            wanted["magnitudes"] = (np.dtype(np.uint16), (len(block_starts(layout)),))
        elif not number:
            wanted |= {"signature": (np.dtype(np.uint8), (SIGNED,)), "members": (np.dtype(np.uint8), (MEMBERS,))}
        try:
            arrays = _arrays(payload, header, wanted)
        except MessageError as error:
            return Rejected(BAD_REPLY, str(error))
        integers = unpack_bits(arrays["sum"].astype(np.uint8), count, bits)
        signature = arrays.get("signature", np.zeros(SIGNED)).astype(np.uint8)
        members = arrays.get("members", np.zeros(MEMBERS)).astype(np.uint8)
        return SumPart(integers, arrays.get("magnitudes", np.zeros(0)).astype(np.uint32), signature, members)

    def add(self, number: int, sum_terms: SumTerms, parts: Sequence[SumPart]) -> Rejected | None:
        """Open the sum of all parts, and take it into the group's reference, or its label holders (round 0).

        Returns:
            Why it cannot be the sum of such parts; None if it was taken. A sum that is not taken changes nothing.
        """
        n, group = len(sum_terms.clients), int(self.state["group"][sum_terms.clients[0]])
        layout = self.context.compression.layout
        bits = self.rules.bits(n, layout) if number else bits_of_count(n)
        total = np.sum([part.integers for part in parts], axis=0, dtype=np.int64) % (1 << bits)
        if number == 0:
            if (total > n).any():
                return Rejected(UNREADABLE, f"a label has {int(np.max(total))} holders, of {n} clients")
            if len({part.members.tobytes() for part in parts}) > 1:
                return Rejected(UNREADABLE, "the sites have signed unlike terms, so their masks do not cancel")
            self._set(group, holders=total, opened_members=parts[0].members)
            self._set(
                list(sum_terms.clients),
                opening=True,
                opened_parts=np.stack([part.integers for part in parts]),
                opened_signatures=np.stack([part.signature for part in parts]),
            )
            return None
        levels, most = centred(np.asarray(total, np.uint32), bits), self.rules.most(n, layout)
        if (np.abs(levels) > most).any():
            return Rejected(UNREADABLE, f"a sum of {int(np.abs(levels).max())} levels, and {most} is the most")
        sizes = np.mod(np.sum([part.magnitudes for part in parts], axis=0, dtype=np.int64), 1 << MAGNITUDE_BITS)
        if (sizes > n * largest_magnitude(n)).any():
            return Rejected(UNREADABLE, f"a sum of magnitudes of {sizes.max()}, of {n} clients")
        self._take(group, sum_terms, levels, sizes)
        return None

    def _take(
        self, group: int, sum_terms: SumTerms, levels: NDArray[np.int64], magnitudes: NDArray[np.int64]
    ) -> None:
        """Move a group's reference by the mean of its clients' changes, and set the steps of its next sum."""
        layout, rules, state, n = self.context.compression.layout, self.rules, self.state, len(sum_terms.clients)
        senders = rules.senders(sum_terms, layout)
        change = levels * rules.step_of_each(sum_terms, layout).astype(np.float64)
        mean = np.divide(change, senders, out=np.zeros_like(change), where=senders > 0)
        wanted = (state["wanted"][group].astype(np.float64) + mean).astype(np.float32)
        before = state["now"][group].astype(np.float32)
        stepped = rules.stepped(layout)
        of_blocks = np.add.reduceat(senders, block_starts(stepped)) / lengths_of_blocks(stepped)
        now, sums = self.context.downloads.arrives(wanted, before), int(state["sums"][group])
        self._set(list(sum_terms.clients), has=sums, proved=True)
        first = first_steps(stepped, rules.learning_rate)
        steps = next_steps(sum_terms.steps, magnitudes, of_blocks, n, rules.levels, first)
        self._set(group, now=now, before=before, wanted=wanted, steps=steps, sums=sums + 1)

    def _set(self, place: int | list[int], **values: Any) -> None:
        """Replace rows of the state's arrays; the arrays before stay as they are."""
        changed = {name: self.state[name].copy() for name in values}
        for name, value in values.items():
            changed[name][place] = value
        self.state = {**self.state, **changed}


def make_server(context: RunContext, clients: int, start: Vector, names: Sequence[str] = ()) -> BaseServer:
    """Return the server of a run; the arguments are those of `BaseServer`."""
    kind = Server if context.sums is None else SealedServer
    return kind(context, clients, start, names=list(names))


def _arrays(payload: bytes, header: Header, wanted: Wanted) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a part of a sum; MessageError if they are not the wanted ones."""
    most = sum(dtype.itemsize * math.prod(shape) for dtype, shape in wanted.values())
    arrays = decode(payload, header, wanted, most)[1]
    got = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    if got != dict(wanted):
        raise MessageError(f"{header}: got {got}, expected {dict(wanted)}; it is refused")
    return arrays
