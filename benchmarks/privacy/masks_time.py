"""Seconds that one client's keys, signature and masks of a sealed round take, by the number of clients in its sum.

    python benchmarks/privacy/masks_time.py [--clients N ...] [--repeats N] [--out masks_time.json]

One client makes its key and signs it, checks the signatures of all others, and masks 16,896 numbers, which is the
core of rank 32 and a head of 12 labels on MiniLM. The others' keys and signatures are made before. One CPU core;
the median of the repeats with their minimum and maximum. Measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from trifed.privacy.masking import RoundKey, mask_context, masked, masks

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from records import environment

OUT = Path(__file__).resolve().parent / "masks_time.json"
NUMBERS = 16896
SIGNING = ec.ECDSA(hashes.SHA256())


def measure(clients: int, repeats: int, numbers: int = NUMBERS) -> dict[str, Any]:
    """Return seconds of one client's work in a round whose sum has so many clients."""
    bits = (2 * clients).bit_length()  # one level: sums from -clients to clients
    own = ec.generate_private_key(ec.SECP256R1())
    signers = [ec.generate_private_key(ec.SECP256R1()) for _ in range(clients - 1)]
    keys = [RoundKey.generate() for _ in signers]
    signed = [signer.sign(key.public, SIGNING) for signer, key in zip(signers, keys, strict=True)]
    values = np.random.default_rng(0).integers(0, 2**bits, numbers).astype(np.uint32)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        key = RoundKey.generate()
        own.sign(key.public, SIGNING)
        for signer, other, signature in zip(signers, keys, signed, strict=True):
            signer.public_key().verify(signature, other.public, SIGNING)
        members = [(f"site-{place}", each.public) for place, each in enumerate([key, *keys])]
        context = mask_context("run", 1, members, "sum", alike=[])
        mask = masks(key, [other.public for other in keys], context, count=numbers, bits=bits)
        masked(values, mask, bits)
        seconds.append(time.perf_counter() - began)
    return {
        "clients": clients, "numbers": numbers, "bits": bits, "repeats": repeats,
        "seconds": {
            "median": round(statistics.median(seconds), 4), "least": round(min(seconds), 4),
            "most": round(max(seconds), 4),
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[3, 10, 100, 1000])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    found = [measure(clients, given.repeats) for clients in given.clients]
    for each in found:
        print(f"{each['clients']} clients: {1000 * each['seconds']['median']:.1f} ms", flush=True)
    given.out.write_text(json.dumps({"rows": found, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
