"""Who a process is: an authority of our own, certificates, join tokens, and the files that keep them.

P-256 throughout, because gRPC for Python knows no Ed25519. Nothing here opens a connection: credentials are
PEM bytes, and TLS settings (1.2 at least, gRPC and OpenSSL offer 1.3 by default) belong to the transports.
Time is always an argument, `now_ns`, wall-clock nanoseconds since 1970. CURVE keys live with the tensor
plane: each engine makes its own and registers it over its node's control stream, which the certificate names, and
the coordinator hands it to the engines of the job. A key is admitted or not; no socket ties it to one node, role or
job. What a node may say of a shard is checked by the coordinator, against where it placed that shard.
"""

from medley.transports.identity.authority import SERVER_NAME, Authority
from medley.transports.identity.certificates import (
    Facts,
    Peer,
    certificate_facts,
    key_fingerprint,
    needs_renewal,
    new_key,
    node_name,
    peer_identity,
    signing_request,
)
from medley.transports.identity.credentials import Credentials
from medley.transports.identity.tokens import (
    Granted,
    Refused,
    StoredToken,
    Token,
    create_token,
    parse_token,
    redeem,
)

__all__ = [
    "SERVER_NAME",
    "Authority",
    "Credentials",
    "Facts",
    "Granted",
    "Peer",
    "Refused",
    "StoredToken",
    "Token",
    "certificate_facts",
    "create_token",
    "key_fingerprint",
    "needs_renewal",
    "new_key",
    "node_name",
    "parse_token",
    "peer_identity",
    "redeem",
    "signing_request",
]
