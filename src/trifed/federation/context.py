"""Facts of a run that server and clients share: the method, and how messages are written and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from trifed.config.run import RunConfig
from trifed.config.settings import NO_SINGLE_LABEL
from trifed.federation.compression import Compression, make_compression
from trifed.federation.messages import Header, bytes_of_values, decode_values, encode_values
from trifed.federation.parts import Part, in_part
from trifed.federation.sealed.noise import SumNoise
from trifed.federation.sealed.rules import SumRules
from trifed.methods import AggregationSettings, Method
from trifed.methods.base import Options, directions
from trifed.methods.packing import Layout, Tensors, Vector, pack, select, unpack
from trifed.methods.summaries import NOISED_DIM, SUMMARY_DIM
from trifed.privacy import noise_multiplier


@dataclass(frozen=True)
class RunContext:
    """Facts of a run that all its messages depend on.

    Attributes:
        compression: encoding of uploads.
        downloads: encoding of downloads.
        exchanged: names and shapes of all tensors that are sent, received, or both.
        run: the run's identity.
        base: first 16 hex digits of the base model's fingerprint.
        rank: rank of the adapters.
        summary_dim: dimension of the means and variances in clients' data summaries.
        aggregation: the server's parts, with the bounds on uploads.
        sums: The rules of sealed sums; None for a run whose server sees single uploads.
    """

    method: Method
    options: Options
    compression: Compression
    downloads: Compression
    exchanged: Layout
    run: str
    base: str
    rank: int
    summary_dim: int = SUMMARY_DIM
    aggregation: AggregationSettings = field(default_factory=AggregationSettings)
    sums: SumRules | None = None

    def header(self, kind: str, number: int, client: int, examples: int = 0) -> Header:
        """Return the header of a message of this run; `number` is the round, 0 before the first."""
        return Header(kind, self.run, self.base, number, client, examples)

    def part(self, number: int) -> Part | None:
        """Return what the uploads of round `number` hold; None for all that the method sends.

        A method with turns sends everything in every round if its downloads hold other tensors.
        """
        if not self.method.turns or self.downloads.layout != self.compression.layout:
            return None
        part = Part.of(self.compression.layout, partial(self.method.in_turn, number))
        return None if part.places.all() else part

    def for_upload(self, number: int) -> Compression:
        """Return the encoding of the uploads of round `number`."""
        part = self.part(number)
        return in_part(self.compression, part) if part else self.compression

    def for_download(self, number: int, payload: bytes) -> Compression:
        """Return the encoding of a download with which round `number` begins.

        It holds what the round before has changed, or everything for a client that took no part in that round; its
        size says which. In a sealed run it holds all of it in full precision for a client that lacks the last one.
        """
        if self.sums is not None:
            whole = Compression(self.downloads.layout)
            return whole if bytes_of_values(payload) == sum(whole.sizes.values()) else self.downloads
        if not self.part(number - 1):
            return self.downloads
        changed = self.for_upload(number - 1)
        return changed if bytes_of_values(payload) == sum(changed.sizes.values()) else self.downloads

    @property
    def keeps_uploads(self) -> bool:
        """True if something is sent that no download holds: it is a change against the upload before."""
        return not set(self.compression.layout) <= set(self.downloads.layout)

    def upload_reference(self, start: Vector, received: Vector | None, sent: Vector | None = None) -> Vector:
        """Return the values that an upload is a change against, packed by the upload's layout.

        Args:
            start: The common start, packed by `exchanged`.
            received: The last download, packed by its layout; None before there was one.
            sent: The last upload as the server decoded it, for what no download holds; None before there was one.
        """
        if received is not None and self.downloads.layout == self.compression.layout:
            return received
        if received is None and sent is None:
            return select(start, self.exchanged, self.compression.layout)
        tensors = unpack(start, self.exchanged)
        for values, layout in ((sent, self.compression.layout), (received, self.downloads.layout)):
            tensors |= {} if values is None else unpack(values, layout)
        return pack(tensors, self.compression.layout)

    def download_reference(self, start: Vector, received: Vector | None) -> Vector:
        """Return the values that a download is a change against, packed by its layout; see `upload_reference`."""
        return select(start, self.exchanged, self.downloads.layout) if received is None else received


def run_context(
    config: RunConfig, layout: Layout, fingerprint: str, run: str | None = None, features: int = 0
) -> RunContext:
    """Return the context of a configured run.

    Args:
        config: The settings.
        layout: Names and shapes of all that is sent, received, or both.
        fingerprint: That of the base model.
        run: The run's identity; None for the one that follows from the settings.
        features: Number of the base model's features; it counts only if summaries are of raw features.
    """
    options, method = config.method.options(), config.composed_method()
    dim = features if options.raw_summary() else SUMMARY_DIM
    sent, received = directions(method, layout)
    return RunContext(
        method=method,
        options=options,
        compression=make_compression(sent, config.wire),
        downloads=make_compression(received, config.wire),
        exchanged=layout,
        run=run or config.run_id(),
        base=fingerprint[:16],
        rank=config.adapter.rank,
        summary_dim=NOISED_DIM if config.privacy.summary else dim,
        aggregation=config.aggregation,
        sums=sum_rules(config) if config.sealing.on else None,
    )


def sum_rules(config: RunConfig) -> SumRules:
    """Return the rules of a sealed run's sums."""
    sealing, update, noise = config.sealing, config.privacy.update, None
    by_label = config.aggregation.weights == "label-rows" and config.task not in NO_SINGLE_LABEL
    if update or config.privacy.training:
        by_label = False  # how many clients hold a label would be known without noise
    if update:
        z = noise_multiplier(update.epsilon, update.delta, config.rounds, in_sums=True)
        noise = SumNoise(update.clip, z, sealing.noise_clients)
    return SumRules(sealing.at_least, sealing.levels, config.training.learning_rate, by_label, noise)


def encode_tensors(header: Header, tensors: Tensors, layout: Layout) -> bytes:
    """Return a message with whole tensors in full precision, for use before the first round."""
    return encode_values(header, pack(tensors, layout))


def decode_tensors(payload: bytes, expected: Header, layout: Layout) -> tuple[Header, Tensors]:
    """Return header and tensors of a message of `encode_tensors`; raises as `messages.decode_values`."""
    header, values = decode_values(payload, expected, layout)
    return header, unpack(values, layout)
