"""An upload as a pipeline of small steps between a client's trained values and the message that leaves it.

::

    trained values → clip and noise → error feedback → encoder (full precision, or quantise) → message

Each step can be left out; without any, and with full precision, the message holds the trained values. A step's
attributes never change: its state lies in the client's upload memory, under a name of its own, so that it is saved
and restored with the client.

Uploads are weighted at the server, by the number of examples in a message's header. In a sealed run, whose server
sees only sums of equal weight, `sealed.upload.SealedUploads` takes the pipeline's place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trifed.federation.compression import Compression
from trifed.federation.messages import Header
from trifed.federation.parts import Part
from trifed.methods.packing import Tensors, Vector
from trifed.privacy import Noise, clipped

Memory = Tensors
"""Vectors that a client keeps between its uploads, by name, each (n_values,)."""

RECEIVED, RESIDUAL, SENT = "received", "owed", "sent"
"""Names in the memory, as checkpoints have them: the last download, the error of the last quantised upload, and
the last upload as the server decodes it."""


class UploadStep:
    """One step of an upload; this base changes nothing. All vectors are (n_values,).

    Attributes:
        identity: the step's name with its parameters.
        uses_reference: True if the step needs the values that the client received last.
    """

    identity: str = "identity"
    uses_reference: bool = False

    def apply(self, values: Vector, reference: Vector, round_number: int, memory: Memory) -> Vector:
        """Return the values that the next step gets."""
        return values

    def settle(self, wanted: Vector, delivered: Vector, memory: Memory) -> Memory:
        """Return the memory after an upload.

        Args:
            wanted: values that the encoder got.
            delivered: values that the receiver decodes.
            memory: the memory before the upload.
        """
        return memory


class ClipAndNoise(UploadStep):
    """Clips the change to the reference to an L2 norm and adds Gaussian noise to each number.

    Everything after this step is post-processing: an upload is a function of noised changes alone.
    """

    uses_reference = True

    def __init__(self, clip: float, multiplier: float, noise: Callable[[int], Noise]) -> None:
        """`clip`: largest L2 norm; `multiplier`: σ in units of `clip`; `noise`: its source in a round."""
        self.clip, self.multiplier, self.noise = clip, multiplier, noise
        self.identity = f"clip-and-noise clip={clip:g} z={multiplier:.4g}"

    def apply(self, values: Vector, reference: Vector, round_number: int, memory: Memory) -> Vector:
        """Return the reference plus the clipped and noised change to it."""
        noise = self.clip * self.multiplier * self.noise(round_number)(len(values))
        noised: Vector = (clipped(values - reference, self.clip) + noise).astype(np.float32)
        return reference + noised


class ErrorFeedback(UploadStep):
    """Adds the rounding error of the last upload to this one, so that no part of a change is lost for good.

    Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019 (arXiv 1901.09847). Over any number of rounds,
    delivered changes and the residual add up to the wanted changes.
    """

    identity = "error-feedback"

    def apply(self, values: Vector, reference: Vector, round_number: int, memory: Memory) -> Vector:
        """Return the values plus the residual."""
        return values + memory[RESIDUAL] if RESIDUAL in memory else values

    def settle(self, wanted: Vector, delivered: Vector, memory: Memory) -> Memory:
        """Return the memory with the new residual."""
        return {**memory, RESIDUAL: wanted - delivered}


class Uploads(Protocol):
    """Steps from a client's trained values to its upload: `UploadPipeline`, or `SealedUploads` in a sealed run."""

    @property
    def identity(self) -> str:
        """Names and parameters of all steps, in order."""

    def receive(self, values: Vector, memory: Memory) -> Memory:
        """Return the memory after a download."""

    def own(self, memory: Memory) -> NDArray[np.bool_] | None:
        """Return the received values in whose place the client keeps its own, (n_values,); None for none."""

    def encode(
        self, header: Header, values: Vector, reference: Vector, memory: Memory, part: Part | None = None
    ) -> tuple[bytes | None, Memory]:
        """Return the message of a round, or None if nothing leaves yet, and the memory after it."""


@dataclass(frozen=True)
class UploadPipeline:
    """All steps of a client's uploads, in order, and the encoder of the last values.

    Attributes:
        steps: The steps.
        compression: The encoder.
        keeps_sent: True if an upload is remembered, because the next one is a change against it.
    """

    steps: Sequence[UploadStep]
    compression: Compression
    keeps_sent: bool = False

    @property
    def identity(self) -> str:
        """Names and parameters of all steps, in order."""
        return " | ".join([*(step.identity for step in self.steps), self.compression.identity])

    def receive(self, values: Vector, memory: Memory) -> Memory:
        """Return the memory after a download: with its values, where a step or the encoder uses a reference."""
        needed = not self.compression.lossless or any(step.uses_reference for step in self.steps)
        return {**memory, RECEIVED: values} if needed else memory

    def own(self, memory: Memory) -> None:
        """Return None: all received values count."""

    def encode(
        self, header: Header, values: Vector, reference: Vector, memory: Memory, part: Part | None = None
    ) -> tuple[bytes, Memory]:
        """Return the message of a round and the memory after it.

        Args:
            header: the upload's header, with its round.
            values: the client's trained values, (n_values,).
            reference: values that client and server both have, (n_values,).
            memory: the client's upload memory.
            part: the tensors that the message holds, and that all steps are limited to; None: all.
        """
        if part is not None:
            inner = replace(self, compression=replace(self.compression, layout=part.layout))
            own = {name: part.take(vector) for name, vector in memory.items()}
            payload, after = inner.encode(header, part.take(values), part.take(reference), own)
            zeros = np.zeros_like(values)
            return payload, {name: part.put(v, memory.get(name, zeros)) for name, v in after.items()}
        for step in self.steps:
            values = step.apply(values, reference, header.round, memory)
        payload = self.compression.encode(header, values, reference)
        exact = self.compression.lossless
        delivered = values if exact else self.compression.decode(payload, header, reference)[1]
        for step in self.steps:
            memory = step.settle(values, delivered, memory)
        return payload, {**memory, SENT: delivered} if self.keeps_sent else memory


def upload_pipeline(
    steps: Sequence[UploadStep], compression: Compression, keeps_sent: bool = False
) -> UploadPipeline:
    """Return the given steps, with error feedback after them where the encoder loses something."""
    feedback = [] if compression.lossless else [ErrorFeedback()]
    return UploadPipeline([*steps, *feedback], compression, keeps_sent)
