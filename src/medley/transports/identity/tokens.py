"""Join tokens: the one line that a person copies to a new machine.

    medley1.<base64url of: 4 bytes checksum, JSON {id, secret, addresses, ca}>

It carries the authority's certificate, so the joiner trusts the right coordinator before it sends a byte. The
coordinator keeps only the secret's sha256. `redeem` is a pure decision. Guesses are not counted: a secret of 256 bits
needs no such limit, and one would let a stranger shut the door for others. That decisions follow each other one by
one, and the names that joiners get, are left to the join door; what a caller may cost, to the control plane's limits.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from medley.protocol.errors import PeerError, UserError
from medley.protocol.ids import NS_PER_S
from medley.transports.identity.certificates import ROLES, fingerprint_of, load_certificate

PREFIX: Final = "medley1."
LIFETIME_S: Final = 3600
MAX_TOKEN_CHARACTERS: Final = 8192
MAX_USES: Final = 10_000
# A joiner whose first answer was lost just before the token ended may still ask again.
RETRY_S: Final = 600
_CHECKSUM_NBYTES: Final = 4
_SECRET_NBYTES: Final = 32
_UNKNOWN: Final = "this token is not known here: ask for a new one with 'medley token create'"


@dataclass(frozen=True, slots=True)
class Token:
    """What the joiner holds. `addresses` are "host:port" of the join door, best first."""

    id: str
    secret: str = field(repr=False)
    addresses: tuple[str, ...]
    authority_pem: bytes

    @property
    def fingerprint(self) -> str:
        """The sha256, hexadecimal, of the authority's public key."""
        return fingerprint_of(load_certificate(self.authority_pem).public_key())

    def text(self) -> str:
        """The one line. It is a secret."""
        der = load_certificate(self.authority_pem).public_bytes(serialization.Encoding.DER)
        payload = msgspec.json.encode(_Payload(self.id, self.secret, self.addresses, der))
        return PREFIX + base64.urlsafe_b64encode(_checksum(payload) + payload).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class StoredToken:
    """What the coordinator keeps. `redeemed` are the fingerprints of the keys that used it, oldest first."""

    id: str
    secret_sha256: str = field(repr=False)
    role: str
    expires_ns: int
    uses: int
    redeemed: tuple[str, ...] = ()
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Granted:
    """The key may have a certificate of this role; `stored` is the token afterwards, to be persisted
    first."""

    stored: StoredToken
    role: str
    again: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The sentence for the joiner."""

    reason: str


class _Payload(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    secret: str
    addresses: tuple[str, ...]
    ca: bytes


def create_token(
    authority_pem: bytes,
    addresses: Sequence[str],
    now_ns: int,
    lifetime_s: int = LIFETIME_S,
    uses: int = 1,
    role: str = "node",
) -> tuple[Token, StoredToken]:
    """A new token, and what the coordinator keeps of it. UserError for a life, a number of uses or a role it
    cannot have."""
    if lifetime_s <= 0:
        raise UserError(f"a token must live longer than {lifetime_s} seconds: give a positive number")
    if not 1 <= uses <= MAX_USES:
        raise UserError(f"a token can be used 1 to {MAX_USES} times, not {uses}")
    if role not in ROLES - {"coordinator"}:
        raise UserError(f"a token cannot make a {role!r}: use 'node' or 'operator'")
    if not addresses:
        raise UserError("a token needs at least one address at which the coordinator can be reached")
    token = Token(secrets.token_hex(6), secrets.token_urlsafe(_SECRET_NBYTES), tuple(addresses), authority_pem)
    if len(token.text()) > MAX_TOKEN_CHARACTERS:
        raise UserError("the addresses are too many for one token: give those that machines really use")
    expires_ns = now_ns + lifetime_s * NS_PER_S
    return token, StoredToken(token.id, _hashed(token.secret), role, expires_ns, uses)


def parse_token(text: str) -> Token:
    """The token in a line that a person pasted; UserError, one sentence, when it is not whole."""
    line = "".join(text.split())
    if not line.startswith(PREFIX):
        raise UserError(f"this is not a join token: it must start with '{PREFIX}'")
    if len(line) > MAX_TOKEN_CHARACTERS:
        raise UserError(f"this is not a join token: it has {len(line)} characters, more than {MAX_TOKEN_CHARACTERS}")
    try:
        encoded = line.removeprefix(PREFIX)
        content = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        checksum, payload = content[:_CHECKSUM_NBYTES], content[_CHECKSUM_NBYTES:]
        if checksum != _checksum(payload):
            raise ValueError("its checksum is wrong")
        decoded = msgspec.json.decode(payload, type=_Payload)
        certificate = x509.load_der_x509_certificate(decoded.ca)
    except (ValueError, binascii.Error, msgspec.DecodeError, PeerError) as error:
        raise UserError("the join token is damaged or cut off: copy the whole line again") from error
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return Token(decoded.id, decoded.secret, decoded.addresses, pem)


def redeem(stored: StoredToken | None, secret: str, key_fingerprint: str, now_ns: int) -> Granted | Refused:
    """Whether the holder of a key may use a token. `stored` is None for an unknown id.

    Idempotent: a key that redeemed before is granted again, so that a lost reply burns nothing.
    """
    expected = stored.secret_sha256 if stored else _hashed("")
    # Compared for unknown tokens too, so that time does not tell which ids exist.
    right = hmac.compare_digest(expected, _hashed(secret))
    if stored is None or not right:
        return Refused(_UNKNOWN)
    if stored.revoked:
        return Refused("this token was revoked: ask for a new one with 'medley token create'")
    again = key_fingerprint in stored.redeemed
    if now_ns >= stored.expires_ns + (RETRY_S * NS_PER_S if again else 0):
        return Refused("this token has expired: ask for a new one with 'medley token create'")
    if again:
        return Granted(stored, stored.role, True)
    if len(stored.redeemed) >= stored.uses:
        return Refused("this token was already used: ask for a new one with 'medley token create'")
    return Granted(replace(stored, redeemed=(*stored.redeemed, key_fingerprint)), stored.role, False)


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:_CHECKSUM_NBYTES]
