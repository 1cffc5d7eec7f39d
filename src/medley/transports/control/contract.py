"""What both ends of the control plane agree on beside its messages: limits, paths, gRPC options.

The messages are `protocol.messages` and `protocol.doors`, encoded by `protocol.wire`. Who a token or an
operator is allowed to be, and what a question means, is left to the `ControlOwner`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio

from medley.protocol import wire
from medley.protocol.doors import JoinReply, JoinRequest
from medley.protocol.ids import NodeId
from medley.transports.identity import SERVER_NAME

# What a gRPC read returns at the end of a stream; its stubs do not know it.
EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]

PACKAGE = "medley.v1"
JOIN = f"/{PACKAGE}.Door/Join"
ATTACH = f"/{PACKAGE}.Control/Attach"
RENEW = f"/{PACKAGE}.Control/Renew"
ASK = f"/{PACKAGE}.Operator/Ask"
FOLLOW = f"/{PACKAGE}.Operator/Follow"


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound of the control plane, for both ends.

    `outbound_messages` and `outbound_nbytes` bound what may wait for a slow peer; beyond it the stream is
    closed and the peer reconciles when it is back. `keepalive_*` find a peer that vanished without a word
    (a dead one's socket closes at once). `rpcs` bounds all calls of one server, streams included.
    """

    message_nbytes: int = wire.MAX_NBYTES
    metadata_nbytes: int = 16 * 1024
    outbound_messages: int = 4096
    outbound_nbytes: int = 64 * 1024 * 1024
    rpcs: int = 8192
    streams_per_connection: int = 320  # a node's pipes (see `tunnel`) share one
    door_rpcs: int = 32
    door_message_nbytes: int = 64 * 1024
    keepalive_time_s: float = 5.0
    keepalive_timeout_s: float = 5.0
    handshake_timeout_s: float = 5.0
    hello_timeout_s: float = 10.0
    ask_timeout_s: float = 120.0
    join_timeout_s: float = 20.0
    drain_timeout_s: float = 1.0
    reconnect_first_s: float = 0.1
    reconnect_last_s: float = 0.5
    refused_pause_s: float = 2.0


class ControlOwner(Protocol):
    """What the coordinator's runtime does with what arrives. The synchronous calls must not block.

    For one stream: `connected`, then `heard` for each message (the Hello first), then `lost` exactly once,
    and nothing after it. The `lost` of a replaced stream comes before the `connected` of the one that
    replaced it. A `PeerError` from `connected` or `heard` ends that stream with its sentence; a
    `MedleyError` from `ask`, `follow` or `join` reaches the caller as its sentence.
    """

    def connected(self, node: NodeId, boot: str) -> None: ...

    def heard(self, node: NodeId, envelope: wire.Envelope) -> None: ...

    def lost(self, node: NodeId, boot: str) -> None: ...

    async def ask(self, method: str, body: bytes, caller: str) -> bytes: ...

    def follow(self, method: str, body: bytes, caller: str) -> AsyncGenerator[bytes, None]: ...

    async def join(self, request: JoinRequest) -> JoinReply: ...

    async def renew(self, request: JoinRequest, certificate: bytes) -> JoinReply: ...


def channel_options(limits: Limits) -> list[tuple[str, int | str]]:
    """A client's gRPC options. Reconnecting is our own business, and channels share nothing."""
    return [
        # Checked instead of the address dialled: a machine may reach its coordinator by any.
        ("grpc.ssl_target_name_override", SERVER_NAME),
        ("grpc.max_receive_message_length", limits.message_nbytes),
        ("grpc.max_send_message_length", limits.message_nbytes),
        ("grpc.max_metadata_size", limits.metadata_nbytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_nbytes),
        *_keepalive(limits),
        ("grpc.initial_reconnect_backoff_ms", _ms(limits.reconnect_first_s)),
        ("grpc.min_reconnect_backoff_ms", _ms(limits.handshake_timeout_s)),
        ("grpc.max_reconnect_backoff_ms", _ms(limits.reconnect_last_s)),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
    ]


def server_options(limits: Limits, message_nbytes: int) -> list[tuple[str, int]]:
    """A server's gRPC options. The port is exclusively ours: a second coordinator must not share it."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", message_nbytes),
        ("grpc.max_send_message_length", limits.message_nbytes),
        ("grpc.max_metadata_size", limits.metadata_nbytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_nbytes),
        ("grpc.max_concurrent_streams", limits.streams_per_connection),
        ("grpc.server_handshake_timeout_ms", _ms(limits.handshake_timeout_s)),
        *_keepalive(limits),
        # Clients ping every keepalive_time_s; half of that leaves room for jitter before it counts as abuse.
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(limits.keepalive_time_s / 2)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _ms(limits.keepalive_time_s / 2)),
    ]


def _keepalive(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.keepalive_time_ms", _ms(limits.keepalive_time_s)),
        ("grpc.keepalive_timeout_ms", _ms(limits.keepalive_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Without this the core waits its own minute for the answer, whatever keepalive_timeout_ms says.
        ("grpc.http2.ping_timeout_ms", _ms(limits.keepalive_timeout_s)),
    ]


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
