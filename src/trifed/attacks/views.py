"""Views of a round: an observation made from the uploads of the clients that take part in it.

`single` is one client's upload, which the server of an open run sees. `sum` is the mean over the clients of a
sum, all that the server of a sealed run sees. `others` is the same without the attacker's own part: a site that
receives the sum can take out what it has sent itself. `colluding` is what is left if several sites do so together,
at most all but two: the seal promises no more. `left_behind` is for the sums before and after a client leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from trifed.attacks.plan import Plan
from trifed.attacks.sealed import clients_of_sum
from trifed.attacks.target import (
    Rows,
    TargetClient,
    UnevaluatedSimulation,
    draw_batches,
    target_client,
    without_guards,
)
from trifed.federation.client_update import ClientDataset
from trifed.federation.preparation import quiet
from trifed.federation.round import FederatedRun
from trifed.federation.run_folder import SHARED_PROJECTIONS, RunFolder
from trifed.federation.transport import Opened
from trifed.methods.packing import Tensors
from trifed.reports.audit.findings import VIEWS, Sees, View
from trifed.tasks import Encoded
from trifed.tasks.image_classification import EncodedImages
from trifed.tasks.tokens import EncodedTokens

FEWEST = 2
"""Fewest clients of a sum that is attacked: with one the sum is its upload."""
SUMS: tuple[View, ...] = ("sum", "others")
"""Sums that somebody has without others' help, from which examples are reconstructed too."""


def attacker_of(clients: Sequence[int], target: int) -> int:
    """Return the site that attacks `target` from within a sum: the next client in the list."""
    return clients[(clients.index(target) + 1) % len(clients)]


def colluding_against(clients: Sequence[int], target: int, count: int | None = None) -> list[int]:
    """Return the sites that work together against `target`: those that follow it in the list.

    Args:
        clients: The clients of the sum; `target` is one of them.
        target: The attacked client.
        count: How many they are, at most all but two of the sum; None for so many.
    """
    place, most = clients.index(target), max(0, len(clients) - FEWEST)
    turned = [*clients[place + 1 :], *clients[:place]]
    return turned[: most if count is None else min(count, most)]


def behind(view: View, clients: Sequence[int], target: int) -> list[int]:
    """Return the clients whose uploads make a view of `target`.

    Args:
        view: The view.
        clients: The clients of the sum; `target` is one of them.
        target: The attacked client.
    """
    if view == "single":
        return [target]
    if view == "colluding":
        out = colluding_against(clients, target)
    else:
        out = [] if view == "sum" else [attacker_of(clients, target)]
    return [client for client in clients if client not in out]


def mean_change(changes: Sequence[Tensors]) -> Tensors:
    """Return the mean of several clients' changes by name; of one client, exactly that client's."""
    if len(changes) == 1:
        return changes[0]
    return {name: np.mean([change[name] for change in changes], axis=0) for name in changes[0]}


def view_of(view: View, changes: Mapping[int, Tensors], clients: Sequence[int], target: int) -> Tensors:
    """Return what an attacker with a view of `target` observes, from the changes of a round by client."""
    return mean_change([changes[client] for client in behind(view, clients, target)])


def left_behind(
    view: View, before: Mapping[int, Tensors], after: Mapping[int, Tensors], clients: Sequence[int], target: int
) -> Tensors:
    """Return the sum that an attacker has of one round, less that of the next, which lacks `target`.

    If all others sent the same numbers in both, it is the part of `target`, exactly. In a sealed run a client
    never sends the same numbers with other clients, so theirs are changes of another round, and hide it.

    Args:
        view: A view of a sum.
        before: The changes of a round, by client.
        after: Those of the next round.
        clients: The clients of the first sum; the second one has all of them but `target`.
        target: The client that has left.
    """
    seen = behind(view, clients, target)
    first, second = [before[client] for client in seen], [after[client] for client in seen if client != target]
    return {
        name: np.sum([each[name] for each in first], axis=0) - np.sum([each[name] for each in second], axis=0)
        for name in first[0]
    }


def possible_views(target: TargetClient, clients: Sequence[int]) -> tuple[View, ...]:
    """Return the views of a round in which these clients take part.

    Sums are of methods whose clients send all that they train: with factors of their own, sums say little.
    """
    summed = len(clients) >= FEWEST and target.client.index in clients
    if not summed or target.knowledge_levels() != ["factors"]:
        return VIEWS[:1]
    return VIEWS if len(clients) > FEWEST + 1 else VIEWS[:3]  # of three, all but two are one site


class ContinuedSimulation(UnevaluatedSimulation):
    """A copy of a run that continues from its state after round `done`; the run itself does not change."""

    done: int

    def open(self) -> Opened:
        """Continue from the state that was loaded."""
        return Opened(self.server, resumed=self.done)


def next_rounds(target: TargetClient, rounds: int) -> Iterator[tuple[ContinuedSimulation, int, list[int]]]:
    """Yield a copy of the target's run before each of its next rounds, with its last round and who is selected.

    The copy continues when the next one is asked for, so look at it before.
    """
    run, config = target.simulation, without_guards(target.config)
    with TemporaryDirectory(prefix="trifed-audit-") as scratch:
        folder = RunFolder(Path(scratch))
        copy = ContinuedSimulation(config, run.data, run.datasets, run.shared_model, folder, quiet)
        if run.server.shared_projections:
            tensors = {name: torch.from_numpy(values) for name, values in run.server.shared_projections.items()}
            folder.write_tensors(SHARED_PROJECTIONS, tensors, {})
        copy.restore([client.state for client in run.clients], run.server.state_dict())
        copy.records, copy.done = [replace(record) for record in run.records], target.round
        going = FederatedRun(config, copy, folder, lambda event: None)
        going.begin()
        for number in range(target.round + 1, target.round + rounds + 1):
            yield copy, number - 1, going.select(number)
            if number < target.round + rounds:
                going.round(number)


def clients_of_round(target: TargetClient) -> list[int]:
    """Return the clients whose updates are averaged with the target's in its next round."""
    for copy, _, selected in next_rounds(target, 1):
        return clients_of_sum(copy, selected, target.client.index)
    return []


@dataclass(frozen=True)
class SummedTarget(TargetClient):
    """Several clients of a run, observed by their sum alone; the first one stands for what is common to all.

    Attributes:
        parts: The clients.
        seen: Observations of single clients by client, kind and rows, so that two views share them.
    """

    parts: Sequence[TargetClient] = ()
    seen: dict[tuple[int, Sees, bytes], Tensors] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of clients in the sum."""
        return len(self.parts)

    @cached_property
    def client(self) -> ClientDataset:
        """The examples of all of them, as one client's."""
        return replace(self.parts[0].client, train=joined([part.client.train for part in self.parts]))

    @property
    def others(self) -> list[ClientDataset]:
        """Examples that nobody trains on, which stand for public knowledge of such data."""
        return [replace(client, train=client.test) for client in self.simulation.datasets]

    def batches(self, plan: Plan) -> dict[int, list[Rows]]:
        """Draw a plan's batches: of each size as many examples of every client."""
        drawn = [draw_batches(plan, len(part.client.train)) for part in self.parts]
        sizes = [size for size in plan.batches if all(size in batches for batches in drawn)]
        starts = self._starts()
        return {
            size: [
                np.concatenate(
                    [batches[size][trial] + start for batches, start in zip(drawn, starts, strict=True)]
                )
                for trial in range(plan.trials)
            ]
            for size in sizes
        }

    def observe(self, observation: Sees, rows: Rows) -> Tensors:
        """Return the mean of what these clients send, each for its own ones of the rows."""
        found, starts = [], self._starts()
        for part, start in zip(self.parts, starts, strict=True):
            own = rows[(rows >= start) & (rows < start + len(part.client.train))] - start
            key = (part.client.index, observation, own.tobytes())
            if key not in self.seen:
                self.seen[key] = part.observe(observation, own)
            found.append(self.seen[key])
        return mean_change(found)

    def _starts(self) -> list[int]:
        """Return the first row of each client."""
        return [0, *np.cumsum([len(part.client.train) for part in self.parts])[:-1].tolist()]


def summed_targets(target: TargetClient, clients: Sequence[int]) -> Iterator[SummedTarget]:
    """Yield the sums that a server and a site have, of the clients of the target's next round."""
    parts = {client: target_client(target.simulation, client, target.round) for client in clients}
    common = {item.name: getattr(target, item.name) for item in fields(TargetClient)}
    del common["view"]
    seen: dict[tuple[int, Sees, bytes], Tensors] = {}
    for view in SUMS:
        summed = [parts[client] for client in behind(view, clients, target.client.index)]
        yield SummedTarget(**common, parts=summed, view=view, seen=seen)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Return the examples of several clients as one.

    Raises:
        TypeError: They are neither texts nor images, which are all that an audit attacks.
    """
    labels = np.concatenate([part.labels for part in parts])
    texts = [part for part in parts if isinstance(part, EncodedTokens)]
    images = [part for part in parts if isinstance(part, EncodedImages)]
    if len(texts) == len(parts):
        more = {name: [row for part in texts for row in part.more[name]] for name in texts[0].more}
        return replace(texts[0], ids=[row for part in texts for row in part.ids], labels=labels, more=more)
    if len(images) == len(parts):
        return replace(images[0], pixels=np.concatenate([part.pixels for part in images]), labels=labels)
    raise TypeError(f"got {type(parts[0]).__name__}, expected EncodedTokens or EncodedImages")
