"""What is said outside a node's stream: joining with a token, and an operator's questions.

Requests and answers, each one message of `medley.proto`. What a token or a question means is left to the
coordinator.
"""

from __future__ import annotations

from dataclasses import dataclass

from medley.protocol.ids import NodeId


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """A token and a signing request; `node` is the name asked for (empty: the coordinator chooses)."""

    token_id: str
    secret: str
    csr_pem: bytes
    node: NodeId


@dataclass(frozen=True, slots=True)
class JoinReply:
    """A certificate, or one sentence in `refused`. `control_address` is host:port for the stream."""

    certificate_pem: bytes
    authority_pem: bytes
    node: NodeId
    control_address: str
    refused: str


@dataclass(frozen=True, slots=True)
class Question:
    """What an operator asks. `body_json` is at most 8 MiB."""

    method: str
    body_json: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """`error` is a sentence for a person; empty when `body_json` answers."""

    body_json: bytes
    error: str
