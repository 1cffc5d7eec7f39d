"""The offline certificate authority of one pool, kept in the coordinator's state directory.

It signs three kinds of certificates: *coordinator* (may serve), *node* and *operator* (may only call). Who
may have one is the coordinator's decision. A revoked name is refused by the coordinator's own list; lives are
short instead of revocation lists.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medley.protocol.errors import PeerError, UserError
from medley.protocol.ids import NS_PER_S
from medley.transports.identity.certificates import (
    CLOCK_ALLOWANCE_S,
    ROLES,
    SCHEME,
    check_name,
    fingerprint_of,
    key_pem,
    load_certificate,
    load_key,
    new_key,
    peer_identity,
    requested_key,
)
from medley.transports.identity.credentials import Credentials, read_private, split, write_private

FILE: Final = "authority.pem"
AUTHORITY_LIFE_S: Final = 10 * 365 * 24 * 3600
# Nodes renew at two thirds of it, so it is how long a machine may be switched off and still come back.
NODE_LIFE_S: Final = 30 * 24 * 3600
# The authority's key lies beside these keys, so a short life would protect nothing; a restart makes new ones.
SERVER_LIFE_S: Final = 2 * 365 * 24 * 3600
# Always among a coordinator's names, so that its certificate verifies at whatever address a machine reaches
# it.
SERVER_NAME: Final = "medley-coordinator"
_ALWAYS: Final = (SERVER_NAME, "localhost", "127.0.0.1", "::1")


class Authority:
    """A private key and its self-signed certificate."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def open(cls, directory: str | os.PathLike[str], now_ns: int) -> Authority:
        """The authority kept in a directory, made on first use; UserError when its file is damaged or
        exposed."""
        path = Path(directory) / FILE
        if not path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            content = key_pem(key) + _pem(_self_signed(key, now_ns))
            try:
                write_private(path, content, replace=False)
            except FileExistsError:
                # Another process was first, and its authority is the one that counts.
                return cls._load(path)
        return cls._load(path)

    @classmethod
    def _load(cls, path: Path) -> Authority:
        content = read_private(path)
        try:
            key, certificates = split(content)
            return cls(load_key(key), load_certificate(certificates[0]))
        except (ValueError, PeerError) as error:
            raise UserError(
                f"{path} does not hold the pool's authority ({error}): restore it from a backup, "
                "or delete it and let every machine join again"
            ) from error

    @property
    def certificate_pem(self) -> bytes:
        """What peers trust."""
        return _pem(self._certificate)

    @property
    def fingerprint(self) -> str:
        """The sha256, hexadecimal, of the authority's public key."""
        return fingerprint_of(self._certificate.public_key())

    def serve(self, name: str, hosts: Iterable[str], now_ns: int, life_s: int = SERVER_LIFE_S) -> Credentials:
        """New credentials for a coordinator that is reached at these host names and addresses, and on this
        machine."""
        key = new_key()
        names = [_alternative_name(host) for host in dict.fromkeys([*hosts, *_ALWAYS])]
        certificate = self._issue(load_key(key).public_key(), name, "coordinator", names, now_ns, life_s)
        return Credentials(certificate, key, self.certificate_pem)

    def issue(self, csr_pem: bytes, name: str, role: str, now_ns: int, life_s: int = NODE_LIFE_S) -> bytes:
        """A certificate, PEM, for the key of a signing request; what else the request wishes for is ignored.

        `role` is "node" or "operator". Raises PeerError for a bad request, UserError for a name nobody can
        have.
        """
        if role not in ROLES - {"coordinator"}:
            raise ValueError(f"a signing request cannot become a certificate of role {role!r}")
        return self._issue(requested_key(csr_pem), name, role, [], now_ns, life_s)

    def renew(self, csr_pem: bytes, certificate: bytes | str, now_ns: int, life_s: int = NODE_LIFE_S) -> bytes:
        """A new certificate for the same name and role; the key may be a new one.

        `certificate` is the one that the peer's TLS connection was verified with. Raises PeerError when it is
        not ours or has ended.
        """
        current = load_certificate(certificate)
        self._check_ours(current, now_ns)
        peer = peer_identity(certificate)
        return self.issue(csr_pem, peer.name, peer.role, now_ns, life_s)

    def enrol(self, name: str, role: str, now_ns: int, life_s: int = NODE_LIFE_S) -> Credentials:
        """Key and certificate in one step, for a process that this coordinator starts itself."""
        key = new_key()
        if role not in ROLES - {"coordinator"}:
            raise ValueError(f"role {role!r} is not one to enrol")
        certificate = self._issue(load_key(key).public_key(), name, role, [], now_ns, life_s)
        return Credentials(certificate, key, self.certificate_pem)

    def _check_ours(self, certificate: x509.Certificate, now_ns: int) -> None:
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise PeerError("the certificate was not issued by this pool") from error
        if _moment(now_ns) > certificate.not_valid_after_utc:
            raise PeerError("the certificate has ended: join again with a token")

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        name: str,
        role: str,
        names: list[x509.GeneralName],
        now_ns: int,
        life_s: int,
    ) -> bytes:
        uri = x509.UniformResourceIdentifier(f"{SCHEME}{role}/{check_name(name)}")
        # Only a coordinator may serve: a stolen node's key cannot pose as the coordinator to other nodes.
        usage = ExtendedKeyUsageOID.SERVER_AUTH if role == "coordinator" else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            _builder(_name(name), self._certificate.subject, key, now_ns, life_s)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName([uri, *names]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return _pem(builder.sign(self._key, hashes.SHA256()))


def _self_signed(key: ec.EllipticCurvePrivateKey, now_ns: int) -> x509.Certificate:
    public = key.public_key()
    name = _name(f"Medley authority {fingerprint_of(public)[:8]}")
    builder = (
        _builder(name, name, public, now_ns, AUTHORITY_LIFE_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now_ns: int, life_s: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(now_ns) - timedelta(seconds=CLOCK_ALLOWANCE_S))
        .not_valid_after(_moment(now_ns) + timedelta(seconds=life_s))
    )


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode("ascii"))
    except (UnicodeError, ValueError) as error:
        raise UserError(f"{host!r} is neither an IP address nor a host name") from error


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _moment(now_ns: int) -> datetime:
    return datetime.fromtimestamp(now_ns // NS_PER_S, tz=UTC)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
