"""Who is at the other end of a gRPC call: what its certificate says, once TLS has verified it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from medley.protocol.errors import PeerError
from medley.transports.identity import peer_identity


def require_role(auth_context: Mapping[str, Iterable[bytes]], role: str) -> str:
    """The name of a peer of this role. Raises PeerError for any other, or for a certificate not of ours."""
    certificates = list(auth_context.get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise PeerError("the connection carries no certificate")
    peer = peer_identity(certificates[0])
    if peer.role != role:
        raise PeerError(f"{peer.role} '{peer.name}' may not do this: it takes a certificate of role {role}")
    return peer.name
