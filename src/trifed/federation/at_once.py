"""The number of clients of a simulated run that train at the same time, in threads and in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trifed.config.settings import TrainingSettings
from trifed.federation.client_update import ClientDataset
from trifed.federation.training.device_placement import device_and_precision
from trifed.federation.training.parallel import AtOnce
from trifed.federation.training.shared_model import SharedModel

VALUES = {
    ("cpu", torch.float32): 250_000,
    ("cpu", torch.bfloat16): 1_000_000,
    ("cuda", torch.float32): 64_000_000,
    ("cuda", torch.bfloat16): 64_000_000,
}
"""Values of a hidden layer up to which more clients at the same time pay, by device and precision.

They are examples x tokens x hidden size, on a CPU for each of its cores. For a CPU in float32 they come from
`benchmarks/speed/stacks.py`: a larger batch leaves the cache, and takes longer. With bfloat16 in hardware an
example of MiniLM took 8.8, 5.9 and 5.4 ms in batches of 16, 64 and 160 times 32 tokens on two cores. The values
for GPUs are not measured.
"""

MOST_THREADS = 8
"""Most threads: only one of them at a time can do Python's share of the work. The number is not measured."""


def clients_at_once(
    shared_model: SharedModel, datasets: Sequence[ClientDataset], settings: TrainingSettings
) -> AtOnce:
    """Return how many clients train at the same time: in threads on a CPU, and in one forward and backward pass.

    It depends on the settings, the data and the device, never on a measurement, so that a run that is resumed on
    the same machine gets the same numbers.
    """
    if settings.micro_batch or settings.gradient_checkpointing or not shared_model.can_stack:
        return AtOnce()  # memory is short, or the model does not allow more
    device, precision = device_and_precision(shared_model.model, settings)
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    if settings.clients_at_once == "auto":
        lengths = np.concatenate([dataset.train.lengths for dataset in datasets])
        values = settings.batch_size * shared_model.model.hidden * (float(lengths.mean()) if len(lengths) else 1)
        clients = max(1, int(VALUES.get((device.type, precision), 0) * cores / values))
    else:
        clients = settings.clients_at_once
    threads = min(cores, MOST_THREADS, clients, max(1, len(datasets)))
    return AtOnce(threads, clients // threads)
