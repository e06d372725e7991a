"""What can hostile clients do to the honest ones, without and with the bounds of `[aggregation]`?

    python benchmarks/security/attacks.py [--methods own-prior fedavg-lora] [--seeds 0] [--rounds 6]

The demo corpus, ten clients of which none, one or three are hostile. Hostile clients train as all others do and
change what they send, or change their data before the run. Reported is the mean test accuracy of the clients that
are honest in every case, beside `local`, the same clients alone. Writes attacks.json beside this file after every
run, and goes on where it was broken off.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from trifed.config.run import RunConfig, make_config
from trifed.config.settings import TrainingSettings
from trifed.data import demo_corpus_path
from trifed.federation.client import Client
from trifed.federation.client_settings import AcceptanceLimits
from trifed.federation.client_update import ClientDataset, RoundTraining, TrainedRound, score, train_rounds
from trifed.federation.events import Event
from trifed.federation.messages import decode_summary, encode_summary
from trifed.federation.preparation import environment, prepare
from trifed.federation.run_folder import RunFolder
from trifed.federation.simulation import Simulation
from trifed.federation.training.shared_model import SharedModel
from trifed.methods.packing import Vector
from trifed.tasks.tokens import EncodedTokens

HERE = Path(__file__).parent
HOSTILE = (9, 4, 6)
"""Indices of the hostile clients, in the order in which they are added."""
VICTIM = 0
"""The honest client whose summary is copied."""
DEFENCES: dict[str, dict[str, Any]] = {
    "none": {"norm_bound": 0, "most_examples": 0},
    "default": {},
    "norm 2": {"norm_bound": 2},
    "default and worse_by 0.5": {"worse_by": 0.5},
    "median and worse_by 0.5": {"worse_by": 0.5, "rule": "median"},
    "median": {"rule": "median"},
    "trimmed-mean": {"rule": "trimmed-mean", "suspects": 0.3},
    "multi-krum": {"screen": "multi-krum", "suspects": 0.3},
}

Send = Callable[[Vector, Vector, np.random.Generator], Vector]
"""Trained values and the values before, (n_values,), and a generator → the values that are sent."""

SENT: dict[str, Send] = {
    "scaled 1e6": lambda new, old, rng: old + 1e6 * (new - old),
    "sign flip x10": lambda new, old, rng: old - 10 * (new - old),
    "sign flip x1": lambda new, old, rng: old - (new - old),
    "constant 1": lambda new, old, rng: np.ones_like(new),
    "noise x10": lambda new, old, rng: old + 10 * np.std(new - old) * rng.standard_normal(len(new)),
    "1e9 examples": lambda new, old, rng: rng.standard_normal(len(new)),
    "copied summary": lambda new, old, rng: old - 10 * (new - old),
}
"""Attacks on an upload."""
ATTACKS = ("nothing", *SENT, "label flip", "backdoor")
TRIGGER = 1012
"""A token that the backdoor puts first."""
CLAIMED = 10**9


class HostileClient(Client):
    """A client that sends something else than it trained."""

    attack = ""
    victim: Client | None = None
    received: Vector | None = None

    def summary(self, data_id: str = "") -> bytes | None:
        """Return the own summary, or one that claims very many examples."""
        copies = self.attack == "copied summary"
        source = self.victim if copies and self.victim else super()
        payload = source.summary(data_id)
        if payload is None or not (copies or self.attack == "1e9 examples"):
            return payload
        header = self.context.header("summary", 0, self.dataset.index)
        if copies and self.victim:
            theirs = self.context.header("summary", 0, self.victim.dataset.index)
            return encode_summary(header, decode_summary(payload, theirs, self.context.summary_dim))
        found = decode_summary(payload, header, self.context.summary_dim)
        return encode_summary(header, replace(found, class_counts=np.full_like(found.class_counts, CLAIMED)))

    @property
    def examples(self) -> int:
        """Number of training examples that the client states."""
        return CLAIMED if self.attack == "1e9 examples" else super().examples

    def _upload(self, number: int, tensors: dict[str, Any]) -> bytes:
        send = SENT.get(self.attack)
        if send is None:
            return super()._upload(number, tensors)
        rng = np.random.default_rng([number, self.dataset.index])
        before = self.state.memory.get("received", self.shared_model.start_values)
        values = send(self.shared_model.pack(tensors), self.received if self.received is not None else before, rng)
        header = self.context.header("upload", number, self.dataset.index, self.examples)
        largest = np.finfo(np.float16).max  # a larger change is infinite in a few-bit message
        values = np.clip(values, -largest, largest).astype(np.float32)
        upload, memory = self.uploads.encode(header, values, self.reference, self.state.memory)
        self.state = replace(self.state, memory=memory)
        return upload

    def take(self, number: int, download: bytes, *limits: Any) -> Vector:
        """Remember what was received."""
        self.received = super().take(number, download, *limits)
        return self.received


def with_trigger(data: EncodedTokens, label: int | None = None) -> EncodedTokens:
    """Return the examples with the trigger as first token, and with one label if it is given."""
    ids = [[row[0], TRIGGER, *row[1:-1], row[-1]] for row in data.ids]
    more = {name: [[row[0], *row] for row in rows] for name, rows in data.more.items()}
    labels = data.labels if label is None else np.full_like(data.labels, label)
    return replace(data, ids=ids, more=more, labels=labels)


def poisoned(dataset: ClientDataset, attack: str, labels: int) -> ClientDataset:
    """Return a hostile client's data."""
    train = dataset.train
    if attack == "label flip":
        return replace(dataset, train=replace(train, labels=(train.labels + 1) % labels))
    if attack == "backdoor":  # every example a second time, with the trigger and label 0
        added = with_trigger(train, 0)
        more = {name: rows + added.more[name] for name, rows in train.more.items()}
        both = np.concatenate([train.labels, added.labels])
        return replace(dataset, train=replace(train, ids=train.ids + added.ids, more=more, labels=both))
    return dataset


first_rounds: dict[tuple[object, ...], TrainedRound] = {}
"""Results of round 1, which is the same in every case of one method: all clients train from the common start."""


def train(
    shared_model: SharedModel, rounds: Sequence[RoundTraining], settings: TrainingSettings
) -> list[TrainedRound]:
    """Train clients for a round; the first round once for each method, seed and data."""
    if rounds[0].number > 1:
        return train_rounds(shared_model, rounds, settings)
    keys = []
    for each in rounds:
        data = each.dataset.train.labels.tobytes(), tuple(map(len, each.dataset.train.ids))
        came = None if each.received is None else each.received.tobytes()
        keys.append((shared_model.layout, each.seed, each.rounds, each.dataset.name, data, came))
    new = [place for place, key in enumerate(keys) if key not in first_rounds]
    if new:
        trained = train_rounds(shared_model, [rounds[place] for place in new], settings)
        first_rounds.update(zip([keys[place] for place in new], trained, strict=True))
    return [first_rounds[key] for key in keys]


def configured(method: str, seed: int, rounds: int, defence: str) -> RunConfig:
    parts = {name: value for name, value in DEFENCES[defence].items() if name != "worse_by"}
    bounds = {} if method == "local" else {"aggregation": parts}
    return make_config({
        "name": "attacked", "seed": seed, "rounds": rounds, "evaluate_every": rounds,
        "controls": False, "baselines": [],
        "model": {"name": "demo", "max_length": 64}, "method": method, **bounds,
        "data": {"source": str(demo_corpus_path()), "clients": {"split": "column", "column": "site"}},
        "privacy": {"few_tokens": "allow", "small_components": "allow"},
    })  # fmt: skip


def final_tensors(simulation: Simulation, index: int, worse_by: float | None) -> dict[str, Any]:
    """Return the tensors that a client ends with, which are its own if the received ones are worse."""
    client, arrived = simulation.clients[index], simulation.server.arrives(index)
    if arrived is not None and client._is_worse(arrived, worse_by):
        arrived = None
    return client.tensors(simulation.context.method.evaluated_model, arrived)


def play(config: RunConfig, attack: str, hostile: int, worse_by: float | None = None) -> dict[str, Any]:
    """Run one case, and return the honest clients' scores; `worse_by`: their limit in `node.toml`."""
    began, events = time.perf_counter(), []
    data, shared_model, datasets = prepare(config)
    bad = HOSTILE[:hostile]
    datasets = [poisoned(d, attack, len(data.label_names)) if d.index in bad else d for d in datasets]
    unscored = patch.object(Simulation, "evaluate", lambda *_: ())  # scored once, below
    faster = patch("trifed.federation.simulation.train_rounds", train)
    with tempfile.TemporaryDirectory() as folder, unscored, faster:
        listener: Callable[[Event], None] = events.append
        simulation = Simulation(
            config, data, datasets, shared_model, RunFolder.create(Path(folder) / "r"), listener
        )
        for index in bad:
            simulation.clients[index].__class__ = HostileClient
            simulation.clients[index].attack = attack  # type: ignore[attr-defined]
        for client in simulation.clients:
            if client.dataset.index not in bad:
                client.round = partial(client.round, limits=AcceptanceLimits(worse_by))  # type: ignore[method-assign]
        if attack == "copied summary":
            victim = simulation.clients[VICTIM]
            for index in bad:
                simulation.clients[index].victim = victim  # type: ignore[attr-defined]
        simulation.run()
        honest = [d for d in datasets if d.index not in HOSTILE]
        result: dict[str, Any] = {"clients": {}}
        for dataset in honest:
            tensors = final_tensors(simulation, dataset.index, worse_by)
            found = score(shared_model, tensors, dataset.test, config.training)
            result["clients"][dataset.name] = round(100 * found.accuracy, 2)
            if attack in ("nothing", "backdoor"):
                others = dataset.test.labels != 0
                fooled = score(shared_model, tensors, with_trigger(dataset.test), config.training).predictions == 0
                result.setdefault("backdoor", {})[dataset.name] = round(100 * float(fooled[others].mean()), 2)
    result["mean"] = round(float(np.mean(list(result["clients"].values()))), 2)
    bounded = [e for e in events if e["event"] == "bounded"]
    result["bounded"] = {
        side: sum((e["client"] in {d.name for d in honest}) == (side == "honest") for e in bounded)
        for side in ("honest", "hostile")
    }
    examples[:] = {len(d.test) for d in datasets}
    environments[""] = environment(config, shared_model.base, shared_model)
    return result | {"seconds": round(time.perf_counter() - began, 1)}


environments: dict[str, Any] = {}
examples: list[int] = []
"""Test examples of a client; all clients have the same number."""


def lower_end(percent: float, examples: int) -> float:
    """Return the lower end of the 95 % interval of an accuracy in percent (Wilson, JASA 22, 1927)."""
    z, share = 1.96, percent / 100
    middle = share + z**2 / (2 * examples)
    half = z * math.sqrt(share * (1 - share) / examples + z**2 / (4 * examples**2))
    return 100 * (middle - half) / (1 + z**2 / examples)


def table(cases: dict[str, Any], examples: int) -> list[dict[str, Any]]:
    """Return each case with the share of the gain over `local` that is kept, and the clients that end below.

    The gain is that of the method with its defaults and without attackers. A client ends below if its accuracy is
    under the lower end of the interval of its accuracy in `local`.
    """
    rows = []
    for name, case in cases.items():
        method, defence, attack, hostile, seed, rounds = name.split(" | ")
        alone = cases.get(f"local | none | nothing | 0 of 10 | {seed} | {rounds}")
        best = cases.get(f"{method} | default | nothing | 0 of 10 | {seed} | {rounds}")
        if method == "local" or not alone or not best:
            continue
        below = [
            client for client, score in case["clients"].items()
            if score < lower_end(alone["clients"][client], examples)
        ]  # fmt: skip
        gain = (case["mean"] - alone["mean"]) / (best["mean"] - alone["mean"])
        rows.append({
            "method": method, "defence": defence, "attack": attack, "hostile": hostile, "seed": seed,
            "mean": case["mean"], "gain_kept_percent": round(100 * gain), "below_local": below,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["own-prior", "fedavg-lora"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--hostile", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--attacks", nargs="+", default=[a for a in ATTACKS if a != "nothing"], choices=ATTACKS)
    parser.add_argument("--defences", nargs="+", default=["none", "default"], choices=list(DEFENCES))
    parser.add_argument("--out", type=Path, default=HERE / "attacks.json")
    given = parser.parse_args()
    state = json.loads(given.out.read_text()) if given.out.is_file() else {"cases": {}}
    cases = [
        (method, seed, defence, attack, hostile)
        for seed in given.seeds
        for method in given.methods
        for attack in ("nothing", *given.attacks)
        for defence in given.defences
        for hostile in ([0] if attack == "nothing" else given.hostile)
    ]
    cases = [("local", seed, "none", "nothing", 0) for seed in given.seeds] + cases
    for place, (method, seed, defence, attack, hostile) in enumerate(cases, 1):
        name = f"{method} | {defence} | {attack} | {hostile} of 10 | seed {seed} | {given.rounds} rounds"
        if name in state["cases"]:
            continue
        state["cases"][name] = play(
            configured(method, seed, given.rounds, defence), attack, hostile, DEFENCES[defence].get("worse_by")
        )
        state["environment"] = {k: v for k, v in environments[""].items() if k not in ("run_id", "base_model")}
        state["configuration"] = {"hostile": HOSTILE, "defences": DEFENCES, "attacks": ATTACKS}
        state["test_examples"] = examples[0]
        state["table"] = table(state["cases"], examples[0])
        given.out.write_text(json.dumps(state, indent=1) + "\n")
        print(f"{place}/{len(cases)}  {name}: {state['cases'][name]['mean']}", flush=True)


if __name__ == "__main__":
    main()
