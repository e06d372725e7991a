"""The frozen projections that a method makes before round 1, as a client takes them."""

from __future__ import annotations

from trifed.federation.context import RunContext, decode_tensors
from trifed.federation.training.shared_model import SharedModel
from trifed.methods.packing import Layout, Tensors


def adapted_layout(shared_model: SharedModel) -> Layout:
    """Return names and shapes of the adapted layers' weights."""
    return tuple((name, tuple(weight.shape)) for name, weight in shared_model.adapted.items())


def receive_shared_projections(
    shared_model: SharedModel, context: RunContext, client: int, payload: bytes, layout: Layout
) -> Tensors:
    """Set the projections of the adapters to those in a message from the server, and return them.

    Raises:
        MessageError: the message is not of this run and client.
    """
    shared_projections = decode_tensors(payload, context.header("frames", 0, client), layout)[1]
    shared_model.set_shared_projections(shared_projections)
    return shared_projections
