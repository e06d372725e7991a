"""Masks: they cancel exactly, one upload is uniform, and all uploads together give the sum and nothing else."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cryptography")  # of the extra `flower`

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from scipy import stats

from trifed.common.errors import MessageError, RunError
from trifed.privacy.masking import RoundKey, mask_context, masked, masks, sign, statement, stream, summed, verify


def keys_of(count):
    return [RoundKey.generate() for _ in range(count)]


def others_of(key, keys):
    return [other.public for other in keys if other is not key]


def all_masks(keys, bits, count=200, about=b"round 1"):
    return np.stack([masks(key, others_of(key, keys), about, count, bits) for key in keys])


def vectors(clients, bits, count=200, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, (clients, count), dtype=np.uint32)


# -- masks


@pytest.mark.parametrize("clients", range(2, 8))
@pytest.mark.parametrize("bits", [2, 5, 8, 13, 16, 18, 32])
def test_masks_cancel_exactly(clients, bits):
    values = vectors(clients, bits)
    uploads = [masked(v, m, bits) for v, m in zip(values, all_masks(keys_of(clients), bits), strict=True)]
    expected = values.astype(np.uint64).sum(0) % 2**bits
    np.testing.assert_array_equal(summed(uploads, bits), expected)
    assert max(int(upload.max()) for upload in uploads) < 2**bits


def test_masks_are_those_of_the_formula():
    """Recomputed with cryptography alone, from fixed private keys; the order of the others does not matter."""
    private = [X25519PrivateKey.from_private_bytes(bytes([place + 1]) * 32) for place in range(3)]
    public = [key.public_key() for key in private]
    raw = [key.public_bytes_raw() for key in public]
    expected = np.zeros(5, np.int64)
    for other in (1, 2):
        parts = [b"trifed pairwise mask 2", bytes(32), *sorted((raw[0], raw[other]))]
        info = len(parts).to_bytes(8) + b"".join(len(part).to_bytes(8) + part for part in parts)
        seed = HKDF(hashes.SHA256(), 32, None, info).derive(private[0].exchange(public[other]))
        words = Cipher(algorithms.ChaCha20(seed, bytes(16)), None).encryptor().update(bytes(10))
        expected += np.frombuffer(words, "<u2").astype(np.int64) * (1 if raw[0] < raw[other] else -1)
    for others in (raw[1:], raw[:0:-1]):
        np.testing.assert_array_equal(masks(RoundKey(private[0]), others, bytes(32), 5, 11), expected % 2**11)


def test_the_stream_is_that_of_rfc_8439():
    """Its test vector 1 of appendix A.1: key, nonce and counter 0."""
    expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a37"
    assert stream(bytes(32), 12, 32).astype("<u4").tobytes().hex() == expected
    assert stream(bytes(32), 24, 16).astype("<u2").tobytes().hex() == expected


@pytest.mark.parametrize("bits", [3, 5, 16])
def test_one_upload_is_uniform_and_says_nothing_of_what_is_in_it(bits):
    """Of 64,000 numbers that were all 0: by χ², and neighbours' differences too, which a repeated mask would show.

    With p below 1e-6 a right implementation fails about once in 300,000 runs.
    """
    keys = keys_of(3)
    upload = masked(np.zeros(64_000, np.uint32), all_masks(keys, bits, 64_000)[0], bits)
    for seen in (upload, upload[1:] ^ upload[:-1]):
        low = seen & 255 if bits > 8 else seen
        assert stats.chisquare(np.bincount(low, minlength=2 ** min(bits, 8))).pvalue > 1e-6
        assert stats.chisquare(np.bincount(seen >> max(bits - 8, 0), minlength=2 ** min(bits, 8))).pvalue > 1e-6


def test_the_server_and_all_but_two_learn_the_sum_of_two():
    """Two of five are honest. The keys of the three others remove their masks from the uploads of the two. A
    uniform stream is left on each, and cancels in their sum alone."""
    bits, keys = 8, keys_of(5)
    values = vectors(5, bits, 4000)
    uploads = [masked(v, m, bits) for v, m in zip(values, all_masks(keys, bits, 4000), strict=True)]
    left = []
    for honest in (0, 1):
        known = np.zeros(4000, np.int64)
        for bad in keys[2:]:
            pair = RoundKey(bad._private)  # the same key as in the round, known to its owner
            known -= masks(pair, [keys[honest].public], b"round 1", 4000, bits).astype(np.int64)
        left.append((uploads[honest].astype(np.int64) - known) % 2**bits)
    np.testing.assert_array_equal(
        (left[0] + left[1]) % 2**bits, (values[0].astype(np.int64) + values[1]) % 2**bits
    )
    for one, value in zip(left, values, strict=False):
        rest = (one - value) % 2**bits
        assert stats.chisquare(np.bincount(rest, minlength=2**bits)).pvalue > 1e-6


def test_no_other_combination_of_uploads_is_free_of_masks():
    keys, values = keys_of(4), vectors(4, 16)
    uploads = np.stack([masked(v, m, 16) for v, m in zip(values, all_masks(keys, 16), strict=True)]).astype(
        np.int64
    )
    for signs in itertools.product((-1, 0, 1), repeat=4):
        if len(set(signs)) == 1:
            continue
        combined = np.array(signs) @ (uploads - values) % 2**16
        assert (combined == 0).mean() < 0.05, signs


def test_every_part_of_a_context_gives_another_stream():
    members = [("berlin", bytes(32)), ("paris", b"\1" * 32)]
    plain = {"run": "tickets", "number": 1, "members": members, "array": "sum", "alike": [b"steps", b"reference"]}
    changed = [
        {"run": "ticket"}, {"number": 2}, {"array": "magnitudes"}, {"members": members[:1]}, {"alike": [b"steps"]},
        {"members": [("berlin", b"\1" * 32), ("paris", bytes(32))]}, {"alike": [b"stepsr", b"eference"]},
        {"members": [*members, ("rome", b"\2" * 32)]},
    ]  # fmt: skip
    made = [mask_context(**plain), *(mask_context(**{**plain, **change}) for change in changed)]
    assert len(set(made)) == len(made) and {len(one) for one in made} == {32}
    assert mask_context(**{**plain, "members": members[::-1]}) == made[0]
    keys = keys_of(2)
    streams = [masks(keys[0], [keys[1].public], one, 64, 16).tobytes() for one in made]
    assert len(set(streams)) == len(made)


def test_what_differs_between_clients_keeps_the_sum_closed():
    """A server that sends one client another reference gets a uniform vector in place of the sum."""
    keys = keys_of(3)
    listed = [(name, key.public) for name, key in zip("abc", keys, strict=True)]
    alike = [[b"same"], [b"same"], [b"other"]]
    about = [mask_context("run", 1, listed, "sum", one) for one in alike]
    uploads = [masks(key, others_of(key, keys), one, 4000, 8) for key, one in zip(keys, about, strict=True)]
    assert stats.chisquare(np.bincount(summed(uploads, 8), minlength=256)).pvalue > 1e-6


def test_the_page_about_it_runs_as_it_stands():
    page = (Path(__file__).resolve().parents[2] / "docs" / "sealed-details.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict = {}
    exec(example, found)  # our own page
    np.testing.assert_array_equal(found["total"], found["levels"].sum(0))


# -- what is refused


@pytest.mark.parametrize("key", [b"", b"short", bytes(32), b"\1" + bytes(31), bytes(33)])
def test_keys_that_cannot_be_used_are_refused(key):
    """0 and 1 are points of low order: the secret would be the same for everybody (RFC 7748, section 6.1)."""
    keys = keys_of(3)
    with pytest.raises(MessageError, match="invalid key"):
        masks(keys[0], [key, keys[1].public], b"", 4, 8)


def test_a_list_without_others_or_with_a_key_twice_is_refused():
    keys = keys_of(3)
    for others in ([], [keys[1].public] * 2, [keys[0].public, keys[1].public]):
        with pytest.raises(MessageError, match="others"):
            masks(keys[0], others, b"", 4, 8)
    masks(keys[0], others_of(keys[0], keys), b"", 4, 8)  # nothing that was refused is kept


def test_a_key_is_for_one_list_and_a_mask_for_one_vector():
    keys = keys_of(4)
    masks(keys[0], [key.public for key in keys[1:]], b"sum", 4, 8)
    masks(keys[0], [key.public for key in keys[:0:-1]], b"magnitudes", 4, 8)
    with pytest.raises(RunError, match="used before"):
        masks(keys[0], [key.public for key in keys[1:]], b"sum", 4, 8)
    with pytest.raises(RunError, match="another list"):
        masks(keys[0], [key.public for key in keys[1:3]], b"more", 4, 8)


@pytest.mark.parametrize("bits", [0, 33, -1])
def test_bits_are_in_range(bits):
    keys, zeros = keys_of(2), np.zeros(2, np.uint32)
    for call in (
        lambda: masks(keys[0], [keys[1].public], b"", 2, bits),
        lambda: masked(zeros, zeros, bits),
        lambda: summed([zeros], bits),
    ):
        with pytest.raises(RunError, match="1 to 32"):
            call()


def test_what_is_no_integer_modulo_2_to_the_bits_is_refused():
    zeros = np.zeros(2, np.uint32)
    for values, mask in ((zeros + np.uint32(8), zeros), (zeros, zeros[:1]), (zeros.astype(np.int64), zeros)):
        with pytest.raises(RunError, match="values"):
            masked(values, mask, 3)
    for uploads in ([], [zeros, zeros[:1]]):
        with pytest.raises(MessageError, match="uploads"):
            summed(uploads, 3)


# -- signatures


def test_a_signature_is_of_one_statement_by_one_key():
    private, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    plain = {"run": "tickets", "number": 3, "name": "berlin", "public": bytes(32)}
    made = statement(**plain)
    signature = sign(private, made)
    assert len(signature) == 64 and verify(private.public_key(), made, signature)
    changes = [{"run": "ticket"}, {"number": 4}, {"name": "paris"}, {"public": b"\1" * 32}]
    assert not any(verify(private.public_key(), statement(**{**plain, **one}), signature) for one in changes)
    assert not verify(other.public_key(), made, signature)
    bad = [b"", bytes(64), b"\xff" * 64, signature[:-1], signature + b"\0", signature[::-1]]
    assert not any(verify(private.public_key(), made, one) for one in bad)


def test_statements_of_other_parts_have_other_bytes():
    """Lengths are part of a statement: "ab" + "c" is not "a" + "bc"."""
    assert statement("ab", 1, "c", bytes(32)) != statement("a", 1, "bc", bytes(32))
    assert hashlib.sha256(statement("a", 1, "b", bytes(32))).digest() != mask_context(
        "a", 1, [("b", bytes(32))], "sum", []
    )
