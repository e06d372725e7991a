"""A client's part of sealed sums: the change that it keeps after training, and its integers for a sum.

Training makes no upload. The change to the reference waits in the client's upload memory until the server sends
the terms of a sum; then it is rounded, masked and sent, and the rounding error is added to the next change. See
`federation.sealed.numbers`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import MessageError, RunError
from trifed.federation.compression import Compression
from trifed.federation.messages import Header, encode
from trifed.federation.parts import Part
from trifed.federation.sealed.numbers import (
    MAGNITUDE_BITS,
    Integers,
    Mask,
    Sign,
    bits_of_count,
    magnitudes,
    modulo,
    pack_bits,
    to_levels,
)
from trifed.federation.sealed.proof import MEMBERS, SIGNED
from trifed.federation.sealed.rules import SumRules, SumTerms, sent_by
from trifed.federation.upload import RECEIVED, RESIDUAL, Memory
from trifed.methods.packing import Vector
from trifed.privacy import Noise

PENDING, OWN = "pending", "own rows"
"""Names in the memory: the change that no sum has yet; 1 for numbers that were no part of the last sum, else 0."""


@dataclass(frozen=True)
class SealedUploads:
    """The uploads of one client in a sealed run, in place of an `UploadPipeline`.

    Attributes:
        compression: Encoding of downloads, with the layout of what is summed.
        rules: The run's.
        held: Labels of which the client has training examples, (n_labels,); empty if labels do not matter.
    """

    compression: Compression
    rules: SumRules
    held: NDArray[np.bool_]

    @property
    def identity(self) -> str:
        """The encoder's name with its parameters."""
        noise, at_least = self.rules.noise, self.rules.at_least
        if noise is None:
            return f"error-feedback | sealed sum levels={self.rules.levels} at_least={at_least}"
        return f"clip={noise.clip:g} | discrete noise z={noise.multiplier:.4g} | sealed sum at_least={at_least}"

    def receive(self, values: Vector, memory: Memory) -> Memory:
        """Return the memory after a download, which is the reference of the next change.

        A change that no sum has, as that of a round with too few clients, is added to the next change. The numbers
        that the client keeps as its own have it already.
        """
        after = {name: vector for name, vector in memory.items() if name != PENDING} | {RECEIVED: values}
        if PENDING not in memory:
            return after
        own, owed = self.own(memory), memory.get(RESIDUAL, np.zeros_like(memory[PENDING]))
        change = memory[PENDING] if own is None else np.where(own, 0, memory[PENDING])
        return {**after, RESIDUAL: (owed + change).astype(np.float32)}

    def own(self, memory: Memory) -> NDArray[np.bool_] | None:
        """Return the numbers of which the client keeps its own, (n_values,); None if there are none."""
        return memory[OWN] > 0 if OWN in memory else None

    def encode(
        self, header: Header, values: Vector, reference: Vector, memory: Memory, part: Part | None = None
    ) -> tuple[None, Memory]:
        """Return no message, and the memory with the change, which waits for the terms of a sum.

        With noise in its sums, a change that is not finite becomes zeros. Who sends no part would reveal that its
        training has diverged, which depends on its data.

        Raises:
            MessageError: The change is not finite, so it would spoil a sum and later changes.
        """
        change = values - reference
        if not np.isfinite(change).all():
            if self.rules.noise:
                return None, {**memory, PENDING: np.zeros_like(change)}
            raise MessageError(f"{header}: the training has led to NaN or infinite numbers; nothing is sent of it")
        return None, {**memory, PENDING: change}

    def send(
        self,
        header: Header,
        sum_terms: SumTerms,
        memory: Memory,
        mask: Mask | None = None,
        sign: Sign | None = None,
        noise: Noise | None = None,
    ) -> tuple[bytes, Memory]:
        """Return the message with the client's part of a sum, and the memory after it.

        Args:
            header: The message's header; its round is 0 for the sum of label holders.
            sum_terms: The terms, checked.
            memory: The client's upload memory.
            mask: Adds the client's masks; None leaves the integers as they are, as in a simulated run.
            sign: Signs the masked integers of round 0; None for zeros in place of a signature.
            noise: Source of the noise, for a run with noise in its sums.

        Raises:
            MessageError: There is no change of this round to send, or nobody asks who holds a label.
        """
        clients, layout = len(sum_terms.clients), self.compression.layout
        arrays: dict[str, NDArray[np.generic]]
        if not header.round:
            if not len(self.held):
                raise MessageError(f"{header}: this run has no sum of label holders; nothing is sent")
            bits = bits_of_count(clients)
            held = _masked(self.held.astype(np.int64), bits, mask)
            signed = sign(held) if sign else (bytes(MEMBERS), bytes(SIGNED))
            members, signature = (np.frombuffer(each, np.uint8) for each in signed)
            arrays = {"sum": pack_bits(held, bits), "members": members, "signature": signature}
            return encode(header, arrays), memory
        if PENDING not in memory:
            raise MessageError(f"{header}: there is no trained change to send")
        bits = self.rules.bits(clients, layout)
        if self.rules.noise:
            return self._send_noised(header, bits, memory, mask, noise)
        sent = sent_by(self.held, self.rules, sum_terms, layout)
        residual = memory.get(RESIDUAL, np.zeros(len(sent), np.float32))
        change = np.where(sent, memory[PENDING] + residual, 0).astype(np.float32)
        step_of_each = self.rules.step_of_each(sum_terms, layout)
        levels = to_levels(change, step_of_each, self.rules.levels)
        means = magnitudes(change, sum_terms.steps, layout, clients)
        arrays = {
            "sum": pack_bits(_masked(levels, bits, mask), bits),
            "magnitudes": _masked(means, MAGNITUDE_BITS, mask).astype(np.uint16),
        }
        owed = np.where(sent, change - levels.astype(np.float32) * step_of_each, residual).astype(np.float32)
        after = {name: each for name, each in memory.items() if name not in (PENDING, OWN)} | {RESIDUAL: owed}
        own = _own_numbers(self.rules, sum_terms, self.compression)
        return encode(header, arrays), {**after, OWN: own} if own.any() else after

    def _send_noised(
        self, header: Header, bits: int, memory: Memory, mask: Mask | None, noise: Noise | None
    ) -> tuple[bytes, Memory]:
        """Return the message with the clipped and noised change, and the memory, where nothing is owed."""
        if self.rules.noise is None or noise is None:
            raise RunError("privacy.update: a sum needs noise, and this client has no source of it")
        change = memory[PENDING] + memory.get(RESIDUAL, np.zeros_like(memory[PENDING]))
        integers = self.rules.noise.noised(change, noise)
        after = {name: each for name, each in memory.items() if name not in (PENDING, RESIDUAL, OWN)}
        return encode(header, {"sum": pack_bits(_masked(integers, bits, mask), bits)}), after


def held_labels(labels: NDArray[np.int64], n_labels: int) -> NDArray[np.bool_]:
    """Return which of a run's labels some training labels, (n,), hold, (n_labels,)."""
    held = np.zeros(n_labels, bool)
    held[labels[(labels >= 0) & (labels < n_labels)] if n_labels else []] = True
    return held


def _masked(integers: NDArray[np.int64], bits: int, mask: Mask | None) -> Integers:
    plain = modulo(integers, bits)
    return plain if mask is None else mask(plain, bits)


def _own_numbers(rules: SumRules, sum_terms: SumTerms, compression: Compression) -> Vector:
    label = rules.label_of_each(compression.layout)
    return np.append(~rules.summed_labels(sum_terms), False)[label].astype(np.float32)
