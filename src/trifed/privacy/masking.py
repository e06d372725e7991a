"""Sums that a server can form without seeing what is summed: masks between pairs of clients that cancel.

After Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017
(https://eprint.iacr.org/2017/281), section 4, the version with one mask. Clients i < j agree on a seed s_ij that
the server does not know, and client i sends

    y_i = x_i + Σ_{j > i} PRG(s_ij) − Σ_{j < i} PRG(s_ji)    mod 2³²

Each y_i by itself is uniform; Σ y_i = Σ x_i. Where a client sends nothing, those that were paired with it reveal
the seeds of this one round, and the server takes its masks out.

A building block, in no engine yet: docs/secure-aggregation.md says what is missing against a server that lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt

from trifed.common.errors import MessageError, RunError

Words = npt.NDArray[np.uint32]
PURPOSE = b"trifed pairwise mask 1"
KEY = 32
"""Bytes of a public key, and of a seed."""


@dataclass(frozen=True)
class FixedPoint:
    """Numbers as integers, so that sums are exact: `limit`: the largest magnitude of one, `clients`: in a sum."""

    limit: float
    clients: int

    def __post_init__(self) -> None:
        if not 0 < self.limit < np.inf or self.clients < 1:
            raise RunError(f"got limit {self.limit} and {self.clients} clients, expected more than 0 of each")

    @property
    def scale(self) -> float:
        """Integers to one: the sum of all clients' largest numbers still fits 32 bits with a sign."""
        return ((2**31 - 1) // self.clients) / self.limit

    def encode(self, values: npt.NDArray[np.floating]) -> Words:
        """Values (n,) to integers modulo 2³², each off by at most half of 1 / `scale`.

        Raises:
            RunError: a value that is NaN, or over `limit`.
        """
        found = np.asarray(values, np.float64)
        if not (np.abs(found) <= self.limit).all():
            raise RunError(f"a value to sum is over {self.limit:g}, or no number; clip it, or raise the limit")
        return np.rint(found * self.scale).astype(np.int64).astype(np.uint32)

    def decode(self, total: Words) -> npt.NDArray[np.float64]:
        """A sum of at most `clients` such vectors, (n,)."""
        return total.view(np.int32) / self.scale


class Masker:
    """One client's side of one cluster in one run. `at_least`: m, the fewest clients whose sum it lets be seen.

    `run`: the run's name; keys are made for one run and never used again.
    """

    def __init__(self, run: str, at_least: int) -> None:
        x25519 = _cryptography().x25519
        self.run = run
        self.at_least = at_least
        self._private = x25519.X25519PrivateKey.generate()
        self.public: bytes = self._private.public_key().public_bytes_raw()
        self._secrets: dict[bytes, bytes] = {}
        self._told: dict[int, frozenset[bytes]] = {}
        self._masked: set[int] = set()

    def meet(self, publics: Iterable[bytes]) -> None:
        """Agree on a secret with everybody else of the cluster, whose public keys (32 bytes each) these are.

        Raises:
            MessageError: what is no key, a key twice, or fewer than `at_least` clients with this one.
        """
        others = [key for key in publics if key != self.public]
        if len(set(others)) != len(others):
            raise MessageError("a public key is there twice: two clients cannot have one; the cluster is refused")
        if len(others) + 1 < self.at_least:
            raise MessageError(f"{len(others) + 1} clients in the cluster, and this one wants {self.at_least}")
        x25519 = _cryptography().x25519
        try:
            known = {key: self._private.exchange(x25519.X25519PublicKey.from_public_bytes(key)) for key in others}
        except ValueError as error:  # of another length, or of a small group: then others know the secret
            raise MessageError(f"a public key cannot be used ({error}); the cluster is refused") from error
        self._secrets = known

    def mask(self, number: int, values: Words) -> Words:
        """What is sent in round `number` in the place of `values`, (n,): uniform to who knows no seed of it.

        Raises:
            RunError: a second time in a round (the difference would show), or before it has met the others.
        """
        if not self._secrets or number in self._masked:
            raise RunError(f"round {number}: a mask is for one vector, and for a cluster that was met")
        self._masked.add(number)
        masked = values.copy()
        for key in self._secrets:
            masked += signed(self.public, key, stream(self._seed(number, key), len(values)))
        return masked

    def reveal(self, number: int, dropped: Iterable[bytes]) -> dict[bytes, bytes]:
        """Seeds of round `number` with clients that sent nothing: by them it can be summed without these.

        It answers once a round: who says later that others were missing would get their uploads.

        Raises:
            MessageError: a client that is not in the cluster, too few would be left, or another answer was given.
        """
        gone = frozenset(dropped)
        if not gone <= set(self._secrets):
            raise MessageError(f"round {number}: a client that is not in the cluster; its seed is not revealed")
        if len(self._secrets) + 1 - len(gone) < self.at_least:
            raise MessageError(
                f"round {number}: without {len(gone)} of {len(self._secrets) + 1} clients the sum is of too few, "
                f"for this one wants {self.at_least}; no seed is revealed"
            )
        if self._told.setdefault(number, gone) != gone:
            raise MessageError(f"round {number}: others were missing when seeds were revealed; no more are")
        return {key: self._seed(number, key) for key in gone}

    def _seed(self, number: int, key: bytes) -> bytes:
        return _derived(self._secrets[key], self.run, number, self.public, key)


def summed(masked: Mapping[bytes, Words], revealed: Mapping[bytes, Mapping[bytes, bytes]] | None = None) -> Words:
    """The server's side: the sum of what the clients masked, (n,), by their public keys.

    `revealed`: by client that is there, its seeds with those that are not, as `Masker.reveal` gives them.

    Raises:
        MessageError: vectors of several lengths, or seeds that some of the clients did not reveal.
    """
    revealed = revealed or {}
    lengths = {len(values) for values in masked.values()}
    if len(lengths) != 1:
        raise MessageError(f"masked vectors of lengths {sorted(lengths)}, expected one length")
    gone = {key for seeds in revealed.values() for key in seeds}
    if any(set(revealed.get(key, {})) != gone for key in masked):
        raise MessageError("not every client revealed its seeds with all that are missing; without them is no sum")
    total = np.zeros(lengths.pop(), np.uint32)
    for key, values in masked.items():
        total += values
        for other, seed in revealed.get(key, {}).items():
            total -= signed(key, other, stream(seed, len(values)))
    return total


def stream(seed: bytes, count: int) -> Words:
    """PRG: the first `count` words of ChaCha20 (RFC 8439) under a seed of 32 bytes that nothing else uses."""
    ciphers = _cryptography().ciphers
    keystream = ciphers.Cipher(ciphers.algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return np.frombuffer(keystream.update(bytes(4 * count)), "<u4").astype(np.uint32)


def signed(mine: bytes, other: bytes, mask: Words) -> Words:
    """The mask as the first of two clients adds it; the other, by its key, takes it away."""
    return mask if mine < other else np.negative(mask)


def _derived(secret: bytes, run: str, number: int, one: bytes, other: bytes) -> bytes:
    """HKDF (RFC 5869, SHA-256) of a pair's secret, for one run and round: no other seed follows from it."""
    crypto = _cryptography()
    name = run.encode()
    info = b"".join([PURPOSE, len(name).to_bytes(4), name, number.to_bytes(8), *sorted((one, other))])
    seed: bytes = crypto.hkdf.HKDF(crypto.hashes.SHA256(), KEY, None, info).derive(secret)
    return seed


@dataclass(frozen=True)
class _Crypto:
    x25519: ModuleType
    ciphers: ModuleType
    hashes: ModuleType
    hkdf: ModuleType


def _cryptography() -> _Crypto:
    """Of the extra `flower`, hence not there for everybody."""
    try:
        from cryptography.hazmat.primitives import ciphers, hashes
        from cryptography.hazmat.primitives.asymmetric import x25519
        from cryptography.hazmat.primitives.kdf import hkdf
    except ImportError as error:
        raise RunError("masks need cryptography, which is not installed: pip install 'trifed[flower]'") from error
    return _Crypto(x25519, ciphers, hashes, hkdf)
