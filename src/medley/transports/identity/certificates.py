"""Keys, signing requests, and what a certificate of ours says: one URI `medley://<role>/<name>`.

A certificate read here was either verified by TLS or is ours; these functions read it, they do not verify a
signature.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from medley.protocol.errors import PeerError, UserError
from medley.protocol.ids import NS_PER_S

SCHEME: Final = "medley://"
ROLES: Final = frozenset({"node", "operator", "coordinator"})
# Certificates begin this long before they are made: a machine whose clock is a day behind may still join.
CLOCK_ALLOWANCE_S: Final = 24 * 3600
MAX_CERTIFICATE_NBYTES: Final = 16 << 10
MAX_NAME_CHARACTERS: Final = 63
_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARACTERS - 1}}}")
_ADDED_CHARACTERS: Final = 9


class Peer(NamedTuple):
    """Who a certificate speaks for."""

    name: str
    role: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a coordinator keeps of a certificate it issued. Times are wall-clock nanoseconds since 1970."""

    peer: Peer
    serial: str
    key_fingerprint: str
    not_before_ns: int
    not_after_ns: int


def new_key() -> bytes:
    """A new P-256 private key, PEM (PKCS #8, not encrypted: the file's mode protects it)."""
    return key_pem(ec.generate_private_key(ec.SECP256R1()))


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """A private key of ours; ValueError for anything but P-256 in PEM."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ValueError("the private key is encrypted") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the private key is not on the curve P-256")
    return key


def signing_request(key: bytes, name: str = "") -> bytes:
    """A signing request, PEM, over a private key in PEM. The name is a wish: the authority decides."""
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    return request.sign(load_key(key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key that a signing request proves to hold; PeerError, one sentence, for a bad request."""
    if len(csr_pem) > MAX_CERTIFICATE_NBYTES:
        raise PeerError(f"a signing request of {len(csr_pem)} bytes is over the limit of {MAX_CERTIFICATE_NBYTES}")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, InvalidSignature, TypeError) as error:
        raise PeerError("the signing request cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PeerError("the signing request is not for a key on the curve P-256")
    if not valid:
        raise PeerError("the signing request is not signed by the key that it names")
    return key


def key_fingerprint(csr_pem: bytes) -> str:
    """The sha256, hexadecimal, of the public key in a signing request that proves to hold it; PeerError
    otherwise."""
    return fingerprint_of(requested_key(csr_pem))


def fingerprint_of(key: object) -> str:
    """The sha256, hexadecimal, of a public key's SubjectPublicKeyInfo."""
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PeerError("the key is not on an elliptic curve")
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def node_name(wish: str, fingerprint: str) -> str:
    """A node's name that nobody else can claim: what it asked for, made plain, and the start of its key's
    fingerprint."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", wish).strip("-._")[: MAX_NAME_CHARACTERS - _ADDED_CHARACTERS]
    return f"{plain or 'node'}-{fingerprint[: _ADDED_CHARACTERS - 1]}"


def check_name(name: str) -> str:
    """The name itself; UserError when a certificate cannot carry it."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be a name: use letters, digits, '.', '_' and '-', at most {MAX_NAME_CHARACTERS}"
        )
    return name


def peer_identity(certificate: bytes | str) -> Peer:
    """(name, role) of a certificate in PEM or DER; PeerError when it is not one of ours."""
    return _peer(load_certificate(certificate))


def certificate_facts(certificate: bytes | str) -> Facts:
    """Everything worth keeping of a certificate in PEM or DER; PeerError when it is not one of ours."""
    loaded = load_certificate(certificate)
    return Facts(
        _peer(loaded),
        f"{loaded.serial_number:040x}",
        fingerprint_of(loaded.public_key()),
        _ns(loaded.not_valid_before_utc),
        _ns(loaded.not_valid_after_utc),
    )


def needs_renewal(certificate: bytes | str, now_ns: int) -> bool:
    """Whether two thirds of the certificate's life are over; PeerError when it is not one of ours."""
    facts = certificate_facts(certificate)
    issued_ns = facts.not_before_ns + CLOCK_ALLOWANCE_S * NS_PER_S
    return (now_ns - issued_ns) * 3 >= (facts.not_after_ns - issued_ns) * 2


def load_certificate(certificate: bytes | str) -> x509.Certificate:
    """A certificate in PEM (the first of a chain) or DER; PeerError when it cannot be read or is too
    large."""
    content = certificate.encode() if isinstance(certificate, str) else certificate
    if len(content) > MAX_CERTIFICATE_NBYTES:
        raise PeerError(f"a certificate of {len(content)} bytes is over the limit of {MAX_CERTIFICATE_NBYTES}")
    try:
        if content.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(content)
        return x509.load_der_x509_certificate(content)
    except ValueError as error:
        raise PeerError("the certificate cannot be read") from error


def _peer(certificate: x509.Certificate) -> Peer:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise PeerError("the certificate carries no names") from error
    uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(SCHEME)]
    if len(uris) != 1:
        raise PeerError(f"the certificate carries {len(uris)} medley:// names instead of one")
    role, _, name = uris[0].removeprefix(SCHEME).partition("/")
    if role not in ROLES or not _NAME.fullmatch(name):
        raise PeerError("the certificate carries a medley:// name that is not role/name")
    return Peer(name, role)


def _ns(moment: datetime) -> int:
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * NS_PER_S
