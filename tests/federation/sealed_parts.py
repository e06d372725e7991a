"""What the tests of sealed sums share: a server without a model, its clients, and one sum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trifed.config.settings import WireSettings
from trifed.federation.compression import Compression, make_compression
from trifed.federation.context import RunContext
from trifed.federation.messages import Rejected
from trifed.federation.sealed.rules import SumRules
from trifed.federation.sealed.server import make_server
from trifed.federation.sealed.upload import PENDING, SealedUploads, held_labels
from trifed.methods import METHODS, AggregationSettings, PersonalizationSettings, compose
from trifed.methods.sealed import sealed

LAYOUT = (("x.lora_C.weight", (20, 20)), ("head.weight", (3, 100)))
SIZE = 700
RULES = SumRules(at_least=3, levels=1, learning_rate=0.02, by_label=False)
BY_LABEL = replace(RULES, by_label=True)


def context(rules=RULES, bits=1, **aggregation):
    settings = AggregationSettings(**aggregation)
    method = sealed(compose(METHODS["fed-xs"], PersonalizationSettings(), settings), settings, False)
    downloads = make_compression(LAYOUT, WireSettings(bits=bits))
    return RunContext(
        method, method.options(), downloads, downloads, LAYOUT, "run", "base", 20, aggregation=settings, sums=rules
    )


def opened(n=4, rules=RULES, bits=1, names=(), **aggregation):
    server = make_server(context(rules, bits, **aggregation), n, np.zeros(SIZE, np.float32), names)
    server.open({})
    return server


def client_of(rules, *labels):
    return SealedUploads(Compression(LAYOUT), rules, held_labels(np.array(labels), rules.labels(LAYOUT)))


def sum_round(server, clients, number, changes, memories, mask=lambda client: None):
    """One sum of the changes, by index of the client; returns the terms and why it was refused."""
    sum_terms = server.terms(number, sorted(changes))
    parts = []
    for client in sorted(changes):
        header = server.context.header("upload", number, client)
        if number:
            memories[client][PENDING] = changes[client]
        payload, memories[client] = clients[client].send(header, sum_terms, memories[client], mask(client))
        parts.append(server.read_part(number, client, payload, sum_terms))
        assert not isinstance(parts[-1], Rejected)
    return sum_terms, server.add(number, sum_terms, parts)
