"""Certificates and keys, by the cryptography package: TLS for the server, a key pair for each node."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trifed.common.errors import RunError

DAYS = 825
"""Days that a server's certificate is valid. Its authority's certificate is valid for ten years."""
CURVE = ec.SECP256R1()
"""Curve of all keys. A node sends its public key and a signature with every request, so their size counts."""


def write_authority(folder: Path, name: str) -> None:
    """Write `ca.pem` and `ca.key`: an authority that signs this federation's server, and nothing else."""
    key = ec.generate_private_key(CURVE)
    subject = _name(f"{name}, authority")
    made = (
        _certificate(subject, subject, key.public_key(), 3650)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_private(folder / "ca.key", key)
    (folder / "ca.pem").write_bytes(made.public_bytes(Encoding.PEM))


def write_server(folder: Path, name: str, hosts: Sequence[str]) -> None:
    """Write `server.pem` and `server.key`, signed by the folder's authority. `hosts`: its names and addresses."""
    authority = read_certificate(folder / "ca.pem")
    signer = read_private(folder / "ca.key")
    key = ec.generate_private_key(CURVE)
    made = (
        _certificate(_name(f"{name}, server"), authority.subject, key.public_key(), DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys(hosts)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    _write_private(folder / "server.key", key)
    (folder / "server.pem").write_bytes(made.public_bytes(Encoding.PEM))


def write_node_keys(folder: Path, name: str) -> None:
    """Write `NAME.key`, which stays here, and `NAME.pub`, which the server registers, both in OpenSSH's format."""
    key = ec.generate_private_key(CURVE)
    _write_private(folder / f"{name}.key", key, PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (folder / f"{name}.pub").write_bytes(public + f" {name}\n".encode())


def fingerprint(certificate: Path) -> str:
    """Return the SHA-256 of a certificate, for a comparison by telephone; RunError if the file holds none."""
    return read_certificate(certificate).fingerprint(hashes.SHA256()).hex(":")


def read_certificate(path: Path) -> x509.Certificate:
    """Return the certificate in a file; RunError if the file holds none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise RunError(
            f"{path}: no certificate; expected the ca.pem or server.pem that `trifed flower init` wrote"
        ) from error


def read_private(path: Path) -> Any:
    """Return the private key in a file of either format; RunError, which quotes nothing, if there is none."""
    content = path.read_bytes()
    load: Any = load_ssh_private_key if b"OPENSSH" in content[:40] else load_pem_private_key
    try:
        return load(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise RunError(f"{path}: no private key that can be read without a password; put it back") from None


def belongs(private: Path, public: Path) -> bool:
    """Return whether a private key belongs to a certificate or a `.pub` file; RunError if it holds no key."""
    key = read_private(private).public_key()
    if public.suffix == ".pub":  # may be gone: the server needs it once
        return (
            not public.exists() or key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) in public.read_bytes()
        )
    return bool(key == read_certificate(public).public_key())


def refuse_other_authority(made: x509.Certificate, authority: x509.Certificate) -> None:
    """Raise `RunError` if a certificate was not signed by an authority."""
    try:
        made.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise RunError("server.pem was not signed by the authority in ca.pem, so no site accepts it") from error


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_private(path: Path, key: ec.EllipticCurvePrivateKey, form: PrivateFormat = PrivateFormat.PKCS8) -> None:
    """Write a key that only its owner can read, from the first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, form, NoEncryption()))
