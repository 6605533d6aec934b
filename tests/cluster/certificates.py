"""The certificates of one cluster: an authority, and the pairs that it signs for servers and clients."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_FOR = datetime.timedelta(days=365)  # longer than any cluster is left running


@dataclass(frozen=True)
class KeyPair:
    """Two PEM files: a certificate and its private key."""

    certificate: Path
    key: Path


class Authority:
    """A new certificate authority with its files in `directory`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("distillchain-test-cluster", None)
        self.certificate = directory / "ca.crt"
        basic = x509.BasicConstraints(ca=True, path_length=None)
        signed = self._builder(self._name, self._key.public_key()).add_extension(basic, critical=True)
        self._write_certificate(self.certificate, signed)

    def issue(
        self, name: str, *, common_name: str, organization: str | None = None, hosts: Sequence[str] = ()
    ) -> KeyPair:
        """A pair <name>.crt, <name>.key, valid for a client and, for `hosts` (names and addresses), for a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        builder = self._builder(_name(common_name, organization), key.public_key()).add_extension(usage, critical=False)
        if hosts:
            builder = builder.add_extension(_alternative_names(hosts), critical=False)
        pair = KeyPair(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        self._write_certificate(pair.certificate, builder)
        write_key(pair.key, key)
        return pair

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            _dated(x509.CertificateBuilder())
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
        )

    def _write_certificate(self, path: Path, builder: x509.CertificateBuilder) -> None:
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def write_self_signed(directory: Path, *, hosts: Sequence[str]) -> KeyPair:
    """Write tls.crt and tls.key of a server whose certificate is its own authority. The key is RSA, as PKCS #1."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = _name(hosts[0], None)
    signed = (
        _dated(x509.CertificateBuilder())
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_alternative_names(hosts), critical=False)
        .sign(key, hashes.SHA256())
    )
    pair = KeyPair(directory / "tls.crt", directory / "tls.key")
    pair.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    write_key(pair.key, key)
    return pair


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    """Write the key as PEM, readable by its owner only."""
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )


def write_signing_key(directory: Path) -> Path:
    """Write the key that signs the tokens of service accounts."""
    path = directory / "service-accounts.key"
    write_key(path, ec.generate_private_key(ec.SECP256R1()))
    return path


def _name(common_name: str, organization: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _dated(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    # An hour tolerates a clock that is set back a little.
    return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + VALID_FOR)


def _alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_general_name(host) for host in hosts])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
