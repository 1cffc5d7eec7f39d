"""A token for one machine admits one machine, however many ask at the same moment."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from medley.protocol.doors import JoinReply, JoinRequest
from medley.runtimes.coordinator import CoordinatorHost, CoordinatorOptions
from medley.transports.identity import new_key, parse_token, signing_request


async def _rush(host: CoordinatorHost) -> list[JoinReply]:
    text, record = host.door.create(["127.0.0.1:1"], host.clock.wall_ns(), 3600, 1)
    await host.keep(record)
    token = parse_token(text)
    asked = [JoinRequest(token.id, token.secret, signing_request(new_key(), ""), f"machine-{n}") for n in range(4)]
    return await asyncio.gather(*(host.join(one) for one in asked))


def test_a_single_use_token_admits_one_of_many_at_once(tmp_path: Path) -> None:
    host: Any = CoordinatorHost(CoordinatorOptions(tmp_path))
    host.server = SimpleNamespace(control_address="127.0.0.1:1")
    replies = asyncio.run(_rush(host))
    assert sorted(bool(reply.certificate_pem) for reply in replies) == [False, False, False, True]
    assert len(host.door.members) == 1
