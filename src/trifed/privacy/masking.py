"""Sealed sums: pairwise masks that cancel, so that a server sees the sum of uploads but no single upload.

After Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017
(https://eprint.iacr.org/2017/281), section 4, the version with one mask. Clients i and j of a list agree on a
secret that the server does not know, from keys that live for one round. Client i sends, modulo 2^bits,

    y_i = x_i + Σ_{j: key_i < key_j} stream_ij − Σ_{j: key_j < key_i} stream_ij

Each y_i alone is uniform, and Σ y_i = Σ x_i over the whole list. If one client of the list sends nothing, the
masks do not cancel and the sum is lost; no secret is ever revealed to repair it. So a server gains nothing by
saying that a client dropped out.

The streams also depend on everything that all clients of a list must have received alike (`mask_context`). If a
server sends different values to different clients, the masks do not cancel. Without this, it could make all
uploads but one predictable: Pasquini et al., "Eluding Secure Aggregation in Federated Learning via Model
Inconsistency", CCS 2022 (https://arxiv.org/abs/2111.07380).

All primitives are those of the package cryptography, which the extra `flower` installs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, utils, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from trifed.common.errors import MessageError, RunError

Integers = npt.NDArray[np.uint32]
"""Integers modulo 2^bits, (n,)."""
Array = Literal["sum", "magnitudes"]
MASK_PURPOSE = b"trifed pairwise mask 2"
LIST_PURPOSE = b"trifed list of a sum 1"
KEY_PURPOSE = b"trifed key of a round 1"
PART_PURPOSE = b"trifed part of a sum of label holders 1"
KEY_BYTES = 32
"""Bytes of a public key of a round."""
SIGNATURE_BYTES = 64
"""Bytes of a signature: r and s of ECDSA on the curve P-256, 32 bytes each."""
HALF = SIGNATURE_BYTES // 2
MOST_BITS = 32


class RoundKey:
    """A client's key pair for one round. It lives in memory only, and makes masks for one list of clients only."""

    def __init__(self, private: x25519.X25519PrivateKey) -> None:
        """Wrap a private key, which must not be used for another round."""
        self._private = private
        self.public: bytes = private.public_key().public_bytes_raw()
        self._secrets: dict[bytes, bytes] = {}
        self._used: set[bytes] = set()

    @classmethod
    def generate(cls) -> RoundKey:
        """Return a new random key pair."""
        return cls(x25519.X25519PrivateKey.generate())

    def secrets(self, others: Sequence[bytes], context: bytes) -> dict[bytes, bytes]:
        """Return the secret with each other client by its public key; for `masks` only.

        Raises:
            MessageError: No other client, an invalid key, a repeated key or this client's own key.
            RunError: The context was used before, or another list of clients.
        """
        if not others:
            raise MessageError("others: got no other client's key; without a mask the upload would be readable")
        if len({self.public, *others}) != len(others) + 1:
            raise MessageError("others: got a key twice, or this client's own; expected each other client's once")
        if self._secrets and set(others) != set(self._secrets):
            raise RunError("others: got another list than before, expected one list for each key of a round")
        if context in self._used:
            raise RunError(
                "context: got one that was used before; two vectors with one mask reveal their difference"
            )
        if not self._secrets:
            try:
                public = {key: x25519.X25519PublicKey.from_public_bytes(key) for key in others}
                self._secrets = {key: self._private.exchange(public[key]) for key in others}
            except (
                ValueError
            ) as error:  # another length, or a point of low order: anybody could compute the secret
                raise MessageError(f"others: got an invalid key ({error}); the list is rejected") from error
        self._used.add(context)
        return self._secrets


def mask_context(
    run: str, number: int, members: Iterable[tuple[str, bytes]], array: Array, alike: Sequence[bytes]
) -> bytes:
    """Return the bytes that the streams of one array of one sum depend on, 32 bytes.

    Args:
        run: The run's name, unique among all runs of these sites.
        number: The round.
        members: Name and public key of each client of the sum, this client included, in any order.
        array: The array to be masked.
        alike: Everything else that all clients of the list must have received alike, such as the terms of the sum
            and the reference vector. If a server sends different ones, the masks do not cancel.
    """
    listed = [part for name, public in sorted(members) for part in (name.encode(), public)]
    parts = [run.encode(), number.to_bytes(8), array.encode(), _joined(listed), _joined(alike)]
    return hashlib.sha256(_joined([LIST_PURPOSE, *parts])).digest()


def masks(key: RoundKey, others: Sequence[bytes], context: bytes, count: int, bits: int) -> Integers:
    """Return the client's total mask, (count,) modulo 2^bits. Over all clients of a list the masks sum to 0.

    Args:
        key: This client's key of the round.
        others: The other clients' public keys, 32 bytes each, in any order.
        context: See `mask_context`; each one is used once.
        count: Number of integers.
        bits: Bits of an integer, 1 to 32.

    Raises:
        MessageError: See `RoundKey.secrets`.
        RunError: See `RoundKey.secrets`; or bits out of range.
    """
    _check_bits(bits)
    total = np.zeros(count, np.uint32)
    for other, secret in key.secrets(others, context).items():
        info = _joined([MASK_PURPOSE, context, *sorted((key.public, other))])
        words = stream(HKDF(SHA256(), KEY_BYTES, None, info).derive(secret), count, bits)
        if key.public < other:
            total += words
        else:
            total -= words
    return total & _largest(bits)


def stream(seed: bytes, count: int, bits: int) -> Integers:
    """Return uniform integers modulo 2^bits, (count,), by ChaCha20 (RFC 8439).

    Args:
        seed: 32 bytes that have no other use.
        count: Number of integers.
        bits: Bits of an integer; up to 16, each takes two bytes of the stream, otherwise four.
    """
    width = "<u2" if bits <= 16 else "<u4"
    keystream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    words = np.frombuffer(keystream.update(bytes(np.dtype(width).itemsize * count)), width)
    return words.astype(np.uint32) & _largest(bits)


def masked(values: Integers, mask: Integers, bits: int) -> Integers:
    """Return values plus mask modulo 2^bits, (n,).

    Raises:
        RunError: Another shape of the mask, or a value that is not below 2^bits.
    """
    _check_bits(bits)
    if values.dtype != np.uint32 or mask.shape != values.shape or (values > _largest(bits)).any():
        raise RunError(
            f"values: got {values.dtype} {values.shape} and a mask {mask.shape}, expected uint32 below 2^{bits}, "
            f"and a mask of the same shape"
        )
    return (values + mask) & _largest(bits)


def summed(uploads: Sequence[Integers], bits: int) -> Integers:
    """Return the sum of the clients' masked integers modulo 2^bits, (n,); the server's side.

    Raises:
        MessageError: No upload, or uploads of different lengths.
        RunError: Bits out of range.
    """
    _check_bits(bits)
    lengths = {len(values) for values in uploads}
    if len(lengths) != 1:
        raise MessageError(f"uploads: got vectors of lengths {sorted(lengths)}, expected one length")
    total = np.zeros(lengths.pop(), np.uint32)
    for values in uploads:
        total += values
    return total & _largest(bits)


def statement(run: str, number: int, name: str, public: bytes) -> bytes:
    """Return the bytes that a site signs: this key is that of the client `name` for one round of one run."""
    return _joined([KEY_PURPOSE, run.encode(), number.to_bytes(8), name.encode(), public])


def part_statement(run: str, names: Sequence[str], members: bytes, part: bytes) -> bytes:
    """Return the bytes that a site signs: this is its masked part of a run's sum of label holders.

    Args:
        run: The run's name.
        names: Names of the clients of the sum, in the order of its list.
        members: Digest of the list, with the keys of the round, 32 bytes.
        part: The masked part.
    """
    return _joined([PART_PURPOSE, run.encode(), members, *(name.encode() for name in names), part])


def sign(private: ec.EllipticCurvePrivateKey, statement: bytes) -> bytes:
    """Return the signature of a statement by a site's own key, 64 bytes: r and s of ECDSA (P-256, SHA-256)."""
    r, s = utils.decode_dss_signature(private.sign(statement, ec.ECDSA(SHA256())))
    return r.to_bytes(HALF) + s.to_bytes(HALF)


def verify(public: ec.EllipticCurvePublicKey, statement: bytes, signature: bytes) -> bool:
    """Return whether a signature of 64 bytes is that of a statement by the key that belongs to `public`."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    r, s = int.from_bytes(signature[:HALF]), int.from_bytes(signature[HALF:])
    try:
        public.verify(utils.encode_dss_signature(r, s), statement, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _joined(parts: Sequence[bytes]) -> bytes:
    """Return parts as one text that no other parts have: their number, then each with its length before it."""
    lengths = [len(parts), *map(len, parts)]
    head, *rest = (length.to_bytes(8) for length in lengths)
    return head + b"".join(length + part for length, part in zip(rest, parts, strict=True))


def _largest(bits: int) -> np.uint32:
    return np.uint32(2**bits - 1)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MOST_BITS:
        raise RunError(f"bits: got {bits}, expected 1 to {MOST_BITS}")
