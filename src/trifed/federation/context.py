"""What both sides of a run have agreed on: the method, and how messages are written and checked."""

from __future__ import annotations

from dataclasses import dataclass

from trifed.config.run import RunConfig
from trifed.federation.compression import Compression
from trifed.federation.messages import Header, decode_values, encode_values
from trifed.methods import Method
from trifed.methods.base import Options
from trifed.methods.packing import Layout, Tensors, pack, unpack
from trifed.methods.summaries import NOISED_DIM, SUMMARY_DIM


@dataclass(frozen=True)
class RunContext:
    """`wire`: how values travel; `run`: the run's identity; `base`: 16 digits of the base's fingerprint;
    `summary_dim`: of the projection that clients summarise their data in."""

    method: Method
    options: Options
    wire: Compression
    run: str
    base: str
    rank: int
    summary_dim: int = SUMMARY_DIM

    def header(self, kind: str, number: int, client: int, examples: int = 0) -> Header:
        """What a message of this run says of itself; `number`: of the round, 0 before the first."""
        return Header(kind, self.run, self.base, number, client, examples)


def run_context(config: RunConfig, layout: Layout, fingerprint: str, run: str | None = None) -> RunContext:
    """The terms of a configured run on a base model. `layout`: what travels; `run`: its identity."""
    return RunContext(
        method=config.composed_method(),
        options=config.method.options(),
        wire=Compression(layout, None if config.wire.bits == 32 else config.wire.bits),
        run=run or config.run_id(),
        base=fingerprint[:16],
        rank=config.adapter.rank,
        summary_dim=NOISED_DIM if config.privacy.summary else SUMMARY_DIM,
    )


def encode_tensors(header: Header, tensors: Tensors, layout: Layout) -> bytes:
    """A message of tensors in full, as they travel before the first round."""
    return encode_values(header, pack(tensors, layout))


def decode_tensors(payload: bytes, expected: Header, layout: Layout) -> tuple[Header, Tensors]:
    """The inverse; raises what `messages.decode_values` does."""
    header, values = decode_values(payload, expected, layout)
    return header, unpack(values, layout)
