"""Hashes that identify the clients' data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from trifed.data.clients import Examples, FederatedData


def content_hash(data: FederatedData) -> str:
    """Return the SHA-256 of every client's name, inputs and labels in each split, which identifies a split."""
    digest = hashlib.sha256()

    def add(values: Sequence[str | bytes]) -> None:
        digest.update(len(values).to_bytes(8, "big"))
        for value in values:
            digest.update(_framed(value))

    add(data.label_names)
    add([client.name for client in data.clients])
    for examples in _all_examples(data):
        add(examples.inputs.get("text", []))
        add(["no pairs"] if examples.pairs is None else ["pairs", *examples.pairs])
        for role in sorted(set(examples.inputs) - {"text", "text_pair"}):
            add([role, *examples.inputs[role]])
        digest.update(examples.labels.astype(">i8").tobytes())
        if examples.targets is not None:
            digest.update(b"targets" + examples.targets.astype(">f8").tobytes())
    return digest.hexdigest()


def rows_hash(data: FederatedData) -> str:
    """Return the SHA-256 of all examples, which does not depend on their order or split."""
    rows = []
    for examples in _all_examples(data):
        columns = [examples.inputs[role] for role in sorted(examples.inputs)]
        labels = examples.labels if examples.targets is None else examples.targets
        for label, *cells in zip(labels.tolist(), *columns, strict=True):
            rows.append(hashlib.sha256(b"".join([str(label).encode(), *map(_framed, cells)])).digest())
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


def _framed(value: str | bytes) -> bytes:
    """Return a value as bytes after its length, so that no two sequences of values look alike."""
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "big") + raw


def _all_examples(data: FederatedData) -> Iterator[Examples]:
    for client in data.clients:
        yield from (client.train, client.valid, client.test)
    if data.global_test is not None:
        yield data.global_test
