"""The join door: tokens made, tokens redeemed, certificates given. Its state is the fold of the pool's records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from medley.protocol.doors import JoinReply, JoinRequest
from medley.protocol.errors import PeerError, UserError
from medley.protocol.ids import NodeId
from medley.protocol.records import NodeRevoked, PoolRecord, TokenCreated, TokenRedeemed
from medley.transports.identity import (
    Authority,
    Granted,
    Refused,
    StoredToken,
    create_token,
    key_fingerprint,
    node_name,
    redeem,
)


class Door:
    """Decides; the coordinator's host persists the returned record before it answers anybody."""

    def __init__(self, authority: Authority, records: Iterable[PoolRecord]) -> None:
        self._authority = authority
        self._tokens: dict[str, StoredToken] = {}
        self.members: set[NodeId] = set()  # whoever joined with a token, connected or not
        for record in records:
            self.fold(record)

    def fold(self, record: PoolRecord) -> None:
        match record:
            case TokenCreated():
                stored = StoredToken(
                    record.token, record.secret_sha256, record.role, record.expires_wall_ns, record.uses
                )
                self._tokens[record.token] = stored
            case TokenRedeemed():
                self.members.add(record.node)
                stored = self._tokens[record.token]
                self._tokens[record.token] = replace(stored, redeemed=(*stored.redeemed, record.key_sha256))
            case NodeRevoked():
                pass

    def tokens(self) -> Sequence[StoredToken]:
        return tuple(self._tokens.values())

    def create(self, addresses: Sequence[str], now_ns: int, lifetime_s: int, uses: int) -> tuple[str, TokenCreated]:
        """The token's text (a secret) and the record to persist. Raises UserError."""
        token, stored = create_token(self._authority.certificate_pem, addresses, now_ns, lifetime_s, uses, "node")
        record = TokenCreated(stored.id, stored.secret_sha256, stored.expires_ns, stored.uses, stored.role)
        return token.text(), record

    def redeem(self, request: JoinRequest, control: str, now_ns: int) -> tuple[JoinReply, TokenRedeemed | None]:
        """The reply, and the record to persist first (None: nothing changes)."""
        try:
            fingerprint = key_fingerprint(request.csr_pem)
        except (PeerError, ValueError) as error:
            return _refusal(f"the signing request is not valid: {error}"), None
        verdict = redeem(self._tokens.get(request.token_id), request.secret, fingerprint, now_ns)
        if isinstance(verdict, Refused):
            return _refusal(verdict.reason), None
        return self._grant(request, verdict, fingerprint, control, now_ns)

    def _grant(
        self, request: JoinRequest, verdict: Granted, fingerprint: str, control: str, now_ns: int
    ) -> tuple[JoinReply, TokenRedeemed | None]:
        try:
            name = node_name(request.node, fingerprint)
            certificate = self._authority.issue(request.csr_pem, name, verdict.role, now_ns)
        except (PeerError, UserError) as error:
            return _refusal(str(error)), None
        record = None if verdict.again else TokenRedeemed(request.token_id, name, fingerprint)
        return JoinReply(certificate, self._authority.certificate_pem, name, control, ""), record


def _refusal(reason: str) -> JoinReply:
    return JoinReply(b"", b"", "", "", reason)
