"""Secure sums: pairwise masks that cancel, so that a server sees the sum of uploads but no single upload.

After Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017
(https://eprint.iacr.org/2017/281), section 4, the version with one mask. Clients i < j agree on a seed s_ij that
the server does not know, and client i sends

    y_i = x_i + Σ_{j > i} PRG(s_ij) − Σ_{j < i} PRG(s_ji)    mod 2³²

Each y_i by itself is uniform; Σ y_i = Σ x_i. If a client sends nothing, its peers reveal their seeds with it for
this one round, and the server removes its masks.

No engine uses this module yet; docs/secure-aggregation.md lists what is missing against a dishonest server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt

from trifed.common.errors import MessageError, RunError

Words = npt.NDArray[np.uint32]
PURPOSE = b"trifed pairwise mask 1"
KEY = 32
"""Bytes of a public key, and of a seed."""


@dataclass(frozen=True)
class FixedPoint:
    """Encoding of numbers of magnitude at most `limit` as integers, for exact sums over `clients` clients."""

    limit: float
    clients: int

    def __post_init__(self) -> None:
        if not 0 < self.limit < np.inf or self.clients < 1:
            raise RunError(f"limit, clients: got {self.limit} and {self.clients}, expected more than 0 of each")

    @property
    def scale(self) -> float:
        """The integer for 1.0, such that the sum of all clients' largest numbers fits 32 bits with a sign."""
        return ((2**31 - 1) // self.clients) / self.limit

    def encode(self, values: npt.NDArray[np.floating]) -> Words:
        """Convert values (n,) to integers modulo 2³², with an error of at most 0.5 / `scale`.

        Raises:
            RunError: A value is NaN, or exceeds `limit`.
        """
        exact = np.asarray(values, np.float64)
        if not (np.abs(exact) <= self.limit).all():
            raise RunError(f"values: got one over {self.limit:g} or NaN; clip the values, or raise the limit")
        return np.rint(exact * self.scale).astype(np.int64).astype(np.uint32)

    def decode(self, total: Words) -> npt.NDArray[np.float64]:
        """Convert a sum of at most `clients` encoded vectors back, (n,)."""
        return total.view(np.int32) / self.scale


class Masker:
    """One client's side of secure sums in one cluster of one run."""

    def __init__(self, run: str, at_least: int) -> None:
        """Generate a key pair for this run only.

        Args:
            run: The run's name.
            at_least: m, the fewest clients whose sum may be revealed.
        """
        self.run = run
        self.at_least = at_least
        self._private = _cryptography().x25519.X25519PrivateKey.generate()
        self.public: bytes = self._private.public_key().public_bytes_raw()
        self._secrets: dict[bytes, bytes] = {}
        self._revealed: dict[int, frozenset[bytes]] = {}
        self._masked: set[int] = set()

    def meet(self, publics: Iterable[bytes]) -> None:
        """Agree on a secret with each other client of the cluster from its public key (32 bytes).

        Raises:
            MessageError: An invalid key, a repeated key, or fewer than `at_least` clients including this one.
        """
        others = [key for key in publics if key != self.public]
        if len(set(others)) != len(others):
            raise MessageError("publics: got a public key twice, expected one per client; the cluster is rejected")
        if len(others) + 1 < self.at_least:
            raise MessageError(f"publics: got {len(others) + 1} clients, expected at least {self.at_least}")
        as_key = _cryptography().x25519.X25519PublicKey.from_public_bytes
        try:
            self._secrets = {key: self._private.exchange(as_key(key)) for key in others}
        except ValueError as error:  # another length, or a small subgroup, where others could compute the secret
            raise MessageError(f"publics: got an invalid key ({error}); the cluster is rejected") from error

    def mask(self, number: int, values: Words) -> Words:
        """Mask `values`, (n,), for round `number`; the result is uniform without knowledge of the seeds.

        Raises:
            RunError: A second call for a round, which would reveal the difference, or a call before `meet`.
        """
        if not self._secrets or number in self._masked:
            raise RunError(f"round {number}: expected one vector per round, after `meet`")
        self._masked.add(number)
        masked = values.copy()
        for key in self._secrets:
            masked += signed(self.public, key, stream(self._seed(number, key), len(values)))
        return masked

    def reveal(self, number: int, dropped: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the seeds of round `number` with clients that sent nothing, so that the others can be summed.

        A second set of dropped clients in a round is rejected, because it would reveal uploads.

        Raises:
            MessageError: A client that is not in the cluster, too few remaining clients, or a second set.
        """
        gone = frozenset(dropped)
        if not gone <= set(self._secrets):
            raise MessageError(f"round {number}: got a client that is not in the cluster; no seed is revealed")
        if len(self._secrets) + 1 - len(gone) < self.at_least:
            raise MessageError(
                f"round {number}: got {len(gone)} dropped of {len(self._secrets) + 1} clients, expected at least "
                f"{self.at_least} in the sum; no seed is revealed"
            )
        if self._revealed.setdefault(number, gone) != gone:
            raise MessageError(f"round {number}: seeds were revealed for other dropped clients; no more are")
        return {key: self._seed(number, key) for key in gone}

    def _seed(self, number: int, key: bytes) -> bytes:
        return _derived(self._secrets[key], self.run, number, self.public, key)


def summed(masked: Mapping[bytes, Words], revealed: Mapping[bytes, Mapping[bytes, bytes]] | None = None) -> Words:
    """Return the sum of the clients' vectors, (n,), from their masked vectors; the server's side.

    Args:
        masked: Masked vector by public key.
        revealed: For each client in `masked`, its seeds with the dropped clients, from `Masker.reveal`.

    Raises:
        MessageError: Vectors of different lengths, or seeds that some clients did not reveal.
    """
    revealed = revealed or {}
    lengths = {len(values) for values in masked.values()}
    if len(lengths) != 1:
        raise MessageError(f"masked: got vectors of lengths {sorted(lengths)}, expected one length")
    gone = {key for seeds in revealed.values() for key in seeds}
    if any(set(revealed.get(key, {})) != gone for key in masked):
        raise MessageError("revealed: expected every client's seeds with all dropped clients; there is no sum")
    total = np.zeros(lengths.pop(), np.uint32)
    for key, values in masked.items():
        total += values
        for other, seed in revealed.get(key, {}).items():
            total -= signed(key, other, stream(seed, len(values)))
    return total


def stream(seed: bytes, count: int) -> Words:
    """Return the first `count` words of ChaCha20 (RFC 8439) for a seed of 32 bytes that has no other use."""
    ciphers = _cryptography().ciphers
    keystream = ciphers.Cipher(ciphers.algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return np.frombuffer(keystream.update(bytes(4 * count)), "<u4").astype(np.uint32)


def signed(mine: bytes, other: bytes, mask: Words) -> Words:
    """Return the mask with the sign for `mine`: of two clients the one with the smaller key adds it."""
    return mask if mine < other else np.negative(mask)


def _derived(secret: bytes, run: str, number: int, one: bytes, other: bytes) -> bytes:
    """Derive the seed of one run and round from a pair's secret by HKDF (RFC 5869, SHA-256)."""
    crypto = _cryptography()
    name = run.encode()
    info = b"".join([PURPOSE, len(name).to_bytes(4), name, number.to_bytes(8), *sorted((one, other))])
    return bytes(crypto.hkdf.HKDF(crypto.hashes.SHA256(), KEY, None, info).derive(secret))


def _cryptography() -> SimpleNamespace:
    """Return the needed modules of cryptography, which only the extra `flower` installs."""
    try:
        from cryptography.hazmat.primitives import ciphers, hashes
        from cryptography.hazmat.primitives.asymmetric import x25519
        from cryptography.hazmat.primitives.kdf import hkdf
    except ImportError as error:
        raise RunError(
            "masking: needs cryptography, which is not installed: pip install 'trifed[flower]'"
        ) from error
    return SimpleNamespace(x25519=x25519, ciphers=ciphers, hashes=hashes, hkdf=hkdf)
