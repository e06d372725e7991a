"""The terms of a sealed sum, which the server sends to each of its clients, and the rules that all sums follow.

The numbers are in `federation.sealed.numbers`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import MessageError
from trifed.federation.compression import BLOCK, block_starts
from trifed.federation.messages import Header, decode, encode
from trifed.federation.sealed.noise import SumNoise
from trifed.federation.sealed.numbers import Steps, bits_of_sum, of_each
from trifed.federation.sealed.proof import PROOF, SIGNED, OpeningProof, no_proof, read_proof
from trifed.methods.aggregation import BIAS, HEAD
from trifed.methods.packing import Layout, Vector

KEY, SIGNATURE = 32, 64
"""Bytes of a client's public key of one round, and of the signature on it."""
MOST_CLIENTS = 4096
"""The most clients of a sum."""
MOST_NAMES = 256 * MOST_CLIENTS


@dataclass(frozen=True)
class SumTerms:
    """The terms of one sum, which the server sends to each of its clients.

    Attributes:
        clients: Indices of the sum's clients, (n,), rising.
        steps: Step of each block, (n_blocks,); empty for the sum of label holders before round 1.
        holders: Clients that hold each label, by the sum before round 1, (n_labels,); empty if rows of the head
            are not treated apart.
        opening: Indices of the clients of the sum before round 1, (k,), rising; empty without `holders`.
        changed: Those of `opening` whose data may have changed since, so that nobody knows what they hold, rising.
        keys: Public keys of this round, (n, 32).
        signatures: Signatures on the keys, (n, 64).
        names: Names of the clients' sites, or none.
        proof: The parts of the sum before round 1, from which each site computes `holders`; None if all clients
            of this sum have had it.
    """

    clients: Sequence[int]
    steps: Steps = field(default_factory=lambda: np.zeros(0, np.float16))
    holders: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    opening: Sequence[int] = ()
    changed: Sequence[int] = ()
    keys: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, KEY), np.uint8))
    signatures: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, SIGNATURE), np.uint8))
    names: Sequence[str] = ()
    proof: OpeningProof | None = None

    def encode(self, header: Header) -> bytes:
        """Return the message with these terms."""
        names = json.dumps(list(self.names)).encode() if self.names else b""
        arrays: dict[str, NDArray[np.generic]] = {
            "clients": np.array(self.clients, np.uint32),
            "steps": self.steps.astype(np.float16),
            "holders": self.holders.astype(np.uint16),
            "opening": np.array(self.opening, np.uint32),
            "changed": np.array(self.changed, np.uint32),
            "keys": self.keys,
            "signatures": self.signatures,
            "names": np.frombuffer(names, np.uint8),
            **(self.proof.arrays() if self.proof else no_proof()),
        }
        return encode(header, arrays)

    @classmethod
    def decode(cls, payload: bytes, expected: Header, layout: Layout, at_least: int, labels: int = 0) -> SumTerms:
        """Return the terms of a message, checked.

        Args:
            payload: The message.
            expected: The header that it must have; its client is one of the sum.
            layout: Names and shapes of the numbers that have steps, see `SumRules.stepped`.
            at_least: Fewest clients of a sum.
            labels: Number of labels whose rows are treated apart.

        Raises:
            MessageError: See `messages.decode`; or terms that no sum may have.
        """
        rounds = expected.round > 0
        blocks, labels = (len(block_starts(layout)), labels) if rounds else (0, 0)
        most = 2 * blocks + 2 * labels + (12 + KEY + SIGNATURE) * MOST_CLIENTS + MOST_NAMES
        most += (2 * labels + SIGNED) * MOST_CLIENTS + MOST_NAMES
        arrays = decode(payload, expected, _TERMS, most)[1]
        n = len(arrays["clients"])
        shapes: dict[str, list[tuple[int, ...]]] = {
            "steps": [(blocks,)],
            "holders": [(labels,)],
            "keys": [(0, KEY), (n, KEY)],
            "signatures": [(0, SIGNATURE), (n, SIGNATURE)],
        }
        for name, dtype in _TERMS.items():
            array = arrays[name]
            known = [array.shape] if name in PROOF else shapes.get(name, [(array.size,)])
            if array.dtype != dtype or array.shape not in known:
                raise _wrong(expected, name, array, f"{np.dtype(dtype)} of another shape")
        if (arrays["steps"].astype(np.float16) < 0).any():
            raise _wrong(expected, "steps", arrays["steps"], "steps of at least 0")
        clients = _rising(expected, "clients", arrays["clients"])
        opening = _rising(expected, "opening", arrays["opening"])
        changed = _rising(expected, "changed", arrays["changed"])
        if expected.client not in clients or not at_least <= n <= MOST_CLIENTS:
            wanted = f"{at_least} to {MOST_CLIENTS} clients, this one ({expected.client}) among them"
            raise _wrong(expected, "clients", arrays["clients"], wanted)
        if (arrays["holders"].astype(np.int64) > len(opening)).any():
            raise _wrong(expected, "holders", arrays["holders"], f"at most {len(opening)} clients a label")
        if opening and not rounds:
            raise _wrong(expected, "opening", arrays["opening"], "no clients before round 1")
        if not set(changed) <= set(opening):
            raise _wrong(expected, "changed", arrays["changed"], "clients of 'opening'")
        try:
            proof = read_proof(arrays, len(opening), labels)
        except MessageError as error:
            raise MessageError(f"{expected}: {error}") from error
        return cls(
            clients,
            arrays["steps"].astype(np.float16),
            arrays["holders"].astype(np.uint16),
            opening,
            changed,
            arrays["keys"].astype(np.uint8),
            arrays["signatures"].astype(np.uint8),
            _names(expected, arrays["names"].tobytes(), n),
            proof,
        )


def placeholder_keys(sum_terms: SumTerms, names: Sequence[str] = ()) -> SumTerms:
    """Return the terms with zeros for keys and signatures, and names, which have the size of real ones.

    `names`: All clients' names, by index; empty for none.
    """
    n = len(sum_terms.clients)
    keys, signatures = np.zeros((n, KEY), np.uint8), np.zeros((n, SIGNATURE), np.uint8)
    named = tuple(names[client] for client in sum_terms.clients) if names else ()
    return replace(sum_terms, keys=keys, signatures=signatures, names=named)


_TERMS: dict[str, type[np.generic]] = {
    "clients": np.uint32,
    "steps": np.float16,
    "holders": np.uint16,
    "opening": np.uint32,
    "changed": np.uint32,
    "keys": np.uint8,
    "signatures": np.uint8,
    "names": np.uint8,
    **PROOF,
}


def _rising(expected: Header, name: str, indices: NDArray[np.generic]) -> list[int]:
    found = [int(index) for index in indices.astype(np.int64)]
    if sorted(set(found)) != found:
        raise _wrong(expected, name, indices, "different indices in rising order")
    return found


def _names(expected: Header, text: bytes, clients: int) -> tuple[str, ...]:
    try:
        names = json.loads(text) if text else []
    except (ValueError, RecursionError) as error:
        raise MessageError(f"{expected}: 'names' is no JSON ({error}); it is refused") from error
    if not isinstance(names, list) or len(names) not in (0, clients):
        raise MessageError(f"{expected}: 'names' is no list of {clients} names; it is refused")
    if not all(isinstance(name, str) for name in names):
        raise MessageError(f"{expected}: 'names' holds what is no name; it is refused")
    return tuple(names)


def _wrong(expected: Header, name: str, array: NDArray[np.generic], wanted: str) -> MessageError:
    got = f"{array.dtype} {array.shape}"
    return MessageError(f"{expected}: '{name}' is {got}, expected {wanted}; it is refused")


# -- rows of the head


@dataclass(frozen=True)
class SumRules:
    """Rules for all sums of a run, at the server and at the clients.

    Attributes:
        at_least: Fewest clients of a sum, and of a row of the head that is summed.
        levels: L.
        learning_rate: That of the run, from which the first steps follow.
        by_label: Whether a row of the head is sent by those alone who have examples of its label.
        noise: The noise on changes; None for rounding to `levels` without noise.
    """

    at_least: int
    levels: int
    learning_rate: float
    by_label: bool
    noise: SumNoise | None = None

    def stepped(self, layout: Layout) -> Layout:
        """Return the tensors of which a client sends magnitudes, from which the next steps follow.

        With noise there are none: magnitudes have no noise, and the step follows from settings.
        """
        return () if self.noise else layout

    def step_of_each(self, sum_terms: SumTerms, layout: Layout) -> Vector:
        """Return the step of each number of a sum, (n_values,)."""
        size = _size(layout)
        return np.full(size, self.noise.step(size), np.float32) if self.noise else of_each(sum_terms.steps, layout)

    def bits(self, clients: int, layout: Layout) -> int:
        """Return the bits of a number in a sum of `clients` clients."""
        return self.noise.bits(clients, _size(layout)) if self.noise else bits_of_sum(clients, self.levels)

    def most(self, clients: int, layout: Layout) -> int:
        """Return the largest absolute value of a number in a sum of `clients` clients, in steps."""
        return self.noise.most(clients, _size(layout)) if self.noise else clients * self.levels

    def labels(self, layout: Layout) -> int:
        """Return the number of labels whose rows are treated apart, 0 if none are."""
        rows = [shape[0] for name, shape in layout if name in (HEAD, BIAS)]
        return max(rows, default=0) if self.by_label else 0

    def label_of_each(self, layout: Layout) -> NDArray[np.int64]:
        """Return the label of each number's row of the head, (n_values,); −1 elsewhere."""
        of_tensors = [
            np.repeat(np.arange(shape[0]), math.prod(shape[1:]))
            if self.by_label and name in (HEAD, BIAS)
            else np.full(math.prod(shape), -1)
            for name, shape in layout
        ]
        return np.concatenate([np.zeros(0, np.int64), *of_tensors])

    def summed_labels(self, sum_terms: SumTerms) -> NDArray[np.bool_]:
        """Return the labels whose rows are part of a sum, (n_labels,).

        They are those with `at_least` holders, even if every client of the opening that is absent was one, and
        every client whose data may have changed. Each client keeps its own of the other rows.
        """
        absent = len(set(sum_terms.opening) - (set(sum_terms.clients) - set(sum_terms.changed)))
        return sum_terms.holders.astype(np.int64) - absent >= self.at_least

    def summed(self, sum_terms: SumTerms, layout: Layout) -> NDArray[np.bool_]:
        """Return which numbers are part of a sum, (n_values,)."""
        return _by_label(self.summed_labels(sum_terms), self.label_of_each(layout))

    def senders(self, sum_terms: SumTerms, layout: Layout) -> NDArray[np.float64]:
        """Return about how many clients of a sum send each number, (n_values,).

        All of them, or for a row of the head the label's holders, as far as the opening's clients are among them.
        """
        clients = len(sum_terms.clients)
        of_labels = sum_terms.holders * (clients / max(1, len(sum_terms.opening)))
        label = self.label_of_each(layout)
        found = np.full(len(label), float(clients))
        found[label >= 0] = of_labels[label[label >= 0]]
        return np.where(self.summed(sum_terms, layout), found, 0.0)


def _by_label(of_labels: NDArray[np.bool_], label: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return a Boolean for each number, (n_values,), from those of labels, (n_labels,); True without a label."""
    return np.append(of_labels, True)[label]


def sent_by(held: NDArray[np.bool_], rules: SumRules, sum_terms: SumTerms, layout: Layout) -> NDArray[np.bool_]:
    """Return the numbers that a client sends, (n_values,). `held`: its labels, (n_labels,)."""
    return rules.summed(sum_terms, layout) & _by_label(held, rules.label_of_each(layout))


def _size(layout: Layout) -> int:
    return sum(math.prod(shape) for _, shape in layout)


def sizes_of_part(layout: Layout, clients: int, rules: SumRules) -> dict[str, int]:
    """Return the bytes of each tensor in a client's part of a sum, by name.

    A byte that two tensors share is the first one's; each block has two bytes for its magnitude.
    """
    bits, sizes, numbers = rules.bits(clients, layout), {}, 0
    for name, shape in layout:
        size = math.prod(shape)
        before, numbers = -(-numbers * bits // 8), numbers + size
        sizes[name] = -(-numbers * bits // 8) - before + (0 if rules.noise else 2 * -(-size // BLOCK))
    return sizes
