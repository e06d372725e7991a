"""The protection of one client's releases: a set of hooks that do nothing, or noise and a ledger.

`Client` calls every hook in every run. `NoPrivacy` leaves all numbers exact; `dp_mechanism.DpMechanism` has noise
where the run's [privacy] asks for it, and enters every release in a ledger before it leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trifed.federation.training.dp_sgd import DpSgd
from trifed.federation.upload import UploadStep
from trifed.privacy import Noise
from trifed.similarity import Summary

Labels = NDArray[np.int64]
FeaturesAndLabels = Callable[[], tuple[NDArray[np.float64], Labels]]


class ClientPrivacy:
    """Hooks at every place where something about a client's data leaves it; this base protects nothing.

    Attributes:
        active: False if releases are exact. Else a site reports no exact fact about its data, and answers a
            repeated request with the same bytes.
    """

    active = False

    # -- before the first round

    def num_examples(self, exact: int) -> int:
        """Return the number of training examples that the client states in its messages."""
        return exact

    def labels(self, exact: Labels) -> Labels:
        """Return the labels, (n,), that the method may derive the client's initial tensors from."""
        return exact

    def summary(
        self, data_id: str, num_labels: int, data: FeaturesAndLabels, exact: Callable[[], Summary]
    ) -> Summary:
        """Return the data summary to release.

        Args:
            data_id: hash of the data; the same data get the same noised summary.
            num_labels: number of public labels.
            data: makes projected features, (n, dim), and labels, (n,).
            exact: makes the summary without noise.
        """
        return exact()

    def on_reopen(self, *, has_summary: bool) -> None:
        """Note that the server has opened this client before; `has_summary`: the method releases summaries."""

    def on_state_lost(self) -> None:
        """Note that the client's state was lost or rolled back, so its ledger may be incomplete."""

    # -- rounds

    def check(self, round_number: int) -> None:
        """Check before training that the budget allows a round's upload.

        Raises:
            RunError: the budget has nothing left for it.
        """

    def dp_sgd(self, round_number: int, batch_size: int) -> DpSgd | None:
        """Return the private training step of a round; None to train without noise."""
        return None

    def upload_steps(self) -> Sequence[UploadStep]:
        """Return the steps that protect an upload."""
        return ()

    def sum_noise(self, round_number: int) -> Noise | None:
        """Return the source of the client's share of the noise in a sealed sum; None for a sum without noise."""
        return None

    def on_trained(self, round_number: int) -> None:
        """Enter the training of a sealed round in the ledger, before its result is kept.

        Raises:
            RunError: it would exceed the budget, and must not be kept.
        """

    def on_release(self, round_number: int, payload: bytes) -> None:
        """Enter an upload in the ledger, before it leaves.

        Raises:
            RunError: it would exceed the budget, and must not leave.
        """


class NoPrivacy(ClientPrivacy):
    """Releases are exact and are not counted."""
