"""What somebody who does not belong does to a port, run inside a namespace: `strangers.py HOST CREDENTIALS PORT...`.

Plain garbage, a frame that claims to be huge, half a handshake, an HTTP request, a certificate of another authority,
and connections that say nothing. CREDENTIALS are a file of another pool.
"""

from __future__ import annotations

import random
import socket
import ssl
import struct
import sys

OVERSIZED = struct.pack(">BQ", 2, 1 << 40)  # a ZMTP 3 long frame of a tebibyte


def knock(host: str, port: int, content: bytes) -> None:
    """Connect, say it, hear at most a little, go."""
    try:
        with socket.create_connection((host, port), 5) as one:
            one.settimeout(0.3)
            one.sendall(content)
            one.recv(4096)
    except OSError:
        pass


def pretend(host: str, port: int, credentials: str = "") -> None:
    """A TLS client, without a certificate or with a stranger's, that then sends an HTTP/2 frame of 16 MiB."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if credentials:
        context.load_cert_chain(credentials)
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), 5) as raw, context.wrap_socket(raw) as one:
            one.settimeout(0.3)
            one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(1 << 16))
            one.recv(4096)
    except OSError:
        pass


def greeting() -> bytes:
    """The opening of a ZMTP 3.1 peer that wants no security."""
    return b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def main() -> None:
    host, credentials, ports = sys.argv[1], sys.argv[2], [int(port) for port in sys.argv[3:]]
    rng = random.Random(4)
    silent = [socket.create_connection((host, port), 5) for port in ports for _ in range(8)]
    for port in ports:
        for content in (rng.randbytes(65536), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", greeting() + OVERSIZED, OVERSIZED):
            knock(host, port, content)
        pretend(host, port)
        pretend(host, port, credentials)
    for one in silent:
        one.close()
    print(f"knocked at {len(ports)} ports")


if __name__ == "__main__":
    main()
