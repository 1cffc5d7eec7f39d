"""Who may connect: CURVE key pairs and the ZAP answer (RFC 27) that admits or refuses a public key.

ZAP speaks only at the handshake; what happens to a key revoked later is the engine's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import zmq
from zmq.utils import z85

ZAP_ENDPOINT = "inproc://zeromq.zap.01"


@dataclass(frozen=True, slots=True)
class Curve:
    """A CURVE key pair, 32 bytes each. The secret never appears in a repr."""

    public_key: bytes
    secret_key: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Curve:
        public, secret = zmq.curve_keypair()
        return cls(z85.decode(public), z85.decode(secret))

    def apply_as_server(self, socket: zmq.Socket[bytes]) -> None:
        socket.zap_domain = b"medley"
        socket.curve_secretkey = z85.encode(self.secret_key)
        socket.curve_publickey = z85.encode(self.public_key)
        socket.curve_server = True

    def apply_as_client(self, socket: zmq.Socket[bytes], server_key: bytes) -> None:
        socket.curve_secretkey = z85.encode(self.secret_key)
        socket.curve_publickey = z85.encode(self.public_key)
        socket.curve_serverkey = z85.encode(server_key)


def zap_answer(request: Sequence[bytes], allowed: Callable[[bytes], bool]) -> list[bytes]:
    """The reply to one ZAP request. The user id of an admitted key is its hexadecimal form."""
    version, request_id = (request[0], request[1]) if len(request) >= 2 else (b"1.0", b"")
    curve = len(request) == 7 and version == b"1.0" and request[5] == b"CURVE" and len(request[6]) == 32
    if curve and allowed(request[6]):
        return [b"1.0", request_id, b"200", b"OK", request[6].hex().encode(), b""]
    return [b"1.0", request_id, b"400", b"this key is not admitted", b"", b""]
