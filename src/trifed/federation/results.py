"""The result of a run as one dictionary, computed from its event log alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trifed.config.metrics import Labels
from trifed.config.settings import Bits
from trifed.federation.events import Event
from trifed.federation.messages import ENVELOPE
from trifed.federation.plain_lora import plain_lora_bytes, plain_lora_traffic
from trifed.federation.training.metrics import compute_metrics, entity_f1, further_metrics, spread_of
from trifed.methods.base import logged_stage

if TYPE_CHECKING:
    from trifed.federation.training.evaluation import Scores

Json = dict[str, Any]

FULL_PRECISION: Bits = 32
"""Bits a value without compression."""

OVERFLOW = 700.0
"""Loss in nats from which its exponential is no number."""


def spread(accuracies: Sequence[float | None], examples: Sequence[int]) -> Json:
    """Return mean, worst and best over the clients with test data, and the mean weighted by test examples."""
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


def summarise_events(
    events: Sequence[Event],
    evaluated_model: str,
    lora_bytes: int,
    metric: str = "accuracy",
    bits: Bits = 32,
    noised_sums: bool = False,
) -> Json:
    """Compute the result: clients, accuracy over rounds, and bytes.

    Args:
        events: The run's log.
        evaluated_model: "trained", "received" or "interpolated", the model whose accuracy counts.
        lora_bytes: Size of one message of `fedavg-lora` on this model at 32 bits a value, without its envelope; 0
            if it is not known.
        metric: The metric that decides.
        bits: Bits a value in the run's messages.
        noised_sums: Whether the sums of a sealed run have noise.
    """
    evaluated_model = logged_stage(evaluated_model)
    curve = _curve(events, evaluated_model, metric)
    notes = {name: _note(events, name) for name in ("kept round", "ended early")}
    if notes["kept round"]:  # the result is that of its models
        kept = notes["kept round"]["round"]
        events = [e for e in events if e["event"] != "scores" or e["round"] <= kept]
    started = next((e for e in events if e["event"] == "started"), None)
    names = list(started["clients"]) if started else []
    names += dict.fromkeys(e["client"] for e in events if e["event"] == "came late")
    return {
        "clients": [_client(events, name, evaluated_model) for name in names],
        "accuracy": _latest(events, evaluated_model),
        "accuracy_trained": _latest(events, "trained"),
        "accuracy_received": _latest(events, "received"),
        "metrics": _latest_metrics(events, evaluated_model, metric),
        "curve": curve,
        "bytes": _bytes(events, lora_bytes, bits, noised_sums),
        "diverged": list(dict.fromkeys(e["client"] for e in events if e["event"] == "diverged")),
        "seconds": float(sum(e.get("seconds", 0.0) for e in events if e["event"] == "trained")),
        "finished": any(e["event"] == "finished" for e in events),
        **({} if metric == "accuracy" else {"deciding_metric": metric}),
        **{name.replace(" ", "_"): note for name, note in notes.items() if note},
    }


def _note(events: Sequence[Event], name: str) -> Json:
    """Return the fields of the last event of a name; {} without one."""
    found = next((e for e in reversed(events) if e["event"] == name), {})
    return {key: value for key, value in found.items() if key != "event"}


def facts_of(scores: Scores, labels: Labels | None = None, metrics: Sequence[str] = ()) -> dict[str, float]:
    """Return the part of scores that is logged, with `metrics` of the true `labels`, (n,), by name."""
    facts: dict[str, float] = {"loss": scores.loss, "accuracy": scores.accuracy, "examples": scores.examples}
    named = [name for name in metrics if name not in ("perplexity", "f1_entities")]
    if labels is not None and named:
        facts |= compute_metrics(named, labels, scores.predictions, scores.probabilities)
    if "perplexity" in metrics:
        facts["perplexity"] = math.exp(scores.loss) if scores.loss < OVERFLOW else math.nan
    if "f1_entities" in metrics:
        facts["f1_entities"] = entity_f1(scores.entities)
    return facts


def valid_value(summary: Json, metric: str) -> float | None:
    """Return the mean of a metric over the clients' validation data, for the round whose models are the result.

    Args:
        summary: Content of summary.json.
        metric: "accuracy", or the deciding metric of that run.
    """
    number = summary.get("kept_round", {}).get("round")
    points = [point for point in summary["curve"] if number in (None, point["round"])]
    if not points:
        return None
    last = points[-1]
    found = last["valid_mean"] if metric == "accuracy" else last.get("valid_metrics", {}).get(metric)
    return None if found is None else float(found)


def perplexity(clients: Sequence[Json]) -> Json:
    """Return exp of the loss per token: mean, worst (highest) and best over the clients with test data."""
    losses = [client["now"]["loss"] for client in clients if client["now"] and client["now"]["loss"] is not None]
    known = np.exp([loss for loss in losses if np.isfinite(loss)])
    if not len(known):
        return {"mean": None, "worst": None, "best": None}
    return {"mean": float(known.mean()), "worst": float(known.max()), "best": float(known.min())}


def _latest(events: Sequence[Event], stage: str) -> Json | None:
    found = [e for e in events if e["event"] == "scores" and e["stage"] == stage]
    if not found:
        return None
    last = [e["test"] for e in found if e["round"] == found[-1]["round"]]
    return {"round": found[-1]["round"], **_spread(last)}


def _latest_metrics(events: Sequence[Event], stage: str, metric: str) -> Json:
    """Return mean, worst and best of each further metric on test data, in the last evaluated round."""
    found = [e for e in events if e["event"] == "scores" and e["stage"] == stage]
    last = [e["test"] for e in found if e["round"] == found[-1]["round"]]
    return {name: spread_of(name, last) for name in _counted(last, metric)}


def _counted(parts: Sequence[Json], metric: str) -> list[str]:
    """Return the names of the metrics beside accuracy that a summary has: further ones, and the deciding one."""
    return [*(["loss"] if metric == "loss" and parts else []), *further_metrics(parts)]


def _spread(parts: Sequence[Json]) -> Json:
    return spread([p["accuracy"] for p in parts], [p["examples"] for p in parts])


def _bytes_by_round(events: Sequence[Event], evaluated_model: str) -> Callable[[int], int]:
    """Return a function: round → all bytes sent until the clients had that round's model.

    The download that delivers a round's received model is logged with the next round.
    """
    later = 0 if evaluated_model == "trained" else 1
    sent = [(e.get("round", 0), _sent([e], "up"), _sent([e], "down")) for e in events if "up" in e or "down" in e]
    return lambda number: sum((n <= number) * up + (n <= number + later) * down for n, up, down in sent)


def _curve(events: Sequence[Event], evaluated_model: str, metric: str) -> list[Json]:
    points = []
    sent = _bytes_by_round(events, evaluated_model)
    found = [e for e in events if e["event"] == "scores" and e["stage"] in (evaluated_model, "start")]
    for number in sorted({e["round"] for e in found}):
        here = [e for e in found if e["round"] == number]
        test, valid = [e["test"] for e in here], [e["valid"] for e in here]
        names = _counted(test, metric)
        trained = [e for e in events if e["event"] == "trained" and e["round"] == number]
        losses = [e["loss"] for e in trained if e["loss"] is not None and np.isfinite(e["loss"])]
        points.append(
            {
                "round": number,
                **_spread(test),
                "valid_mean": _spread(valid)["mean"],
                "metrics": {name: spread_of(name, test)["mean"] for name in names},
                "valid_metrics": {name: spread_of(name, valid)["mean"] for name in names},
                "training_loss": float(np.mean(losses)) if losses else None,
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
        "bytes_up": _sent(mine, "up"),
        "bytes_down": _sent(mine, "down"),
        **{key: now[key] for key in ("received_share",) if now and key in now},
    }


def sealing_facts(events: Sequence[Event], at_least: int) -> Json:
    """Return the facts of a sealed run's sums.

    Args:
        events: The run's events.
        at_least: Fewest clients of a sum that its settings allow.

    Returns:
        `at_least`; `fewest`, the clients of the smallest sum of its rounds, None without any; `rounds_without`,
        the number of rounds that had no sum.
    """
    rounds = [e for e in events if e.get("round")]
    fewest = min((len(e["clients"]) for e in rounds if e["event"] == "sum"), default=None)
    return {
        "at_least": at_least,
        "fewest": fewest,
        "rounds_without": sum(e["event"] == "no sum" for e in rounds),
    }


def _sent(events: Sequence[Event], direction: str) -> int:
    """Return the bytes of all messages in one direction, "up" or "down"."""
    return sum(sum(e.get(direction, {}).values()) for e in events)


def _bytes(events: Sequence[Event], lora_bytes: int, bits: Bits, noised_sums: bool) -> Json:
    up, down = _sent(events, "up"), _sent(events, "down")
    trained, opening = ([e for e in events if e["event"] == name] for name in ("trained", "opening"))
    exchanges = [message for e in trained for message in (e["up"], e["down"]) if message]
    envelope = max((message.get(ENVELOPE, 0) for message in exchanges), default=0)
    equal = plain_lora_traffic(events, lora_bytes // 4, bits, envelope, noised_sums)
    # The usual plain LoRA: 32 bits a value and no seal, whatever the run's messages are.
    full = 2 * len(trained) * (plain_lora_bytes(lora_bytes // 4, FULL_PRECISION) + envelope) if lora_bytes else 0
    return {
        "up": up,
        "down": down,
        "total": up + down,
        "summaries": _sent([e for e in events if e["event"] == "summary"], "up"),
        "opening_up": _sent(opening, "up"),
        "opening_down": _sent(opening, "down"),
        "per_upload": sum(exchanges[0].values()) if exchanges else 0,
        "bits": bits,
        "fedavg_lora_would_send": equal,
        "times_fewer": equal / (up + down) if up + down else None,
        "fedavg_lora_would_send_at_32_bits": full,
        "times_fewer_at_32_bits": full / (up + down) if up + down else None,
    }
