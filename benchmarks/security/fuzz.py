"""Random mutations of valid messages, through every decoder and both paths of a request to a site."""

from __future__ import annotations

import io
import json
import random
import resource
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from hostile import Json, mutated_bytes, odd_text, odd_value
from replay import configured, record, site

from trifed.common.errors import ModelError, TrifedError
from trifed.deployment import flower, worker
from trifed.deployment.protocol import MOST_TEXT, Request, read_layout
from trifed.federation.context import decode_tensors
from trifed.federation.messages import MOST_HEADER, decode_summary, layout_sizes
from trifed.federation.training.shared_model import SharedModel
from trifed.similarity.summary import most_bytes
from trifed.tasks import TASKS

SHARES = {
    "upload, few bits": 0.25, "upload, float32": 0.2, "summary": 0.25, "layout": 0.2, "gradient": 0.02,
    "request over the socket": 0.05, "request over Flower": 0.03,
}  # fmt: skip
"""Shares of the inputs; those that take long get fewer."""
TRACED = 20
"""Of so many inputs the memory of one is traced, which takes long."""


class Fake:
    """A socket with bytes to read."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, mode: str) -> io.BytesIO:
        """Return a stream of the bytes."""
        return io.BytesIO(self.data)


def sent_over_socket(request: Request) -> bytes:
    header = {
        "kind": request.kind,
        "facts": dict(request.facts),
        "parts": {n: len(p) for n, p in request.parts.items()},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(request.parts.values())


def through_flower(request: Request, rng: random.Random) -> RecordDict:
    """Return a request with odd facts, as Flower carries it."""
    facts = odd_value(dict(request.facts), rng)
    values = {"kind": request.kind, **(facts if isinstance(facts, dict) else {"round": facts})}
    values |= {f"part/{name}": mutated_bytes(part, part, rng) for name, part in request.parts.items()}
    try:
        record = ConfigRecord(values)
    except (TypeError, ValueError, OverflowError):  # nothing that Flower carries
        record = ConfigRecord({"kind": request.kind})
    return RecordDict({flower.RECORD: record})


@dataclass(frozen=True)
class Target:
    """What is fuzzed. `limit`: the largest valid message, bytes; `make` mutates a message, and `read` reads it."""

    limit: int
    make: Callable[[random.Random], Any]
    read: Callable[[Any], object]


def targets(folder: Path) -> dict[str, Target]:
    """Return what is fuzzed, by name."""
    few, full, first = (record(configured(method), folder / method, ("", 0), lambda reply: reply)
                        for method in ("own-prior", "fedavg-lora", "fed-sb"))  # fmt: skip
    contexts = {}
    for name, (_, requests, _) in {"own-prior": few, "fedavg-lora": full, "fed-sb": first}.items():
        process = site(folder / f"context-{name}", 0)
        for key in (("hello", 0, 0, 0), ("open", 0, 0, 1)):
            process.answer(requests[key])
        contexts[name] = process.run.client.context  # type: ignore[union-attr]
    process = site(folder / "fuzzed", 0, at_least=2**31 - 1)  # it refuses to train once all else is right
    for key in (("hello", 0, 0, 0), ("open", 0, 0, 1)):
        process.answer(few[1][key])
    model = process.run.shared_model  # type: ignore[union-attr]
    data, training = process.run.client.dataset.train, process.run.config.training  # type: ignore[union-attr]
    features = model.base_features(data, training)
    # For each request they would take a second.
    SharedModel.base_features = lambda *_: features  # type: ignore[method-assign]
    task = TASKS["text-classification"]

    def no_model(*_: object) -> Any:
        raise ModelError("not loaded here")

    TASKS["text-classification"] = replace(task, load=no_model)
    summary, layers = few[0]["open", 0, 0, 1], read_layout(str(first[0]["open", 0, 0, 1].facts["layers"]))
    asked = [
        few[1][key] for key in (("hello", 0, 0, 0), ("open", 0, 0, 1), ("train", 1, 0, 0), ("finish", 3, 0, 0))
    ]
    payloads = [few[0]["train", 1, 0, 0].parts["upload"], full[0]["train", 1, 0, 0].parts["upload"],
                summary.parts["summary"], first[0]["gradient", 0, 0, 0].parts["gradient"]]  # fmt: skip

    def broken(place: int) -> Callable[[random.Random], bytes]:
        return lambda rng: mutated_bytes(payloads[place], payloads[rng.randrange(3)], rng)

    def upload(method: str, place: int) -> Target:
        context = contexts[method]
        reference = np.zeros(sum(int(np.prod(shape)) for _, shape in context.compression.layout), np.float32)
        expected, sizes = context.header("upload", 1, 0), context.compression.sizes
        return Target(
            MOST_HEADER + sum(sizes.values()),
            broken(place),
            lambda message: context.compression.decode(message, expected, reference),
        )

    def for_socket(rng: random.Random) -> bytes:
        sent = [sent_over_socket(request) for request in asked]
        return mutated_bytes(rng.choice(sent), rng.choice(sent), rng)

    opened, gradient = contexts["own-prior"].header("summary", 0, 0), contexts["fed-sb"].header("gradient", 0, 0)
    return {
        "upload, few bits": upload("own-prior", 0),
        "upload, float32": upload("fedavg-lora", 1),
        "summary": Target(
            MOST_HEADER + most_bytes(64), broken(2), lambda message: decode_summary(message, opened, 64)
        ),
        "gradient": Target(
            MOST_HEADER + sum(layout_sizes(layers).values()),
            broken(3),
            lambda message: decode_tensors(message, gradient, layers),
        ),
        "layout": Target(MOST_TEXT, lambda rng: odd_text(str(summary.facts["layout"]), rng), read_layout),
        "request over the socket": Target(
            worker.MOST_HEADER,
            for_socket,
            lambda message: process.answer(Request(*worker.receive(Fake(message)))),  # type: ignore[arg-type]
        ),
        "request over Flower": Target(
            MOST_TEXT,
            lambda rng: through_flower(rng.choice(asked), rng),
            lambda message: process.answer(Request(*flower.read(message))),
        ),
    }


def outcome(read: Callable[[Any], object], message: object) -> BaseException | None:
    """Read a message; return the error, None if it was accepted."""
    try:
        read(message)
    except Exception as error:  # noqa: BLE001  what this looks for
        return error
    return None


def fuzz(folder: Path, number: int, seed: int) -> Json:
    """Feed mutated messages to every decoder and both request paths."""
    found: Json = {
        "inputs": 0,
        "accepted": 0,
        "exceptions": Counter(),
        "longest_s": 0.0,
        "by_target": {},
    }
    functions = targets(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, target in functions.items():
        rng, inputs, longest, most = random.Random(f"{seed} {name}"), round(number * SHARES[name]), 0.0, 0
        for place in range(inputs):
            message = target.make(rng)
            if place % TRACED == 0:
                tracemalloc.start()
                error = outcome(target.read, message)
                most = max(most, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
            else:
                began = time.process_time()
                error = outcome(target.read, message)
                longest = max(longest, time.process_time() - began)
            found["accepted"] += error is None
            # A ValueError of the socket is the worker's own.
            known = (TrifedError, EOFError, OSError, *((ValueError,) if name.endswith("socket") else ()))
            if error is not None and not isinstance(error, known):
                found["exceptions"][f"{name} {place}: {type(error).__name__}: {str(error)[:80]}"] += 1
        found["inputs"] += inputs
        found["by_target"][name] = {
            "inputs": inputs, "longest_s": round(longest, 4), "limit_bytes": target.limit,
            "traced_peak_bytes": most,
        }  # fmt: skip
        found["longest_s"] = max(found["longest_s"], round(longest, 4))
        print(name, found["by_target"][name], flush=True)
    found["memory_growth_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return found
