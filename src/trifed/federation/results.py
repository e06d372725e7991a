"""The result of a run as one dictionary, computed from its event log alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trifed.federation.events import Event
from trifed.federation.messages import ENVELOPE
from trifed.federation.training import Scores

Json = dict[str, Any]


def spread(accuracies: Sequence[float | None], examples: Sequence[int]) -> Json:
    """Mean, worst, best over the clients that have test data, and the mean weighted by their test examples."""
    known = [(a, n) for a, n in zip(accuracies, examples, strict=True) if a is not None and np.isfinite(a)]
    if not known:
        return {"mean": None, "worst": None, "best": None, "weighted_mean": None}
    values, weights = np.array([a for a, _ in known]), np.array([n for _, n in known])
    return {
        "mean": float(values.mean()),
        "worst": float(values.min()),
        "best": float(values.max()),
        "weighted_mean": float((values * weights).sum() / weights.sum()),
    }


def summarise_events(events: Sequence[Event], evaluated_model: str, lora_bytes: int) -> Json:
    """Clients, accuracy over rounds, and all bytes.

    `scored`: "trained", "received" or "between", the model that counts. `lora_bytes`: what `fedavg-lora` would
    send in one message on this model, without its envelope.
    """
    started = next((e for e in events if e["event"] == "started"), None)
    names = list(started["clients"]) if started else []
    names += dict.fromkeys(e["client"] for e in events if e["event"] == "came late")
    return {
        "clients": [_client(events, name, evaluated_model) for name in names],
        "accuracy": _latest(events, evaluated_model),
        "accuracy_trained": _latest(events, "trained"),
        "accuracy_received": _latest(events, "received"),
        "curve": _curve(events, evaluated_model),
        "bytes": _bytes(events, lora_bytes),
        "seconds": float(sum(e.get("seconds", 0.0) for e in events if e["event"] == "trained")),
        "finished": any(e["event"] == "finished" for e in events),
    }


def facts_of(scores: Scores) -> dict[str, float]:
    """The part of scores that goes into the log."""
    return {"loss": scores.loss, "accuracy": scores.accuracy, "examples": scores.examples}


def perplexity(clients: Sequence[Json]) -> Json:
    """exp of the clients' loss per token: mean, worst (the highest) and best over those with test data."""
    losses = [client["now"]["loss"] for client in clients if client["now"] and client["now"]["loss"] is not None]
    known = np.exp([loss for loss in losses if np.isfinite(loss)])
    if not len(known):
        return {"mean": None, "worst": None, "best": None}
    return {"mean": float(known.mean()), "worst": float(known.max()), "best": float(known.min())}


def _scores(events: Sequence[Event], stage: str) -> list[Event]:
    return [e for e in events if e["event"] == "scores" and e["stage"] == stage]


def _latest(events: Sequence[Event], stage: str) -> Json | None:
    found = _scores(events, stage)
    if not found:
        return None
    last = [e["test"] for e in found if e["round"] == found[-1]["round"]]
    return {"round": found[-1]["round"], **_spread(last)}


def _spread(parts: Sequence[Json]) -> Json:
    return spread([p["accuracy"] for p in parts], [p["examples"] for p in parts])


def _bytes_by_round(events: Sequence[Event], evaluated_model: str) -> Callable[[int], int]:
    """All bytes up to the moment at which a round's model stood with the clients.

    A model that is received after a round came with the downloads that are logged with the next.
    """
    later = 0 if evaluated_model == "trained" else 1
    sent = [
        (e.get("round", 0), sum(e.get("up", {}).values()), sum(e.get("down", {}).values()))
        for e in events
        if "up" in e or "down" in e
    ]
    return lambda number: sum((n <= number) * up + (n <= number + later) * down for n, up, down in sent)


def _curve(events: Sequence[Event], evaluated_model: str) -> list[Json]:
    points = []
    sent = _bytes_by_round(events, evaluated_model)
    found = [e for e in events if e["event"] == "scores" and e["stage"] in (evaluated_model, "start")]
    for number in sorted({e["round"] for e in found}):
        here = [e for e in found if e["round"] == number]
        losses = [e["loss"] for e in events if e["event"] == "trained" and e["round"] == number]
        known = [loss for loss in losses if loss is not None and np.isfinite(loss)]
        valid = _spread([e["valid"] for e in here])
        points.append(
            {
                "round": number,
                **_spread([e["test"] for e in here]),
                "valid_mean": valid["mean"],
                "training_loss": float(np.mean(known)) if known else None,
                "bytes": sent(number) if number else 0,
            }
        )
    return points


def _client(events: Sequence[Event], name: str, evaluated_model: str) -> Json:
    mine = [e for e in events if e.get("client") == name]
    before = next((e for e in mine if e["event"] == "scores" and e["stage"] == "start"), None)
    now = next((e for e in reversed(mine) if e["event"] == "scores" and e["stage"] == evaluated_model), before)
    return {
        "name": name,
        "before": before and before["test"],
        "now": now and now["test"],
        "valid": now and now["valid"],
        "rounds": sum(e["event"] == "trained" for e in mine),
        "bytes_up": sum(sum(e.get("up", {}).values()) for e in mine),
        "bytes_down": sum(sum(e.get("down", {}).values()) for e in mine),
    }


def _bytes(events: Sequence[Event], lora_bytes: int) -> Json:
    up = sum(sum(e.get("up", {}).values()) for e in events)
    down = sum(sum(e.get("down", {}).values()) for e in events)
    summaries = sum(sum(e["up"].values()) for e in events if e["event"] == "summary")
    openings = [e for e in events if e["event"] == "opening"]
    trainings = sum(e["event"] == "trained" for e in events)
    exchanges = [e[way] for e in events if e["event"] == "trained" for way in ("up", "down") if e[way]]
    envelope = max((message[ENVELOPE] for message in exchanges), default=0)
    # Up once a training, down once a training: what plain federated LoRA needs for the same participation.
    rival = 2 * trainings * (lora_bytes + envelope)
    total = up + down
    return {
        "up": up,
        "down": down,
        "total": total,
        "summaries": summaries,
        "opening_up": sum(sum(e.get("up", {}).values()) for e in openings),
        "opening_down": sum(sum(e.get("down", {}).values()) for e in openings),
        "per_upload": exchanges[0] and sum(exchanges[0].values()) if exchanges else 0,
        "fedavg_lora_would_send": rival,
        "times_fewer": rival / total if total else None,
    }
