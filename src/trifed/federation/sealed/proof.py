"""The proof of a sum of label holders: the masked part of each client, with its site's signature.

How many clients hold a label decides which rows of the head are summed. If the server alone said it, it could say
that all hold a label of one client, and the row of the sum would be that client's own. So the server sends all
parts to every client, and each one adds them up itself. A part is masked: alone it shows nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import MessageError
from trifed.federation.sealed.numbers import bits_of_count

MEMBERS = 32
"""Bytes of the digest of what the sites of a sum were given."""
SIGNED = 64
"""Bytes of a signature."""
PROOF: dict[str, type[np.generic]] = {
    "proof_names": np.uint8,
    "proof_members": np.uint8,
    "proof_parts": np.uint16,
    "proof_signatures": np.uint8,
}
"""Arrays of a proof in a message, and their types."""


@dataclass(frozen=True)
class OpeningProof:
    """The proof of one sum of label holders.

    Attributes:
        names: Names of the clients of that sum, (k,), in the order of their indices.
        members: Digest of what all sites of that sum were given, (32,), see `members_digest`.
        parts: Masked integers modulo 2^bits, (k, n_labels).
        signatures: Each client's signature on its part and this digest, (k, 64).
    """

    names: Sequence[str]
    members: NDArray[np.uint8]
    parts: NDArray[np.uint16]
    signatures: NDArray[np.uint8]

    def holders(self) -> NDArray[np.int64]:
        """Return how many of the clients hold each label, (n_labels,)."""
        total: NDArray[np.int64] = self.parts.sum(axis=0, dtype=np.int64) % (1 << bits_of_count(len(self.names)))
        return total

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the proof as arrays of a message."""
        return {
            "proof_names": np.frombuffer(json.dumps(list(self.names)).encode(), np.uint8),
            "proof_members": self.members.astype(np.uint8),
            "proof_parts": self.parts.astype(np.uint16),
            "proof_signatures": self.signatures.astype(np.uint8),
        }


def no_proof() -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a message without a proof, all of them empty."""
    return {name: np.zeros(0, dtype) for name, dtype in PROOF.items()}


def read_proof(arrays: Mapping[str, NDArray[np.generic]], clients: int, labels: int) -> OpeningProof | None:
    """Return the proof in a message's arrays; None if there is none.

    Args:
        arrays: The message's arrays, of the types in `PROOF`.
        clients: Clients of the sum of label holders.
        labels: Number of labels.

    Raises:
        MessageError: The arrays are no proof of a sum of so many clients and labels.
    """
    if not any(arrays[name].size for name in PROOF):
        return None
    try:
        names = json.loads(arrays["proof_names"].tobytes())
    except (ValueError, RecursionError) as error:
        raise MessageError(f"'proof_names' is no JSON ({error}); it is refused") from error
    if not isinstance(names, list) or len(names) != clients or not all(isinstance(name, str) for name in names):
        raise MessageError(f"'proof_names' is no list of {clients} names; it is refused")
    wanted = {
        "proof_members": (MEMBERS,),
        "proof_parts": (clients, labels),
        "proof_signatures": (clients, SIGNED),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise MessageError(f"'{name}' is {arrays[name].shape}, expected {shape}; it is refused")
    return OpeningProof(
        tuple(names),
        arrays["proof_members"].astype(np.uint8),
        arrays["proof_parts"].astype(np.uint16),
        arrays["proof_signatures"].astype(np.uint8),
    )


def members_digest(names: Sequence[str], keys: NDArray[np.uint8], alike: Sequence[bytes]) -> bytes:
    """Return the digest of what the sites of a sum were given, 32 bytes.

    If all sites have signed one digest, their masks cancel, and the sum of their parts is the number of holders.
    With unlike terms at one site the sum would be a random number, which can look like a true one by chance.

    Args:
        names: Names of the sites, in the order of the list.
        keys: Public keys of the round, (n, 32).
        alike: All else that the masks depend on.
    """
    given = [list(names), keys.tobytes().hex(), [each.hex() for each in alike]]
    return hashlib.sha256(json.dumps(given).encode()).digest()


def part_bytes(part: NDArray[np.generic]) -> bytes:
    """Return the bytes of a part, (n_labels,), as they are signed."""
    return part.astype("<u2").tobytes()
