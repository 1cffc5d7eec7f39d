"""Who is at the other end: the role and name that a verified certificate carries.

Every certificate of ours has exactly one URI `medley://<role>/<name>` among its alternative names. TLS has
already checked the signature when these functions are asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medley.protocol.errors import PeerError

ROLES = frozenset({"coordinator", "node", "operator"})
MAX_NAME = 256
_SCHEME = b"medley://"
_NAMES = "x509_subject_alternative_name"


@dataclass(frozen=True, slots=True)
class Peer:
    role: str
    name: str


def peer_of(auth_context: Mapping[str, Iterable[bytes]]) -> Peer:
    """The peer of a gRPC call. Raises PeerError for a certificate that is not one of ours."""
    uris = [entry for entry in auth_context.get(_NAMES, ()) if entry.startswith(_SCHEME)]
    if len(uris) != 1:
        raise PeerError("the certificate carries no single medley:// name")
    role, _, name = uris[0][len(_SCHEME) :].decode("ascii", "replace").partition("/")
    if role not in ROLES or not 0 < len(name) <= MAX_NAME or "/" in name:
        raise PeerError("the certificate carries a medley:// name that is not role/name")
    return Peer(role, name)


def require_role(auth_context: Mapping[str, Iterable[bytes]], role: str) -> str:
    """The name of a peer of this role; PeerError for any other."""
    peer = peer_of(auth_context)
    if peer.role != role:
        raise PeerError(f"{peer.role} '{peer.name}' may not do this: it takes a certificate of role {role}")
    return peer.name
