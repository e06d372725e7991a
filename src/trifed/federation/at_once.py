"""How many clients of a simulated run share a forward and backward pass of local training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trifed.config.settings import TrainingSettings
from trifed.federation.client_update import ClientDataset
from trifed.federation.device_placement import device_and_precision
from trifed.federation.shared_model import SharedModel

VALUES = {
    ("cpu", torch.float32): 500_000,
    ("cpu", torch.bfloat16): 2_000_000,
    ("cuda", torch.float32): 64_000_000,
    ("cuda", torch.bfloat16): 64_000_000,
}
"""Values of a hidden layer up to which a larger batch pays, by device and precision.

They are examples x tokens x hidden size. On a CPU in float32 they come from `benchmarks/speed/stacks.py`: a larger
batch leaves the cache, and takes longer. With bfloat16 in hardware an example of MiniLM took 8.8, 5.9 and 5.4 ms
in batches of 16, 64 and 160 times 32 tokens. The values for GPUs are not measured.
"""


def clients_at_once(
    shared_model: SharedModel, datasets: Sequence[ClientDataset], settings: TrainingSettings
) -> int:
    """Return the number of clients that share a forward and backward pass of local training.

    It depends on the settings, the data and the type of device, never on a measurement, so that a run that is
    resumed gets the same numbers.
    """
    if settings.micro_batch or settings.gradient_checkpointing or not shared_model.can_stack:
        return 1  # memory is short, or the model does not allow more
    if settings.clients_at_once != "auto":
        return settings.clients_at_once
    lengths = np.concatenate([dataset.train.lengths for dataset in datasets])
    values = settings.batch_size * shared_model.model.hidden * (float(lengths.mean()) if len(lengths) else 1)
    device, precision = device_and_precision(shared_model.model, settings)
    return max(1, int(VALUES.get((device.type, precision), 0) / values))
