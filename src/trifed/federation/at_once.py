"""How many clients train in the same passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trifed.config.settings import TrainingSettings
from trifed.federation.client_update import ClientDataset
from trifed.federation.shared_model import SharedModel

VALUES = {"cpu": 4_000_000, "cuda": 64_000_000}
"""Hidden values of a layer, examples x tokens x hidden size, up to which a larger batch pays, by type of device.

From `benchmarks/speed/stacks.py`: beyond that an example takes no less time, and a batch more memory.
"""


def clients_at_once(
    shared_model: SharedModel, datasets: Sequence[ClientDataset], settings: TrainingSettings
) -> int:
    """Return the number of clients that train in the same passes.

    It depends on the settings, the data and the type of device, never on a measurement, so that a run that is
    resumed gets the same numbers.
    """
    if settings.micro_batch or settings.gradient_checkpointing or not shared_model.can_stack:
        return 1  # memory is short, or the model does not allow more
    if settings.clients_at_once != "auto":
        return settings.clients_at_once
    lengths = np.concatenate([dataset.train.lengths for dataset in datasets])
    values = settings.batch_size * shared_model.model.hidden * (float(lengths.mean()) if len(lengths) else 1)
    return max(1, int(VALUES[shared_model.device.type] / values))
