"""Inference of membership from updates: was an example trained on by one of the clients behind an observation?

An attacked client's training examples are the members, its test examples the others. In a sum the members are
those of all clients in it: each client's are scored against the sum, and compared with that client's own others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from trifed.attacks.plan import Plan
from trifed.attacks.scores import auc_and_tpr
from trifed.attacks.sealed import clients_of_sum
from trifed.attacks.target import Subset, TargetClient, target_client
from trifed.attacks.views import behind, left_behind, next_rounds, possible_views, view_of
from trifed.federation.client_update import ClientDataset
from trifed.federation.training.batches import seeded
from trifed.methods.packing import Tensors
from trifed.reports.audit.findings import VIEWS, Knows, Membership, Over, View
from trifed.tasks import Encoded

Floats = NDArray[np.float64]
Scores = tuple[Floats, Floats]
"""Scores of members, (n,), and of other examples, (m,)."""
OVER: tuple[Over, ...] = ("round", "mean", "highest", "difference", "departure")
PICKING = 12
"""Purpose of the generators that pick the examples whose membership is inferred."""


@dataclass
class RoundScores:
    """Scores of the attacked clients' examples in each observed round.

    Attributes:
        rounds: By knowledge and view, for each client the scores of each round.
        differences: The same for the change from one round to the next.
        departures: The same for the sum of a round less that of the next one, in which the client is absent.
        clients: By view, the number of clients behind an observation.
        examples: By view, the mean number of examples behind an observation.
    """

    rounds: dict[tuple[Knows, View], dict[int, list[Scores]]] = field(default_factory=dict)
    differences: dict[tuple[Knows, View], dict[int, list[Scores]]] = field(default_factory=dict)
    departures: dict[tuple[Knows, View], dict[int, list[Scores]]] = field(default_factory=dict)
    clients: dict[View, int] = field(default_factory=dict)
    examples: dict[View, float] = field(default_factory=dict)

    def over(self, over: Over, knowledge: Knows, view: View) -> dict[int, Scores]:
        """Return each client's scores over the observed rounds; clients that lack rounds for it are left out."""
        several = {"difference": self.differences, "departure": self.departures}.get(over, self.rounds)
        found = several.get((knowledge, view), {})
        if over in ("round", "difference", "departure"):  # the first round, and the first difference
            return {client: each[0] for client, each in found.items()}
        combine = np.mean if over == "mean" else np.max
        return {
            client: (combine([one for one, _ in each], axis=0), combine([other for _, other in each], axis=0))
            for client, each in found.items()
            if len(each) > 1
        }

    @property
    def observed(self) -> int:
        """Number of observed rounds."""
        return max((len(each) for found in self.rounds.values() for each in found.values()), default=0)


def score_rounds(
    target: TargetClient, plan: Plan, progress: Callable[[str], None], views: Sequence[View] = VIEWS
) -> RoundScores:
    """Score members and others of the plan's clients in the target's next rounds, in each view that there is.

    The first attacked round is the one after the target's; the run itself does not change.
    """
    scores, attacked = RoundScores(), list[int]()
    before: dict[tuple[int, View], Tensors] = {}
    earlier: dict[int, Tensors] = {}
    for copy, done, selected in next_rounds(target, plan.observed):
        summed = {c: clients_of_sum(copy, selected, c) for c in selected}
        able = [c for c in selected if summed[c]]
        attacked = attacked or [client.index for client in most_tested(copy.datasets, able, plan)]
        targets = {c: target_client(copy, c, done) for c in attacked if c in able}
        if not targets:
            continue
        possible = [possible_views(site, summed[c]) for c, site in targets.items()]
        shown = [view for view in views if all(view in each for each in possible)]
        needed = {c for view in shown for client in targets for c in behind(view, summed[client], client)}
        every = {c: targets.get(c) or target_client(copy, c, done) for c in sorted(needed)}
        read = {c: examples_read(site) for c, site in every.items()}
        changes = {c: site.update(np.arange(len(site.client.train))) for c, site in every.items()}
        for view in shown:
            sums = [[read[c] for c in behind(view, summed[client], client)] for client in targets]
            scores.clients.setdefault(view, len(sums[0]))
            scores.examples.setdefault(view, float(np.mean([sum(each) for each in sums])))
        for number, (client, attack) in enumerate(targets.items(), 1):
            now = {view: view_of(view, changes, summed[client], client) for view in shown}
            changed = _changed(before, now, client)
            gone = _departures(shown, earlier, changes, summed[client], client)
            parts = [pick_examples(data, plan, client) for data in (attack.client.train, attack.client.test)]
            for knowledge in attack.knowledge_levels():
                progress(
                    f"{attack.config.method.name}: members in round {done + 1}, "
                    f"client {number} of {len(targets)}, knows {knowledge}"
                )
                assumed = attack.assumed_tensors(knowledge)
                every_direction = [*now.values(), *changed.values(), *gone.values()]
                found = [cosines(attack, assumed, every_direction, part) for part in parts]
                pairs = list(zip(*found, strict=True))
                for kept, directions, these in (
                    (scores.rounds, now, pairs[: len(now)]),
                    (scores.differences, changed, pairs[len(now) : len(now) + len(changed)]),
                    (scores.departures, gone, pairs[len(now) + len(changed) :]),
                ):
                    for view, pair in zip(directions, these, strict=True):
                        kept.setdefault((knowledge, view), {}).setdefault(client, []).append(pair)
        earlier = changes
    return scores


def _changed(
    before: dict[tuple[int, View], Tensors], now: Mapping[View, Tensors], client: int
) -> dict[View, Tensors]:
    """Return the change of each view of a client since the round before, if it was seen; keep what is seen now."""
    past = {view: before[client, view] for view in now if (client, view) in before}
    before.update({(client, view): change for view, change in now.items()})
    return {view: {name: now[view][name] - values for name, values in old.items()} for view, old in past.items()}


def _departures(
    shown: Sequence[View],
    earlier: Mapping[int, Tensors],
    changes: Mapping[int, Tensors],
    clients: Sequence[int],
    client: int,
) -> dict[View, Tensors]:
    """Return what each view of a sum shows of a client that is in the earlier round and not in this one."""
    return {
        view: left_behind(view, earlier, changes, clients, client)
        for view in shown
        if view != "single" and {*behind(view, clients, client)} <= earlier.keys() & changes.keys()
    }


def infer_from_updates(
    target: TargetClient, plan: Plan, progress: Callable[[str], None], views: Sequence[View] = VIEWS
) -> Iterator[Membership]:
    """Infer members in each view, from one round, and from several if the plan observes several."""
    scores = score_rounds(target, plan, progress, views)
    for knowledge, view in scores.rounds:
        for over in OVER[: 1 if scores.observed < 2 else None]:
            found = scores.over(over, knowledge, view)
            if found:
                row = pool_scores(target, "update", knowledge, scores.examples[view], list(found.values()))
                several = {
                    "over": over,
                    "rounds": {"round": 1, "difference": 2, "departure": 2}.get(over, scores.observed),
                }
                yield row.model_copy(update={"view": view, "clients": scores.clients[view], **several})


def most_tested(datasets: Sequence[ClientDataset], among: Sequence[int], plan: Plan) -> list[ClientDataset]:
    """Return the clients that have the most examples they did not train on, up to `plan.clients`."""
    able = [c for c in datasets if c.index in among and len(c.train) > 1 and len(c.test) > 1]
    return sorted(able, key=lambda client: -len(client.test))[: plan.clients]


def membership_targets(target: TargetClient, plan: Plan) -> list[TargetClient]:
    """Return the clients of the target's run that have the most examples they did not train on."""
    datasets = target.simulation.datasets
    most = most_tested(datasets, [client.index for client in datasets], plan)
    return [target_client(target.simulation, client.index, target.round) for client in most]


def examples_read(target: TargetClient) -> int:
    """Return the number of different examples that a client reads in a round."""
    size = len(target.client.train)
    return min(size, target.steps(size) * target.config.training_of(target.client.name).batch_size)


def pick_examples(data: Encoded, plan: Plan, client: int) -> Subset:
    """Pick up to `plan.members` examples at random."""
    rng = seeded(plan.seed, PICKING, client)
    return Subset(data, np.sort(rng.choice(len(data), min(len(data), plan.members), replace=False)))


def cosines(
    target: TargetClient, assumed: Mapping[str, torch.Tensor], observed: Sequence[Tensors], data: Encoded
) -> list[Floats]:
    """Return the cosine between each example's own gradient and each observation, (n,) for each observation.

    The score of a member is higher, because its gradient is a part of what is observed (after Li et al.,
    "Effective passive membership inference attacks in federated learning", 2022, arXiv 2111.08390: gradients of
    examples of a large model are nearly orthogonal).
    """
    shared_model = target.shared_model
    shared_model.load(dict(assumed))
    shared_model.model.eval()
    sent = [[name for name in seen if np.any(seen[name])] for seen in observed]
    flat = [np.concatenate([seen[n].ravel() for n in names]) for seen, names in zip(observed, sent, strict=True)]
    directions = [torch.from_numpy(values).to(shared_model.device) for values in flat]
    params = {name: shared_model.parameters[name] for names in sent for name in names}
    scores = np.zeros((len(observed), len(data)))
    for row in range(len(data)):
        loss = shared_model.model.loss(data.batch(np.array([row]), shared_model.device))
        found = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
        parts = dict(zip(params, found, strict=True))
        for number, (names, direction) in enumerate(zip(sent, directions, strict=True)):
            gradient = torch.cat([parts[name].flatten() for name in names])
            scores[number, row] = float(torch.cosine_similarity(gradient, direction, dim=0))
    return list(scores)


def pool_scores(
    target: TargetClient, source: str, knowledge: str, examples: float, scores: Sequence[Sequence[Floats]]
) -> Membership:
    """Pool the scores of several clients, each client's standardised, and measure how well they separate members.

    Args:
        target: One of the clients.
        source: "update" or "summary".
        knowledge: What the attacker knows of the adapter.
        examples: How many examples the observation stands for, mean over the clients.
        scores: For each client the scores of members and of other examples, (n,) and (m,).
    """
    standardised = []
    for parts in scores:
        both = np.concatenate(parts)
        standardised.append([(part - both.mean()) / (both.std() or 1.0) for part in parts])
    members, others = (np.concatenate(parts) for parts in zip(*standardised, strict=True))
    auc, tpr = auc_and_tpr(members, others)
    return Membership.model_validate(
        {
            "method": target.config.method.name, "source": source, "knows": knowledge,
            "sees": "update" if source == "update" else None, "examples": examples,
            "members": len(members), "others": len(others), "auc": auc, "tpr": tpr,
        }
    )  # fmt: skip
