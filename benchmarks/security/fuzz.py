"""Random mutations of valid messages, through every decoder and both paths of a request to a site."""

from __future__ import annotations

import io
import json
import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from hostile import Json, mutated_bytes, odd_text, odd_value
from replay import configured, record, site

from trifed.common.errors import ModelError, TrifedError
from trifed.deployment import flower, worker
from trifed.deployment.protocol import Request, read_layout
from trifed.federation.context import decode_tensors
from trifed.federation.messages import decode_summary
from trifed.tasks import TASKS


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


def through_flower(request: Request, rng: random.Random) -> Request:
    """Return a request with odd facts, as it comes out of Flower's records."""
    facts = odd_value(dict(request.facts), rng)
    values = {"kind": request.kind, **(facts if isinstance(facts, dict) else {"round": facts})}
    values |= {f"part/{name}": mutated_bytes(part, part, rng) for name, part in request.parts.items()}
    try:
        record = ConfigRecord(values)
    except (TypeError, ValueError, OverflowError):  # nothing that Flower carries
        return request if request.kind != "train" else replace(request, facts={})
    return Request(*flower.read(RecordDict({flower.RECORD: record})))


def targets(folder: Path) -> dict[str, Callable[[random.Random], object]]:
    """Return what is fuzzed, by name: functions that mutate a valid message and decode it."""
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

    def broken(place: int, rng: random.Random) -> bytes:
        return mutated_bytes(payloads[place], payloads[rng.randrange(3)], rng)

    def upload(method: str, place: int, rng: random.Random) -> object:
        context = contexts[method]
        size = sum(int(np.prod(shape)) for _, shape in context.compression.layout)
        expected = context.header("upload", 1, 0)
        return context.compression.decode(broken(place, rng), expected, np.zeros(size, np.float32))

    def gradient(rng: random.Random) -> object:
        return decode_tensors(broken(3, rng), contexts["fed-sb"].header("gradient", 0, 0), layers)

    def over_socket(rng: random.Random) -> object:
        sent = [sent_over_socket(request) for request in asked]
        kind, facts, parts = worker.receive(Fake(mutated_bytes(rng.choice(sent), rng.choice(sent), rng)))  # type: ignore[arg-type]
        return process.answer(Request(kind, facts, parts))

    return {
        "upload, few bits": lambda rng: upload("own-prior", 0, rng),
        "upload, float32": lambda rng: upload("fedavg-lora", 1, rng),
        "summary": lambda rng: decode_summary(broken(2, rng), contexts["own-prior"].header("summary", 0, 0), 64),
        "gradient": gradient,
        "layout": lambda rng: read_layout(odd_text(str(summary.facts["layout"]), rng)),
        "request over the socket": over_socket,
        "request over Flower": lambda rng: process.answer(through_flower(rng.choice(asked), rng)),
    }


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
    for name, function in functions.items():
        rng, longest, inputs = random.Random(f"{seed} {name}"), 0.0, number // len(functions)
        for place in range(inputs):
            began = time.process_time()
            try:
                function(rng)
                found["accepted"] += 1
            except (TrifedError, EOFError, OSError):
                pass
            except Exception as error:  # noqa: BLE001  what this looks for; a ValueError of the socket is the worker's own
                if not (isinstance(error, ValueError) and name == "request over the socket"):
                    found["exceptions"][f"{name} {place}: {type(error).__name__}: {str(error)[:80]}"] += 1
            longest = max(longest, time.process_time() - began)
        found["inputs"] += inputs
        found["by_target"][name] = {"inputs": inputs, "longest_s": round(longest, 4)}
        found["longest_s"] = max(found["longest_s"], round(longest, 4))
    found["memory_growth_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return found
